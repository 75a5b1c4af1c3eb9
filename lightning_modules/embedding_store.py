"""Embeddings of one split, keyed by row, collected on each rank and checked for completeness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules.batch import ProductBatch
from lightning_modules.distributed import world_size
from lightning_modules.errors import ModelError

_FOUND = "_found"  # where and how surely an instance was found: kept beside the vectors, no model uses the name


def gather_uneven(local_ND: Tensor) -> list[Tensor]:
    """Each rank's rows, which may differ in number (also none), on every rank."""
    return gather_all_tensors(local_ND) if world_size() > 1 else [local_ND]


class EmbeddingStore:
    """This rank's embeddings of a split, by feature name, with the split's row of each."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._vectors: dict[str, list[Tensor]] = {}

    def update(self, batch: ProductBatch, vectors: dict[str, Tensor]) -> None:
        """Add a batch; vectors move to the CPU, where a gallery of any size fits."""
        self._rows.append(batch.index_B.cpu())
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
        seen = _everywhere(self._items(), device).numpy()
        missing = np.setdiff1d(np.arange(len(ids)), seen)
        if len(missing):
            examples = ", ".join(str(item) for item in ids[missing[:3]])
            raise ModelError(
                f"{len(missing)} of {len(ids)} items of split {split!r} were not embedded (first: {examples}); "
                "metrics over an incomplete split would be wrong. Is trainer.limit_val_batches or "
                "limit_test_batches set, or does `data verify` report this folder?"
            )

    def _items(self) -> list[Tensor]:
        """Rows of the split that were embedded, by batch."""
        return self._rows


class InstanceStore(EmbeddingStore):
    """This rank's embeddings of the instances of a split's queries, with the query, box and score of each."""

    def __init__(self) -> None:
        super().__init__()
        self._owners: list[Tensor] = []

    def update(self, batch: ProductBatch, vectors: dict[str, Tensor]) -> None:
        """Add a batch of instances."""
        if batch.owner_B is None or batch.instance_box_B5 is None or batch.instance_score_B is None:
            raise ModelError("a batch of instances must hold owner_B, instance_box_B5 and instance_score_B")
        found_B5 = torch.cat([batch.instance_box_B5[:, :4], batch.instance_score_B.unsqueeze(1)], 1)
        super().update(batch, {**vectors, _FOUND: found_B5})
        self._owners.append(batch.owner_B.cpu())

    def about(self, device: torch.device) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all ranks' instances, in the order of `everywhere`: owner_I (row of the split), boxes_I4 and scores_I."""
        first = _first_of_each(_everywhere(self._rows, device))
        owner_I = _everywhere(self._owners, device)[first]
        found_I5 = self.everywhere(_FOUND, device).numpy()
        return owner_I.numpy(), found_I5[:, :4], found_I5[:, 4]

    def _items(self) -> list[Tensor]:
        return self._owners  # a query is there when an instance of it is: batches hold whole queries


def _everywhere(parts: list[Tensor], device: torch.device) -> Tensor:
    """int64 of all batches and ranks, rank after rank, on every rank."""
    local = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    return torch.cat(gather_uneven(local.to(device))).cpu()


def _first_of_each(rows: Tensor) -> Tensor:
    _, first = np.unique(rows.numpy(), return_index=True)
    return torch.from_numpy(first)
