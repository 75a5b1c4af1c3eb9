"""False negatives of a batch against counting them in every batch there is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import false_negatives_per_batch


@given(
    st.lists(st.lists(st.sampled_from("abcd"), max_size=3), min_size=2, max_size=6),
    st.integers(min_value=2, max_value=4),
)
def test_it_is_the_mean_over_all_batches(labels: list[list[str]], batch_size: int) -> None:
    batch_size = min(batch_size, len(labels))
    counts = [
        sum(bool(set(a) & set(b)) for i, a in enumerate(batch) for j, b in enumerate(batch) if i != j)
        for batch in combinations(labels, batch_size)
    ]
    assert false_negatives_per_batch(labels, batch_size) == pytest.approx(sum(counts) / len(counts))


def test_without_labels_or_company_there_are_none() -> None:
    assert false_negatives_per_batch([["a"]], 8) == 0
    assert false_negatives_per_batch([[], []], 8) == 0
    assert false_negatives_per_batch([], 8) == 0
