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

    def rows(self) -> Tensor:
        """Rows of the split, int64, as they came; padding brings some twice."""
        return _joined(self._rows, torch.zeros(0, dtype=torch.int64))

    def vectors(self, name: str) -> Tensor:
        """The vectors of `rows`, N×D; 0×0 where there are none."""
        return _joined(self._vectors[name] if self._rows else [], torch.zeros(0, 0))

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

    def _items(self) -> Tensor:
        """Rows of the split that were embedded."""
        return self.rows()


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
        """Of all ranks' instances, in row order: owner_I (row of the split), boxes_I4 and scores_I."""
        _, first = np.unique(_everywhere(self.rows(), device).numpy(), return_index=True)
        owner_I = _everywhere(self._items(), device).numpy()[first]
        found = [part for part in gather_uneven(self.vectors(_FOUND).to(device)) if len(part)]
        found_I5 = torch.cat(found).cpu().numpy()[first]
        return owner_I, found_I5[:, :4], found_I5[:, 4]

    def _items(self) -> Tensor:
        # A query is there when an instance of it is: batches hold whole queries.
        return _joined(self._owners, torch.zeros(0, dtype=torch.int64))


def _joined(parts: list[Tensor], empty: Tensor) -> Tensor:
    """The parts as one, which takes their place, so that nothing is held twice."""
    if len(parts) > 1:
        parts[:] = [torch.cat(parts)]
    return parts[0] if parts else empty


def _everywhere(local: Tensor, device: torch.device) -> Tensor:
    """int64 of all ranks, rank after rank, on every rank."""
    return torch.cat(gather_uneven(local.to(device))).cpu()
