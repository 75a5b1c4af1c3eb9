"""Ranking over all ranks: the queries are exchanged, each rank ranks its part of the gallery, the lists are merged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_modules.embedding_store import EmbeddingStore, gather_uneven
from retrieval import Ranking, merge_rankings, rank


class SplitSearch:
    """Ranks queries against the gallery by any pair of features; every rank calls and gets the same lists.

    Gallery embeddings stay on their rank.

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

    def __call__(self, query_name: str, gallery_name: str) -> Ranking:
        """All queries of the split."""
        query_QD = self.queries.everywhere(query_name, self.device)
        return self._against_gallery(query_QD, self.query_ids, gallery_name, self.depth, exclude_self=False)

    def of_queries(self, query_ids: np.ndarray) -> SplitSearch:
        """The same search with other names for the rows of its queries."""
        return SplitSearch(
            self.queries, self.gallery, query_ids, self.gallery_ids, self.device, self.depth, self.backend
        )

    def among_gallery(self, name: str, rows_Q: np.ndarray, depth: int) -> Ranking:
        """The gallery items of these rows as queries, each against all other items."""
        query_QD = self.gallery.everywhere(name, self.device)[torch.from_numpy(rows_Q)]
        return self._against_gallery(query_QD, self.gallery_ids[rows_Q], name, depth, exclude_self=True)

    def zero_vectors(self, name: str) -> int:
        """Queries and gallery items of all ranks whose embedding is exactly zero."""
        local = sum((store.local(name)[1] == 0).all(-1).sum() for store in (self.queries, self.gallery))
        return int(sum(part.sum() for part in gather_uneven(torch.as_tensor([local]).to(self.device))))

    def _against_gallery(
        self, query_QD: Tensor, query_ids: np.ndarray, name: str, depth: int, exclude_self: bool
    ) -> Ranking:
        rows_N, gallery_ND = self.gallery.local(name)
        index_QK, score_QK = torch.zeros(len(query_QD), 0, dtype=torch.int64), torch.zeros(len(query_QD), 0)
        if len(rows_N):  # with more ranks than gallery batches some rank has none
            ids_N = self.gallery_ids[rows_N.numpy()]
            part = rank(query_QD, gallery_ND, query_ids, ids_N, depth, self.backend, exclude_self)
            index_QK, score_QK = torch.from_numpy(part.index_QK), torch.from_numpy(part.score_QK)
        lists = [gather_uneven(local.to(self.device)) for local in (rows_N, index_QK, score_QK)]
        parts = [
            Ranking(query_ids, self.gallery_ids[rows.cpu().numpy()], index.cpu().numpy(), score.cpu().numpy())
            for rows, index, score in zip(*lists, strict=True)
            if len(rows)
        ]
        return merge_rankings(parts, self.gallery_ids, depth)
