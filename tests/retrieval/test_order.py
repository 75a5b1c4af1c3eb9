"""The packed sort key holds score and id and sorts as (-score, id)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrieval.order import LAST, id_ranks, pack, unpack

SCORES = st.floats(width=32, allow_nan=False)


@given(items=st.lists(st.tuples(SCORES, st.integers(0, 2**31)), min_size=1))
def test_sorts_as_score_then_rank_and_gives_both_back(items):
    score, rank = np.array([s for s, _ in items], np.float32), np.array([r for _, r in items])
    sorted_score, sorted_rank = unpack(np.sort(pack(score, rank)))
    expected = sorted(items, key=lambda item: (-item[0], item[1]))
    assert sorted_score.tolist() == [s for s, _ in expected]
    assert sorted_rank.tolist() == [r for _, r in expected]
    assert (pack(score, rank) < LAST).all()


def test_no_item_unpacks_to_no_score_and_no_rank():
    score, rank = unpack(np.array([LAST]))
    assert np.isneginf(score).all()
    assert rank.tolist() == [-1]


@given(ids=st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1), min_size=1, unique=True))
def test_id_order_is_by_code_point(ids):
    ranks = id_ranks(np.array(ids))
    assert [ids[row] for row in np.argsort(ranks)] == sorted(ids)
