"""A catalogue of coloured squares, small enough to build in every test. Importable by spawned workers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datamodules.catalogues.record import ProductRecord, Skipped, Split
from datamodules.regions import Regions


def picture(seed: int, size_px: tuple[int, int] = (40, 40), codec: str = "JPEG") -> bytes:
    """A smooth random pattern, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8).astype(np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size_px, Image.Resampling.BICUBIC).save(buffer, codec)
    return buffer.getvalue()


class TinyCatalogue(NamedTuple):
    """`counts` samples per split; `faults` maps an id to what is wrong with it."""

    counts: dict[str, int]
    faults: dict[str, str] = {}  # noqa: RUF012 - never written to
    labels: int = 5
    size_px: int = 40
    name: str = "tiny"

    def plan(self, split: Split) -> Sequence[int]:
        return range(self.counts.get(split, 0))

    def settings(self) -> dict[str, Any]:
        return {"counts": self.counts, "faults": self.faults, "labels": self.labels, "size_px": self.size_px}

    def make(self, split: Split, item: int) -> ProductRecord | Skipped:
        number = item + 100_000 * ("train", "val", "test", "gallery").index(split)
        record = ProductRecord(
            id=f"{split}.{item}",  # a dot, which webdataset would take for the start of a suffix
            image=picture(number, (self.size_px, self.size_px)),
            caption=f"品牌{item % self.labels} series{item % 3} 口红 lipstick number {item}",
            labels=(f"label {item % self.labels}",),
            kind="single" if split == "gallery" else "multi",
            source=f"tiny/{split}/{item}",
        )
        fault = self.faults.get(record.id, "")
        if fault == "skipped":
            return Skipped(record.id, "missing_picture")
        if fault == "picture":
            return record._replace(image=record.image[: len(record.image) // 2])
        if fault == "caption":
            return record._replace(caption=" \n ")
        if fault == "label":
            return record._replace(labels=("label 0", "label nobody sells"))
        if fault.startswith("id:"):
            return record._replace(id=fault[3:])
        if fault.startswith("image of:"):
            return record._replace(image=picture(int(fault[9:]), (self.size_px, self.size_px)))
        return record


def tiny_regions(record: ProductRecord) -> Regions:
    """Three boxes with features 8 wide, a function of the id."""
    rng = np.random.default_rng(list(record.id.encode()))
    boxes = np.array([[0, 0, 20, 20], [10, 10, 40, 30], [5, 0, 15, 40]], np.float32)
    return Regions(boxes, rng.normal(size=(3, 8)).astype(np.float16), np.ones(3, np.float32), (40, 40))


def tiny_scored_regions(record: ProductRecord) -> Regions:
    """The same with probabilities of six classes, one of which the detector left out."""
    rng = np.random.default_rng([1, *record.id.encode()])
    return tiny_regions(record)._replace(class_scores_RC=rng.dirichlet(np.ones(7), 3)[:, 1:].astype(np.float16))
