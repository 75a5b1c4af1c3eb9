"""A shop of colours: gallery items of one colour, queries of several squares on white whose boxes are known.

Also as a detector sees it: one region per square, whose feature is its colour. Importable by spawned workers.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datamodules.catalogues.record import ProductRecord, Split
from datamodules.regions import Regions

COLOURS = ((220, 30, 30), (30, 180, 30), (30, 30, 220), (220, 200, 30), (200, 30, 200), (30, 200, 200))
SIDE_PX = 120  # of a query's picture
PLACES = ((4, 6, 44, 46), (64, 10, 112, 58), (8, 66, 48, 106), (66, 70, 106, 110))  # px


class ColouredSquares(NamedTuple):
    """Queries show 2 or 3 colours; every `bare`-th query (0: none) shows one and its box is not known."""

    queries: int = 12
    items: int = 18
    bare: int = 0
    name: str = "squares"

    def plan(self, split: Split) -> Sequence[int]:
        return range({"train": 24, "gallery": self.items}.get(split, self.queries))

    def settings(self) -> dict[str, Any]:
        return {"queries": self.queries, "items": self.items, "bare": self.bare}

    def colours(self, split: Split, item: int) -> list[int]:
        """Which colours a picture shows."""
        if split == "gallery":
            return [item % len(COLOURS)]
        rng = np.random.default_rng([len(split), ord(split[0]), item])
        number = 1 if self._is_bare(split, item) else 2 + item % 2
        return [int(colour) for colour in rng.permutation(len(COLOURS))[:number]]

    def _is_bare(self, split: Split, item: int) -> bool:
        return split in ("val", "test") and bool(self.bare) and item % self.bare == 0

    def make(self, split: Split, item: int) -> ProductRecord:
        shown = self.colours(split, item)
        shift = ("train", "val", "test", "gallery").index(split) * 1000 + item
        canvas = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
        for colour, (x1, y1, x2, y2) in zip(shown, PLACES, strict=False):
            canvas[y1:y2, x1:x2] = COLOURS[colour]
        # Near-duplicates are left out when a folder is built: a stripe of its own makes each picture differ.
        stripe = np.random.default_rng(shift).integers(200, 256, (SIDE_PX,), np.uint8)
        canvas[-8:, :, :] = stripe[None, :, None]
        buffer = io.BytesIO()
        Image.fromarray(canvas).save(buffer, "PNG")
        known = split in ("val", "test") and not self._is_bare(split, item)
        return ProductRecord(
            id=f"{split}{item:03d}",
            image=buffer.getvalue(),
            caption=f"something of colour number {item}",
            labels=tuple(f"colour {colour}" for colour in shown),
            kind="single" if len(shown) == 1 else "multi",
            source="drawn",
            boxes=tuple(tuple(float(v) for v in box) for box in PLACES[: len(shown)]) if known else None,
        )


def squares_regions(record: ProductRecord) -> Regions:
    """One region per square with its colour as feature, the last one surest, and a weak one over the whole picture."""
    colours = [int(label.split()[1]) for label in record.labels]
    boxes = [*PLACES[: len(colours)], (0, 0, SIDE_PX, SIDE_PX)]
    features = np.zeros((len(boxes), len(COLOURS)), np.float16)
    features[np.arange(len(colours)), colours] = 1
    features[-1] = features[:-1].mean(0)
    scores = [0.6 + 0.1 * number for number in range(len(colours))] + [0.1]
    return Regions(np.array(boxes, np.float32), features, np.array(scores, np.float32), (SIDE_PX, SIDE_PX))
