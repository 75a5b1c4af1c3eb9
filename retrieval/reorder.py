"""Put the first items of each list in the order of another score, as a second and dearer look at them gives it."""

from __future__ import annotations

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.order import LAST, id_ranks, pack, unpack
from retrieval.ranking import Ranking


def reorder_top(ranking: Ranking, score_QC: np.ndarray) -> Ranking:
    """The first C items of each list by (-new score, gallery id); those behind them stay where they are.

    Args:
        ranking: from `rank` or `merge_rankings`.
        score_QC: the new score of the item at each of the first C places; ignored where the list has ended.

    Returns: Ranking with the new scores, float32, and nan behind place C, where there are none.

    Raises: RetrievalError on a shape that does not fit, or a new score that is not finite (naming query and item).
    """
    index_QK = ranking.index_QK
    score_QC = np.asarray(score_QC, np.float32)
    if score_QC.ndim != 2 or len(score_QC) != len(index_QK) or score_QC.shape[1] > index_QK.shape[1]:
        raise RetrievalError(
            f"new scores have shape {score_QC.shape}; they need one row per query and no more columns than the "
            f"ranking has places, {index_QK.shape}"
        )
    depth = score_QC.shape[1]
    index_QC = index_QK[:, :depth]
    there_QC = index_QC >= 0
    bad_QC = there_QC & ~np.isfinite(score_QC)
    if bad_QC.any():
        row, column = np.argwhere(bad_QC)[0]
        raise RetrievalError(
            f"the new score of query {ranking.query_ids[row]!s} with item "
            f"{ranking.gallery_ids[index_QC[row, column]]!s} is {score_QC[row, column]}: it must be finite"
        )
    ranks_N = id_ranks(ranking.gallery_ids)
    packed_QC = np.where(there_QC, pack(np.where(there_QC, score_QC, np.float32(0)), ranks_N[index_QC]), LAST)
    new_QC, rank_QC = unpack(np.sort(packed_QC, axis=1))
    row_of_rank_N = np.argsort(ranks_N)
    top_QC = np.where(rank_QC < 0, index_QC, row_of_rank_N[rank_QC])
    behind_QK = np.full(index_QK[:, depth:].shape, np.nan, np.float32)
    behind_QK[index_QK[:, depth:] < 0] = -np.inf
    return ranking._replace(
        index_QK=np.concatenate([top_QC, index_QK[:, depth:]], axis=1),
        score_QK=np.concatenate([new_QC, behind_QK], axis=1),
    )
