"""Embeddings of one split, keyed by row, collected on each rank and checked for completeness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_modules.distributed import world_size
from lightning_modules.errors import ModelError


def gather_uneven(local_ND: Tensor) -> list[Tensor]:
    """Each rank's rows, which may differ in number (also none), on every rank."""
    return gather_all_tensors(local_ND) if world_size() > 1 else [local_ND]


class EmbeddingStore:
    """This rank's embeddings of a split, by feature name, with the split's row of each."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._vectors: dict[str, list[Tensor]] = {}

    def update(self, index_B: Tensor, vectors: dict[str, Tensor]) -> None:
        """Add a batch; vectors move to the CPU, where a gallery of any size fits."""
        self._rows.append(index_B.cpu())
        for name, vector_BD in vectors.items():
            self._vectors.setdefault(name, []).append(vector_BD.cpu())

    def local(self, name: str) -> tuple[Tensor, Tensor]:
        """(rows N, vectors N×D) of this rank in row order; a row that came twice (padding) counts once."""
        if not self._rows:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        rows, vectors_ND = torch.cat(self._rows), torch.cat(self._vectors[name])
        unique, first = np.unique(rows.numpy(), return_index=True)
        return torch.from_numpy(unique), vectors_ND[torch.from_numpy(first)]

    def everywhere(self, name: str, device: torch.device) -> Tensor:
        """All ranks' vectors in row order, N×D, on every rank."""
        rows, vectors_ND = self.local(name)
        all_rows = torch.cat(gather_uneven(rows.to(device))).cpu()
        parts = [part for part in gather_uneven(vectors_ND.to(device)) if len(part)]
        return torch.cat(parts).cpu()[_first_of_each(all_rows)]

    def check_complete(self, ids: np.ndarray, split: str, device: torch.device) -> None:
        """Raise, on every rank, when an item of the split was not embedded."""
        rows = torch.cat(self._rows) if self._rows else torch.zeros(0, dtype=torch.int64)
        seen = torch.cat(gather_uneven(rows.to(device))).cpu().numpy()
        missing = np.setdiff1d(np.arange(len(ids)), seen)
        if len(missing):
            examples = ", ".join(str(item) for item in ids[missing[:3]])
            raise ModelError(
                f"{len(missing)} of {len(ids)} items of split {split!r} were not embedded (first: {examples}); "
                "metrics over an incomplete split would be wrong. Is trainer.limit_val_batches or "
                "limit_test_batches set, or does `data verify` report this folder?"
            )


def _first_of_each(rows: Tensor) -> Tensor:
    _, first = np.unique(rows.numpy(), return_index=True)
    return torch.from_numpy(first)
