"""Ranking: for each query the gallery items found, best first. Ranked once; every number is a pure function of it.

Shape legend of this package: Q queries, N gallery items, K ranks kept, L distinct labels of a query, D width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError

NO_ITEM = -1  # the list has ended
UNKNOWN_ITEM = -2  # the list goes on, but this id is not in the gallery (files of third parties)


class Ranking(NamedTuple):
    """Lists of gallery items, ordered by falling score, equal scores by gallery id in code-point order."""

    query_ids: np.ndarray  # str Q
    gallery_ids: np.ndarray  # str N
    index_QK: np.ndarray  # int64, row of gallery_ids, or NO_ITEM (only at a row's end), or UNKNOWN_ITEM
    score_QK: np.ndarray  # float32; -inf at NO_ITEM; nan where a file gave no scores

    @property
    def lengths(self) -> np.ndarray:
        """Number of items in each list (int Q), unknown ones included."""
        return np.count_nonzero(self.index_QK != NO_ITEM, axis=1)

    def item_ids(self, row: int) -> list[str]:
        """Ids of the items found for one query, best first; unknown items are left out."""
        index_K = self.index_QK[row]
        return [str(item) for item in self.gallery_ids[index_K[index_K >= 0]]]


def check_ranking(ranking: Ranking) -> Ranking:
    """Return the ranking as arrays of the declared types, or say what is wrong with it.

    Raises: RetrievalError on shapes that do not fit, rows outside the gallery, or an item after the end of a list.
    """
    query_ids, gallery_ids = as_ids(ranking.query_ids), as_ids(ranking.gallery_ids)
    index_QK, score_QK = np.asarray(ranking.index_QK), np.asarray(ranking.score_QK, np.float32)
    if index_QK.ndim != 2 or index_QK.shape != score_QK.shape or len(index_QK) != len(query_ids):
        raise RetrievalError(
            f"a ranking of {len(query_ids)} queries needs index_QK and score_QK of that many rows and equal shape; "
            f"got {index_QK.shape} and {score_QK.shape}"
        )
    if index_QK.size and (index_QK.dtype.kind not in "iu"):
        raise RetrievalError(f"index_QK holds rows of the gallery and must be integer; got {index_QK.dtype}")
    index_QK = index_QK.astype(np.int64, copy=False)
    _check_rows(query_ids, index_QK, len(gallery_ids))
    return Ranking(query_ids, gallery_ids, index_QK, score_QK)


def _check_rows(query_ids: np.ndarray, index_QK: np.ndarray, num_items: int) -> None:
    outside_QK = (index_QK >= num_items) | (index_QK < UNKNOWN_ITEM)
    if outside_QK.any():
        row, column = np.argwhere(outside_QK)[0]
        raise RetrievalError(
            f"query {query_ids[row]!s}: rank {column + 1} points to gallery row {index_QK[row, column]}, "
            f"but the gallery has {num_items} items"
        )
    gap_QK = (index_QK[:, :-1] == NO_ITEM) & (index_QK[:, 1:] != NO_ITEM)
    if gap_QK.any():
        row, column = np.argwhere(gap_QK)[0]
        raise RetrievalError(f"query {query_ids[row]!s}: its list ends at rank {column + 1} and then goes on")


def as_ids(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Ids as a numpy string array, also when there are none of them."""
    array = np.asarray(ids)
    if array.ndim != 1:
        raise RetrievalError(f"ids must be a flat list of strings; got shape {array.shape}")
    return array if array.dtype.kind == "U" else array.astype(str)


def own_rows(query_ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """Gallery row with the query's own id (int64 Q), UNKNOWN_ITEM where there is none."""
    if not len(gallery_ids):
        return np.full(len(query_ids), np.int64(UNKNOWN_ITEM))
    by_id_N = np.argsort(gallery_ids, kind="stable")
    place_Q = np.minimum(np.searchsorted(gallery_ids[by_id_N], query_ids), len(gallery_ids) - 1)
    found_Q = by_id_N[place_Q]
    return np.where(gallery_ids[found_Q] == query_ids, found_Q, np.int64(UNKNOWN_ITEM))


def check_unique(ids: np.ndarray, what: str) -> None:
    """Identity is the item id: the same id twice would give one item two embeddings."""
    order = np.argsort(ids)
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if repeated.size:
        first, second = sorted(order[repeated[0] : repeated[0] + 2])
        raise RetrievalError(f"duplicate {what} id {ids[first]!s} (rows {first} and {second}): keep one of them")
