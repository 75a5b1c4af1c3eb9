"""A region set beside a tiny folder, written without a detector. For tests of whatever reads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.manifest import RegionSetEntry
from datamodules.region_set_writer import RegionSetWriter, whole_picture
from datamodules.regions import Regions
from datamodules.shard_reader import read_shard

WIDTH = 6
ABOUT = {"run_id": "detector-tiny-0-12345678", "threshold": 0.05}
Rows = list[tuple[Regions, Regions | None]]


def found_in(item: str, size_px: int = 40, width: int = WIDTH) -> Regions:
    """What "the detector" finds: a function of the id; nothing in one of seven."""
    rng = np.random.default_rng([7, *item.encode()])
    feature_D = rng.normal(size=width).astype(np.float16)
    num = int(rng.integers(0, 7))
    if not num:
        return whole_picture((size_px, size_px), feature_D)
    corners_R22 = rng.uniform(0, size_px - 2, (num, 2, 2)).astype(np.float32)
    boxes_R4 = np.concatenate([corners_R22.min(1), corners_R22.max(1) + 2], 1)
    scores_R = np.sort(rng.uniform(0.06, 1, num).astype(np.float32))[::-1]
    return Regions(boxes_R4, rng.normal(size=(num, width)).astype(np.float16), scores_R, (size_px, size_px))


def true_in(item: str, size_px: int = 40, width: int = WIDTH) -> Regions:
    """Two true boxes of a query."""
    rng = np.random.default_rng([8, *item.encode()])
    boxes_R4 = np.array([[2, 2, 18, 30], [20, 4, 38, 36]], np.float32) * size_px / 40
    return Regions(boxes_R4, rng.normal(size=(2, width)).astype(np.float16), np.ones(2, np.float32), (size_px,) * 2)


def rows_of(folder: Path, split: str, file: str, truth: bool = True) -> Rows:
    """A row for each sample of a shard."""
    ids = [json.loads(sample.members["json"])["id"] for sample in read_shard(folder / file)]
    with_truth = truth and split in ("val", "test")
    return [(found_in(item), true_in(item) if with_truth else None) for item in ids]


def write_set(
    folder: Path,
    name: str = "detected",
    about: dict[str, Any] | None = None,
    change: Callable[[str, Rows], Rows] = lambda split, rows: rows,
) -> RegionSetEntry:
    """Write a whole set; `change` may alter the rows of a shard."""
    writer = RegionSetWriter(folder, name, ABOUT if about is None else about)
    for split, number in writer.pending():
        file = writer.manifest["splits"][split]["shards"][number]["file"]
        writer.write(split, number, change(split, rows_of(folder, split, file)))
    return writer.finish()
