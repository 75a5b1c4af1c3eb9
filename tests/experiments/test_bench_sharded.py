"""The search over ranks by real processes: what one process finds, at any number of them and at Product1M's size."""

from __future__ import annotations

import pytest

from experiments.bench_sharded import bench_sharded


@pytest.mark.slow
def test_processes_find_what_one_finds_and_hold_their_part() -> None:
    rows = bench_sharded(num_queries=150, num_items=1_000, width=32, num_labels=100, worlds=(1, 2, 3))
    assert [row["name"] for row in rows] == ["1 process", "2 processes", "3 processes"]
    assert [row["same"] for row in rows] == ["True"] * 3
    assert 0 < rows[0]["mAP@10"] < 1
    held = [row["gallery_mb"] for row in rows]
    assert held[0] / 2 <= held[1] < 0.6 * held[0]  # batches of 64 of 1,000
    assert held[0] / 3 <= held[2] < 0.45 * held[0]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_product1m_by_instance_on_two_processes_is_that_of_one() -> None:
    one, two = bench_sharded()
    assert two["same"] == "True"
    assert two["gallery_mb"] < 0.51 * one["gallery_mb"]
