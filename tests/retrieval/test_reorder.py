"""Re-ordering the first places of a ranking, beside a slow transcription of what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval import NO_ITEM, Ranking, RetrievalError, rank, reorder_top


def _ranking(queries: int, items: int, k: int, seed: int = 0) -> Ranking:
    draw = np.random.default_rng(seed)
    ids = draw.permutation([f"item{number}" for number in range(items)])  # rows are not in id order
    query_ids = np.array([f"q{number}" for number in range(queries)])
    return rank(draw.random((queries, 5)), draw.random((items, 5)), query_ids, ids, k=k)


@pytest.mark.parametrize("depth", [0, 1, 7, 12])
def test_the_top_is_sorted_by_new_score_then_id_and_the_rest_stays(depth: int) -> None:
    ranking = _ranking(9, 30, 12)
    score_QC = np.random.default_rng(1).integers(-2, 3, (9, depth)).astype(np.float32)  # many ties
    found = reorder_top(ranking, score_QC)
    for row in range(9):
        top = [(score_QC[row, place], ranking.item_ids(row)[place]) for place in range(depth)]
        expected = [item for _, item in sorted(top, key=lambda pair: (-pair[0], pair[1]))]
        assert found.item_ids(row) == expected + ranking.item_ids(row)[depth:]
        assert found.score_QK[row, :depth].tolist() == sorted(score_QC[row].tolist(), reverse=True)
    assert np.isnan(found.score_QK[:, depth:]).all()


def test_an_ended_list_stays_ended() -> None:
    ranking = _ranking(2, 4, 4)
    index_QK = ranking.index_QK.copy()
    index_QK[1, 2:] = NO_ITEM
    score_QC = np.array([[1, 2, 3], [1, 2, np.nan]], np.float32)  # nothing can score what is not there
    found = reorder_top(ranking._replace(index_QK=index_QK), score_QC)
    assert found.index_QK[0].tolist() == [*index_QK[0, [2, 1, 0]], index_QK[0, 3]]
    assert found.index_QK[1].tolist() == [index_QK[1, 1], index_QK[1, 0], NO_ITEM, NO_ITEM]
    assert found.score_QK[1, 2:].tolist() == [-np.inf, -np.inf]


def test_scores_that_order_nothing_are_refused() -> None:
    ranking = _ranking(3, 8, 4)
    score_QC = np.zeros((3, 2))
    score_QC[1, 1] = np.nan
    with pytest.raises(RetrievalError, match=f"query q1 with item {ranking.item_ids(1)[1]} is nan"):
        reorder_top(ranking, score_QC)
    for wrong in (np.zeros((2, 2)), np.zeros((3, 5)), np.zeros(3)):
        with pytest.raises(RetrievalError, match="new scores have shape"):
            reorder_top(ranking, wrong)
