"""The tables a run ends with: queries read at several levels have one of their own."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import scoreboard
from retrieval.significance import paired_bootstrap


def scores(*prefixes: str) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {f"{prefix}{column}": draw.random(20) for prefix in prefixes for column in scoreboard.LEVEL_COLUMNS}


def record_of(per_query: dict[str, np.ndarray], level: str = "detected") -> dict:
    levels = [f"{name}/" for name in scoreboard.LEVELS]
    found = scoreboard.intervals(per_query)
    found |= scoreboard.intervals(per_query, scoreboard.LEVEL_COLUMNS, prefixes=levels)
    instances = {"detected": {"rows": 83, "mean": 4.15, "without": 3}, "true": {"rows": 90, "mean": 4.5, "without": 0}}
    return {
        **{"run_id": "capture-tiny-0-0", "level": level, "features": {"product": "co", "whole": "co", "true": "both"}},
        **{"test": {key: float(score.mean()) for key, score in per_query.items()}, "intervals": {"test": found}},
        **{"instances": {"test": instances}, "unscorable": 0},
    }


def test_levels_have_intervals_in_coverage_too() -> None:
    per_query = scores("", "whole/", "true/", "image/")
    found = record_of(per_query)["intervals"]["test"]
    assert set(found) == {"whole", "true", "image"}
    assert set(found["whole"]) == set(found["true"]) == {"mAP@10", "mAR@10", "coverage@10"}
    assert set(found["image"]) == {"mAP@10", "mAR@10"}
    expected = paired_bootstrap(per_query["coverage@10"], per_query["whole/coverage@10"])
    assert found["whole"]["coverage@10"] == [float(value) for value in expected]


def test_levels_stand_in_a_table_of_their_own() -> None:
    record = record_of(scores("", "whole/", "true/", "image/"))
    first, second = scoreboard.render(record).split("queries read as one and by instance")
    assert "image only" in first
    assert "whole" not in first
    assert "80 detected boxes, 4.2 rows a query, 3 queries without one are read whole; 90 true boxes" in second
    lines = second.splitlines()
    assert all(len(line) <= 118 for line in lines)
    rows = (("detected boxes (product)", "co", ""), ("whole picture", "co", "whole/"), ("true boxes", "both", "true/"))
    for row, feature, prefix in rows:
        (number,) = [n for n, line in enumerate(lines) if row in line and "│" in line]
        assert f"│ {feature} " in lines[number + 1]
        for column in scoreboard.LEVEL_COLUMNS:
            assert f"{record['test'][prefix + column]:.4f}" in lines[number]
            if prefix:
                interval = record["intervals"]["test"][prefix.rstrip("/")][column]
                assert "{:+.3f}  [{:+.3f}, {:+.3f}]".format(*interval) in lines[number + 1]


@pytest.mark.parametrize("level", ["whole", None])
def test_a_run_whose_queries_were_read_whole_has_no_such_table(level: str | None) -> None:
    record = record_of(scores("", "image/"))
    del record["instances"]
    record |= {"level": level} if level else {}
    if level is None:  # recorded before there were levels
        del record["level"]
    assert "by instance" not in scoreboard.render(record)


def test_the_whole_picture_may_be_the_product() -> None:
    record = record_of(scores("", "detected/", "true/"), level="whole")
    assert list(scoreboard.level_rows(record, "test")) == ["whole picture", "detected boxes", "true boxes"]
    assert "whole picture (product)" in scoreboard.render(record)
