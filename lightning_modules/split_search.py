"""Ranking over all ranks: the queries are exchanged, each rank ranks its part of the gallery, the lists are merged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lightning_modules.embedding_store import EmbeddingStore, gather_uneven
from lightning_modules.sharded_rows import ShardedRows
from retrieval import NO_ITEM, Ranking, rank
from retrieval.merge import merge_lists
from retrieval.order import id_ranks

QUERY_BLOCK = 4096  # queries of all ranks together that are searched at a time: 16 MB of vectors at width 1024


class SplitSearch:
    """Ranks queries against the gallery by any pair of features; every rank calls and gets the same lists.

    An embedding of the gallery stays on the rank that made it, also where it is a query itself. A rank holds its part
    of gallery and queries, one block of queries and the lists: N/ranks + block, never N vectors. As `rank` scores a
    pair the same in any part and block, lists and scores are those of one process, to the bit.

    Args:
        depth: Length of the lists of `__call__`.
        backend: Of `retrieval.rank`.
    """

    def __init__(
        self,
        queries: EmbeddingStore,
        gallery: EmbeddingStore,
        query_ids: np.ndarray,
        gallery_ids: np.ndarray,
        device: torch.device,
        depth: int,
        backend: str,
    ) -> None:
        self.queries = queries
        self.gallery = gallery
        self.query_ids = query_ids
        self.gallery_ids = gallery_ids
        self.device = device
        self.depth = depth
        self.backend = backend
        self._query_rows = ShardedRows(queries, device)
        self._gallery_rows = ShardedRows(gallery, device)

    def __call__(self, query_name: str, gallery_name: str) -> Ranking:
        """All queries of the split."""
        blocks, rows_Q = self._query_rows.in_blocks(query_name, QUERY_BLOCK), self._query_rows.everywhere
        return self._ranked(blocks, rows_Q, self.query_ids, gallery_name, self.depth, exclude_self=False)

    def of_queries(self, query_ids: np.ndarray) -> SplitSearch:
        """The same search with other names for the rows of its queries."""
        return SplitSearch(
            self.queries, self.gallery, query_ids, self.gallery_ids, self.device, self.depth, self.backend
        )

    def among_gallery(self, name: str, rows_Q: np.ndarray, depth: int) -> Ranking:
        """The gallery items of these rows (ascending) as queries, each against all other items."""
        blocks = self._gallery_rows.in_blocks(name, QUERY_BLOCK, wanted=rows_Q)
        return self._ranked(blocks, rows_Q, self.gallery_ids[rows_Q], name, depth, exclude_self=True)

    def zero_vectors(self, name: str) -> int:
        """Queries and gallery items of all ranks whose embedding is exactly zero."""
        local = sum((rows.vectors(name) == 0).all(-1).sum() for rows in (self._query_rows, self._gallery_rows))
        return int(sum(part.sum() for part in gather_uneven(torch.as_tensor([local]).to(self.device))))

    def _ranked(
        self,
        blocks: Iterable[tuple[np.ndarray, Tensor]],
        rows_Q: np.ndarray,
        query_ids: np.ndarray,
        name: str,
        depth: int,
        exclude_self: bool,
    ) -> Ranking:
        """The lists of all queries, whose rows are ascending, and which come in blocks with their rows."""
        gallery_ND, ids_N = self._gallery_rows.vectors(name), self.gallery_ids[self._gallery_rows.here]
        ranks_N, kept = id_ranks(self.gallery_ids), min(depth, len(self.gallery_ids))
        index_QK = np.full((len(query_ids), kept), np.int64(NO_ITEM))
        score_QK = np.full((len(query_ids), kept), np.float32(-np.inf))
        for rows_B, query_BD in blocks:
            place_B = np.searchsorted(rows_Q, rows_B)
            index_BK, score_BK = np.zeros((len(rows_B), 0), np.int64), np.zeros((len(rows_B), 0), np.float32)
            if len(ids_N):  # with more ranks than gallery batches some rank has none
                part = rank(query_BD, gallery_ND, query_ids[place_B], ids_N, depth, self.backend, exclude_self)
                ended_BK = part.index_QK == NO_ITEM
                index_BK = np.where(ended_BK, np.int64(NO_ITEM), self._gallery_rows.here[part.index_QK])
                score_BK = part.score_QK
            index_parts, score_parts = self._of_all_ranks(index_BK), self._of_all_ranks(score_BK)
            index_QK[place_B], score_QK[place_B] = merge_lists(index_parts, score_parts, ranks_N, depth)
        return Ranking(query_ids, self.gallery_ids, index_QK, score_QK)

    def _of_all_ranks(self, local: np.ndarray) -> list[np.ndarray]:
        return [part.cpu().numpy() for part in gather_uneven(torch.from_numpy(local).to(self.device))]
