"""Paired bootstrap: deterministic, calibrated, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval import RetrievalError, paired_bootstrap, significance


def test_interval_is_that_of_the_normal_approximation_for_many_queries():
    generator = np.random.default_rng(0)
    a, b = generator.random(4000), generator.random(4000)
    interval = paired_bootstrap(a, b, samples=4000)
    half_width = 1.96 * (a - b).std() / np.sqrt(4000)
    assert interval.mean == pytest.approx((a - b).mean())
    assert interval.low == pytest.approx(interval.mean - half_width, abs=0.06 * half_width)
    assert interval.high == pytest.approx(interval.mean + half_width, abs=0.06 * half_width)


def test_pairing_cancels_how_hard_a_query_is():
    hardness = np.random.default_rng(0).random(300)
    interval = paired_bootstrap(hardness + 0.01, hardness)
    assert interval == pytest.approx((0.01, 0.01, 0.01))
    assert interval.excludes_zero
    assert not paired_bootstrap(hardness, hardness[::-1]).excludes_zero


def test_covers_the_truth_about_as_often_as_promised():
    generator = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        interval = paired_bootstrap(generator.normal(0.3, 1, 80), np.zeros(80), samples=400, seed=trial, confidence=0.8)
        inside += interval.low <= 0.3 <= interval.high
    assert 0.7 < inside / 200 < 0.9


def test_seeds_that_disagree_widen_the_interval():
    generator = np.random.default_rng(0)
    per_query = generator.random(500)
    agreeing = np.stack([per_query] * 3)
    disagreeing = agreeing + np.array([[-0.3], [0.0], [0.3]])
    narrow, wide = (paired_bootstrap(scores, np.zeros(500), samples=3000) for scores in (agreeing, disagreeing))
    single = paired_bootstrap(per_query, np.zeros(500), samples=3000)
    assert narrow.high - narrow.low == pytest.approx(single.high - single.low, rel=0.15)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.mean == pytest.approx(single.mean)


def test_seeds_belong_together_row_by_row():
    a = np.random.default_rng(0).random((3, 50)) + np.array([[0.0], [5.0], [10.0]])
    assert paired_bootstrap(a + 0.1, a) == pytest.approx((0.1, 0.1, 0.1))


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    a = np.random.default_rng(0).random((2, 90))
    first = paired_bootstrap(a, np.zeros(90), samples=500)
    assert first == paired_bootstrap(a, np.zeros(90), samples=500)
    assert first != paired_bootstrap(a, np.zeros(90), samples=500, seed=1)


def test_mistakes_are_named():
    for a, b in ((np.zeros(3), np.zeros(4)), (np.zeros((2, 3)), np.zeros((3, 3))), (np.zeros(0), np.zeros(0))):
        with pytest.raises(RetrievalError, match="same queries and seeds"):
            paired_bootstrap(a, b)
    with pytest.raises(RetrievalError, match="finite"):
        paired_bootstrap(np.array([np.nan, 1]), np.zeros(2))
    with pytest.raises(RetrievalError, match="confidence"):
        paired_bootstrap(np.zeros(2), np.zeros(2), confidence=95)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_draws_that_are_kept_are_those_of_smaller_blocks(num_seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(0).random((2, num_seeds, 50))
    kept = [paired_bootstrap(a, b, samples=200) for _ in range(2)]
    assert kept[0] == kept[1]
    # One seed draws queries alone, so that blocks follow each other in the generator's stream.
    monkeypatch.setattr(significance, "_DRAWS_AT_ONCE", 60 * (50 + num_seeds))
    in_blocks = paired_bootstrap(a, b, samples=200)
    assert in_blocks == kept[0] if num_seeds == 1 else in_blocks == pytest.approx(kept[0], abs=0.02)
    significance._one_block.cache_clear()
