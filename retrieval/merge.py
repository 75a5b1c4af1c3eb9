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
    by_id = np.argsort(ranks_N)
    index_parts = []
    for part in parts:
        row_N = by_id[np.searchsorted(whole[by_id], part.gallery_ids)]
        index_parts.append(np.where(part.index_QK == NO_ITEM, NO_ITEM, row_N[np.maximum(part.index_QK, 0)]))
    lists = merge_lists(index_parts, [part.score_QK for part in parts], ranks_N, k)
    return Ranking(parts[0].query_ids, whole, *lists)


def merge_lists(
    index_parts: Sequence[np.ndarray], score_parts: Sequence[np.ndarray], ranks_N: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of several lists for the same queries, over disjoint parts of one gallery.

    Args:
        index_parts: int64 Q x K of each part, rows of the whole gallery, or NO_ITEM where a list has ended.
        score_parts: float32 of the same shapes, as `rank` gives them.
        ranks_N: place of each item of the whole gallery in the order of ids (`id_ranks`).

    Returns: index_QK and score_QK with K = min(k, N), by (-score, id), ended by NO_ITEM and -inf.
    """
    index_QC, score_QC = np.concatenate(index_parts, axis=1), np.concatenate(score_parts, axis=1)
    ended_QC = index_QC == NO_ITEM
    packed_QC = pack(np.where(ended_QC, np.float32(0), score_QC), ranks_N[np.maximum(index_QC, 0)])
    packed_QC[ended_QC] = LAST
    kept = min(k, len(ranks_N))
    score_QK, rank_QK = unpack(np.sort(packed_QC, axis=1)[:, :kept])
    index_QK = np.where(rank_QK < 0, np.int64(NO_ITEM), np.argsort(ranks_N)[rank_QK])
    return index_QK, score_QK


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
