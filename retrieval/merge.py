"""Merge the lists of disjoint gallery parts, as when each rank of a distributed run ranks its own part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.order import LAST, id_ranks, pack, unpack
from retrieval.ranking import NO_ITEM, Ranking, as_ids, check_ranking, check_unique


def merge_rankings(parts: Sequence[Ranking], gallery_ids: Sequence[str] | np.ndarray, k: int = 100) -> Ranking:
    """Merge top-k lists over disjoint gallery parts into the list over the whole gallery.

    `rank` gives a pair the same score in whatever part and block it stands, so the result equals ranking the
    whole gallery at once, ties included.

    Args:
        parts: one ranking per part, of the same queries in the same order, each of min(k, items of the part) ranks
            or more.
        gallery_ids: all ids, in the row order the result shall point to.
        k: ranks to keep.

    Returns: Ranking with index_QK into gallery_ids, K = min(k, N).

    Raises: RetrievalError when queries differ, parts overlap or do not make up the gallery, or keep too few ranks.
    """
    if not parts:
        raise RetrievalError("no rankings to merge: give one per gallery part")
    parts = [check_ranking(part) for part in parts]
    whole = as_ids(gallery_ids)
    check_unique(whole, "gallery")
    _check_partition(parts, whole, k)
    ranks_N = id_ranks(whole)
    sorted_ids, row_of_rank_N = whole[np.argsort(ranks_N)], np.argsort(ranks_N)

    packed = []
    for part in parts:
        rank_of_row = np.searchsorted(sorted_ids, part.gallery_ids)
        ended_QK = part.index_QK == NO_ITEM
        score_QK = np.where(ended_QK, np.float32(0.0), part.score_QK)
        packed.append(np.where(ended_QK, LAST, pack(score_QK, rank_of_row[np.maximum(part.index_QK, 0)])))
    merged_QK = np.sort(np.concatenate(packed, axis=1), axis=1)[:, : min(k, len(whole))]
    score_QK, rank_QK = unpack(merged_QK)
    index_QK = np.where(rank_QK < 0, np.int64(NO_ITEM), row_of_rank_N[rank_QK])
    return Ranking(parts[0].query_ids, whole, index_QK, score_QK)


def _check_partition(parts: Sequence[Ranking], whole: np.ndarray, k: int) -> None:
    for number, part in enumerate(parts):
        if not np.array_equal(part.query_ids, parts[0].query_ids):
            raise RetrievalError(f"gallery part {number} ranks other queries than part 0, or in another order")
        if part.index_QK.shape[1] < min(k, len(part.gallery_ids)):
            raise RetrievalError(
                f"gallery part {number} keeps {part.index_QK.shape[1]} ranks; merging to k={k} needs as many from each"
            )
        if (part.index_QK < NO_ITEM).any() or np.isnan(part.score_QK).any():
            raise RetrievalError(f"gallery part {number} was read from a file: lists without scores cannot be merged")
    together = np.concatenate([part.gallery_ids for part in parts])
    check_unique(together, "gallery")
    if len(together) != len(whole) or not np.array_equal(np.sort(together), np.sort(whole)):
        strange = sorted(set(together.tolist()) ^ set(whole.tolist()))
        raise RetrievalError(
            f"the parts hold {len(together)} items and the gallery {len(whole)}; first id that is only on one side: "
            f"{strange[0]}"
        )
