"""The bench of instances runs, and what it times is what it says."""

from __future__ import annotations

from experiments.bench import BENCHES
from experiments.bench_instances import Detector, bench_instances
from tests.lightning_modules.tiny_models import tiny_capture


def test_every_part_is_measured() -> None:
    small = Detector(
        "small", 2, {"network": "light", "image_size_px": 64, "rois": 16, "proposals": 20, "num_regions": 8}
    )
    rows = bench_instances((small,), tiny_capture(), queries=4)
    assert BENCHES["instances"] == ("experiments.bench_instances", "bench_instances")
    assert [row["what"].partition(":")[0] for row in rows] == [
        *("proposals and features", "CAPTURE", "CAPTURE", "CAPTURE", "reading", "reading"),
    ]
    assert all(row["value"] > 0 for row in rows)
    assert rows[3]["ratio"] == 1.0
