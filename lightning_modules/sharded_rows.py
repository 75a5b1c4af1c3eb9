"""A split's embeddings as they lie on the ranks: each row on one rank, and all of them on none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_modules.distributed import rank
from lightning_modules.embedding_store import EmbeddingStore, gather_uneven


class ShardedRows:
    """The rows that this rank holds, and those of the others block by block; every rank calls together.

    A row that came more than once (padding) counts once: where it came first, on the lowest rank that has it.

    Args:
        store: This rank's embeddings.
        device: Where the process group exchanges tensors.
    """

    def __init__(self, store: EmbeddingStore, device: torch.device) -> None:
        self._store, self._device = store, device
        by_rank = [part.cpu().numpy() for part in gather_uneven(store.rows().to(device))]
        rows, first = np.unique(np.concatenate(by_rank), return_index=True)
        self.everywhere = rows  # of the split, on any rank, int64, ascending
        ends = np.cumsum([len(part) for part in by_rank])
        holder = np.searchsorted(ends, first, side="right")
        self._held = [rows[holder == number] for number in range(len(by_rank))]  # of each rank, ascending
        self._places = torch.from_numpy(first[holder == rank()] - (ends[rank()] - len(by_rank[rank()])))

    @property
    def here(self) -> np.ndarray:
        """Rows of the split that this rank holds, int64, ascending."""
        return self._held[rank()]

    def vectors(self, name: str) -> Tensor:
        """The vectors of `here`, N×D; 0×0 on a rank without any."""
        vectors_ND = self._store.vectors(name)
        in_order = torch.equal(self._places, torch.arange(len(vectors_ND)))
        return vectors_ND if in_order else vectors_ND[self._places]

    def in_blocks(self, name: str, size: int, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows B, vectors B×D) of all ranks, the same on every rank: each row once, in no order, B at most `size`.

        Args:
            wanted: Rows of the split to which to keep; None = all.
        """
        held = [rows if wanted is None else rows[np.isin(rows, wanted)] for rows in self._held]
        mine = self._places[torch.from_numpy(np.searchsorted(self.here, held[rank()]))]
        each = max(1, size // len(held))
        for start in range(0, max(map(len, held)), each):
            mine_BD = self._store.vectors(name)[mine[start : start + each]]
            parts = [part for part in gather_uneven(mine_BD.to(self._device)) if len(part)]
            yield np.concatenate([rows[start : start + each] for rows in held]), torch.cat(parts).cpu()
