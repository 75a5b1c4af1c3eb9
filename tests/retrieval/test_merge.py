"""Merging the lists of gallery parts equals ranking the whole gallery."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import Ranking, RetrievalError, merge_rankings, rank


@given(
    seed=st.integers(0, 2**32 - 1),
    num_items=st.integers(1, 60),
    num_parts=st.integers(1, 5),
    k=st.integers(1, 70),
    levels=st.sampled_from([1, 3, 0]),
    exclude_self=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_partition_gives_the_list_over_the_whole(seed, num_items, num_parts, k, levels, exclude_self):
    generator = np.random.default_rng(seed)
    ids = np.array([f"item{i}" for i in generator.permutation(num_items)])
    if levels:  # few distinct values: nearly everything ties
        rows = generator.integers(0, levels, (num_items, 3)).astype(np.float32)
    else:  # one direction and its rounding noise
        rows = np.float32(1 / 3) + generator.standard_normal((num_items, 3)).astype(np.float32) * np.float32(1e-7)
    query_QD, query_ids = rows[:4], ids[:4]
    whole = rank(query_QD, rows, query_ids, ids, k=k, exclude_self=exclude_self)

    part_of = generator.integers(0, num_parts, num_items)
    parts = [
        rank(query_QD, rows[part_of == part], query_ids, ids[part_of == part], k=k, exclude_self=exclude_self)
        for part in np.unique(part_of)
    ]
    merged = merge_rankings(parts[::-1], ids, k)
    assert (merged.index_QK == whole.index_QK).all()
    assert (merged.score_QK == whole.score_QK).all()
    assert merged.gallery_ids.tolist() == ids.tolist()


def part(ids, queries=("q",), k=2):
    index = np.tile(np.arange(min(k, len(ids))), (len(queries), 1))
    return Ranking(np.array(queries), np.array(ids), index, np.zeros(index.shape, np.float32))


def test_mistakes_are_named():
    with pytest.raises(RetrievalError, match="no rankings"):
        merge_rankings([], ["a"], 2)
    with pytest.raises(RetrievalError, match="part 1 ranks other queries"):
        merge_rankings([part(["a"]), part(["b"], queries=("p",))], ["a", "b"], 2)
    with pytest.raises(RetrievalError, match="duplicate gallery id a"):
        merge_rankings([part(["a"]), part(["a", "b"])], ["a", "b"], 2)
    with pytest.raises(RetrievalError, match="only on one side: c"):
        merge_rankings([part(["a"]), part(["b"])], ["a", "b", "c"], 2)
    with pytest.raises(RetrievalError, match="part 0 keeps 2 ranks"):
        merge_rankings([part(["a", "b", "c"]), part(["d"])], ["a", "b", "c", "d"], 3)
    unscored = part(["a"])._replace(score_QK=np.array([[np.nan]], np.float32))
    with pytest.raises(RetrievalError, match="part 0 was read from a file"):
        merge_rankings([unscored], ["a"], 2)
