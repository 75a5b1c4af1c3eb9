"""Merge the lists of a query's instances (one per product that was found in its picture) into one list per query.

Shape legend beside that of `ranking.py`: I instances, P pairs of an instance and an item on its list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.order import id_ranks, pack, unpack
from retrieval.ranking import NO_ITEM, UNKNOWN_ITEM, Ranking, as_ids, check_ranking

METHODS = ("round_robin", "best", "normalised")


def merge_instances(
    ranking: Ranking,
    owner_I: Sequence[int] | np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    k: int = 100,
    method: str = "round_robin",
) -> Ranking:
    """One list of up to k items per query, each item once.

    * "round_robin": rank 1 of each instance in turn, then rank 2 of each, and so on; who has a turn whose item is taken
      passes. Every product found gets its share, whatever its similarities. The score is minus the turn, counted from
      0 in the query's own m instances: turn = (rank − 1) · m + number of the instance.
    * "best": items by their highest similarity to any instance, equal ones by id. An instance that is similar to much
      can fill the list. The score is that similarity.
    * "normalised": as "best", with each list's similarities made z-scores first, (s − mean) / standard deviation over
      the items that it keeps. A list so counts by how far its items stand out from the rest of it, not by how high its
      level is. Not min-max: that would give the first item of every list the same 1, clear find or not, and hang the
      rest on the one item at the end of the list. A list of one item, or of equal similarities, has no item that stands
      out: all its items get 0, the mean of every list.

    Args:
        ranking: one row per instance, each from `rank` over the whole gallery; its `query_ids` name the instances.
        owner_I: int, the row of `query_ids` that each instance belongs to. The instances of a query take turns in the
            order of their rows (best detection first), which need not stand together.
        query_ids: the queries, each with at least one instance.
        k: ranks to keep. method: one of METHODS.

    Returns: Ranking over the queries with K = min(k, N) columns, ordered by falling score; a query that runs out of
        items ends in NO_ITEM and -inf, as the lists that come in may.

    Raises: RetrievalError on an unknown method, owners that do not fit, a query without an instance, an UNKNOWN_ITEM
        (two of them may be the same item, and then only one may stay), or, except for "round_robin", which reads no
        score, a score that is not finite.

    Source: round robin and best score as in federated search; z-scores: Montague and Aslam, Relevance Score
        Normalization for Metasearch, CIKM 2001 (their ZMUV).
    """
    if method not in METHODS:
        raise RetrievalError(f"unknown merge method {method!r}: choose one of {', '.join(METHODS)}")
    if k < 1:
        raise RetrievalError(f"k must be at least 1; got {k}")
    ranking, query_ids = check_ranking(ranking), as_ids(query_ids)
    owner_I = _check_owners(ranking, owner_I, query_ids)
    there_IK = ranking.index_QK >= 0
    _check_items(ranking, there_IK, scores_needed=method != "round_robin")

    instance_P, place_P = np.nonzero(there_IK)
    item_P, owner_P = ranking.index_QK[there_IK], owner_I[instance_P]
    if method == "round_robin":
        number_I, of_Q = _numbers(owner_I, len(query_ids))
        key_P = place_P * of_Q[owner_P] + number_I[instance_P]
    else:
        score_IK = ranking.score_QK if method == "best" else _standardised(ranking.score_QK, there_IK)
        key_P = pack(score_IK[there_IK], id_ranks(ranking.gallery_ids)[item_P])
    first = _first_of_each(owner_P, item_P, key_P, len(ranking.gallery_ids))
    score_P = -key_P[first].astype(np.float32) if method == "round_robin" else unpack(key_P[first])[0]
    return _lists(query_ids, ranking.gallery_ids, owner_P[first], item_P[first], score_P, k)


def _check_owners(ranking: Ranking, owner_I: Sequence[int] | np.ndarray, query_ids: np.ndarray) -> np.ndarray:
    owner_I = np.asarray(owner_I)
    if owner_I.shape != ranking.query_ids.shape or (owner_I.size and owner_I.dtype.kind not in "iu"):
        raise RetrievalError(
            f"owner_I needs one row of query_ids for each of {len(ranking.query_ids)} instances; got "
            f"{owner_I.dtype} of shape {owner_I.shape}"
        )
    owner_I = owner_I.astype(np.int64)
    strange = np.flatnonzero((owner_I < 0) | (owner_I >= len(query_ids)))
    if strange.size:
        raise RetrievalError(
            f"instance {ranking.query_ids[strange[0]]!s} belongs to query row {owner_I[strange[0]]}, but there are "
            f"{len(query_ids)} queries"
        )
    bare = np.flatnonzero(np.bincount(owner_I, minlength=len(query_ids)) == 0)
    if bare.size:
        raise RetrievalError(
            f"query {query_ids[bare[0]]!s} has no instance ({bare.size} of {len(query_ids)} have none): "
            "let the whole picture be the instance where none is found"
        )
    return owner_I


def _check_items(ranking: Ranking, there_IK: np.ndarray, scores_needed: bool) -> None:
    unknown = np.flatnonzero((ranking.index_QK == UNKNOWN_ITEM).any(1))
    if unknown.size:
        raise RetrievalError(
            f"the list of instance {ranking.query_ids[unknown[0]]!s} holds an item that is not in its gallery: lists "
            "are merged by the identity of their items; rank or read them with the gallery that has them all"
        )
    bad_IK = there_IK & ~np.isfinite(ranking.score_QK)
    if scores_needed and bad_IK.any():
        row, column = np.argwhere(bad_IK)[0]
        raise RetrievalError(
            f"instance {ranking.query_ids[row]!s}: the score at rank {column + 1} is {ranking.score_QK[row, column]}; "
            "lists without scores can only be merged by method 'round_robin'"
        )


def _numbers(owner_I: np.ndarray, num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of each instance within its query, from 0 in row order, and the instances of each query; int64 I and Q."""
    of_Q = np.bincount(owner_I, minlength=num_queries)
    by_owner_I = np.argsort(owner_I, kind="stable")
    number_I = np.empty(len(owner_I), np.int64)
    number_I[by_owner_I] = np.arange(len(owner_I)) - np.repeat(of_Q.cumsum() - of_Q, of_Q)
    return number_I, of_Q


def _standardised(score_IK: np.ndarray, there_IK: np.ndarray) -> np.ndarray:
    """z-scores within each list, float32; computed in float64, so that a level shared by all items cancels."""
    score_IK = np.where(there_IK, score_IK, 0).astype(np.float64)
    length_I1 = np.maximum(there_IK.sum(1, keepdims=True), 1)
    from_mean_IK = np.where(there_IK, score_IK - score_IK.sum(1, keepdims=True) / length_I1, 0)
    deviation_I1 = np.sqrt((from_mean_IK**2).sum(1, keepdims=True) / length_I1)
    highest_I1 = np.where(there_IK, score_IK, -np.inf).max(1, keepdims=True, initial=-np.inf)
    lowest_I1 = np.where(there_IK, score_IK, np.inf).min(1, keepdims=True, initial=np.inf)
    differ_I1 = highest_I1 > lowest_I1  # of equal scores the deviation is rounding noise, not 0
    return np.divide(from_mean_IK, deviation_I1, out=np.zeros_like(from_mean_IK), where=differ_I1).astype(np.float32)


def _first_of_each(owner_P: np.ndarray, item_P: np.ndarray, key_P: np.ndarray, num_items: int) -> np.ndarray:
    """Pairs ordered by owner, then by rising key; of those with the same owner and item the first only."""
    in_order_P = np.lexsort((key_P, owner_P))
    _, first = np.unique(owner_P[in_order_P] * num_items + item_P[in_order_P], return_index=True)
    return in_order_P[np.sort(first)]


def _lists(
    query_ids: np.ndarray, gallery_ids: np.ndarray, owner_P: np.ndarray, item_P: np.ndarray, score_P: np.ndarray, k: int
) -> Ranking:
    """Pairs in order, owner by owner, as rows of a ranking."""
    length_Q = np.bincount(owner_P, minlength=len(query_ids))
    place_P = np.arange(len(owner_P)) - np.repeat(length_Q.cumsum() - length_Q, length_Q)
    kept = min(k, len(gallery_ids))
    index_QK = np.full((len(query_ids), kept), np.int64(NO_ITEM))
    score_QK = np.full((len(query_ids), kept), np.float32(-np.inf))
    fits_P = place_P < kept
    index_QK[owner_P[fits_P], place_P[fits_P]] = item_P[fits_P]
    score_QK[owner_P[fits_P], place_P[fits_P]] = score_P[fits_P]
    return Ranking(query_ids, gallery_ids, index_QK, score_QK)
