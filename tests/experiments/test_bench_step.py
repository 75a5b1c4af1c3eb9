"""The step bench runs and counts; that its plain implementation computes the same is tested with the model."""

from __future__ import annotations

import pytest

from experiments.bench_step import OURS, PLAIN, Turn, _row, compare

SMALL = {
    **{"width": 32, "output_width": 16, "vocab_size": 200, "region_width": 24, "text_layers": 1, "image_layers": 1},
    **{"cross_layers": 1, "co_layers": 1, "text_heads": 4, "image_heads": 4, "cross_heads": 4, "cross_width": 16},
    **{"co_heads": 4},
}


def test_a_row_is_paired_by_turn() -> None:
    """The machine gets slower from turn to turn; the ratio does not."""
    base = [Turn(seconds, 64 / seconds, 10.0, 1.0, 100.0, 7) for seconds in (1.0, 2.0, 4.0)]
    twice = [Turn(seconds, 64 / seconds, 10.0, 1.0, 90.0, 7) for seconds in (0.5, 1.0, 2.0)]
    row = _row(OURS, twice, base, rate=1280.0)
    assert row["speedup"] == pytest.approx(2)
    assert row["samples_per_s"] == pytest.approx(128)
    assert row["mfu"] == pytest.approx(128 * 1.0 / 1280)
    assert (row["peak_mb"], row["parameters"]) == (90, 7)
    assert _row(OURS, [None, None, None], base, rate=0.0) == {"name": OURS.name, "note": "does not fit"}


@pytest.mark.slow
def test_variants_are_measured_side_by_side() -> None:
    small = [variant._replace(batch_size=4, arguments=tuple(SMALL.items())) for variant in (PLAIN, OURS)]
    plain, ours = compare(small, rounds=2)
    assert (plain["name"], plain["speedup"]) == ("plain, fp32", 1.0)
    for row in (plain, ours):
        assert row["samples_per_s"] == pytest.approx(4 / row["step_s"])
        assert 0 < row["mfu"] < 1.5
        assert row["peak_mb"] > 100
