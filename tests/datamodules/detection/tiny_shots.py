"""A catalogue of product shots small enough to build in a test: a coloured block on a clear ground, or a scene."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datamodules.catalogues.record import Kind, ProductRecord, Split

Box = tuple[int, int, int, int]


def shot(seed: int, size_px: tuple[int, int] = (64, 64)) -> tuple[Image.Image, Box]:
    """A block somewhere in the middle of a graded ground, and its box."""
    rng = np.random.default_rng(seed)
    light = (rng.integers(185, 235, 3) + rng.integers(-15, 16, (2, 2, 3))).astype(np.uint8)
    picture = Image.fromarray(light).resize(size_px, Image.Resampling.BILINEAR)
    width, height = size_px
    x1, y1 = int(rng.integers(width // 8, width // 3)), int(rng.integers(height // 8, height // 3))
    x2, y2 = int(rng.integers(width * 3 // 5, width * 7 // 8)), int(rng.integers(height * 3 // 5, height * 7 // 8))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=tuple(int(value) for value in rng.integers(0, 110, 3)))
    draw.line((x1 + 4, y1 + 4, x2 - 5, y2 - 5), fill=(240, 230, 40), width=3)  # so that a mirrored one differs
    return picture, (x1, y1, x2, y2)


def scene(seed: int, size_px: tuple[int, int] = (64, 64)) -> Image.Image:
    """A busy picture without any ground."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize(size_px, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    return out.getvalue()


class ShotCatalogue(NamedTuple):
    """`counts` samples per split; every other training sample shows several products and is to be left alone.

    `boxes` maps an id to what its record says of boxes instead of the truth.
    """

    counts: dict[str, int]
    kind: Kind = "single"  # of the single-product shots of train
    scenes: bool = False  # whether the photos have no ground
    word: str = "label"  # what labels are made of
    boxes: dict[str, Any] = {}  # noqa: RUF012 - never written to
    name: str = "shots"

    def plan(self, split: Split) -> Sequence[int]:
        return range(self.counts.get(split, 0))

    def settings(self) -> dict[str, Any]:
        return {"counts": self.counts, "kind": self.kind, "scenes": self.scenes, "boxes": repr(self.boxes)}

    def make(self, split: Split, item: int) -> ProductRecord:
        number = item + 10_000 * ("train", "val", "test", "gallery").index(split)
        picture, box = shot(number, (80, 56) if split == "val" else (64, 64))
        if self.scenes:
            picture = scene(number)
        several = split in ("val", "test") or (split == "train" and item % 2 == 1)
        item_id = f"{split}.{item}"
        boxes: Any = self.boxes.get(item_id, (box,))
        return ProductRecord(
            id=item_id,
            image=encoded(picture),
            caption=f"block number {item}",
            labels=(f"{self.word} {item % 3}",),
            kind=("multi" if self.kind == "single" else self.kind)
            if several
            else ("single" if split == "gallery" else self.kind),
            source=f"shots/{split}/{item}",
            boxes=boxes,
        )
