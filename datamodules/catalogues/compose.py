"""Pastes single-product photos on one canvas: multi-product pictures from any single-product source."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence

from PIL import Image

from datamodules.catalogues.backgrounds import background
from datamodules.catalogues.cutout import cut_out, tile
from datamodules.catalogues.placement import Slot, place
from datamodules.errors import DataError

Box = tuple[float, float, float, float]

JPEG_QUALITY = 90
NUM_PRODUCTS_WEIGHTS = {2: 45, 3: 30, 4: 17, 5: 8}
MAX_TURN_DEGREES = 8.0


def check_composites(counts: Mapping[str, int], image_size_px: int) -> None:
    """Refuse numbers of composites below 0 and picture sizes outside 32 to 2048 px.

    Raises:
        DataError: naming the setting.
    """
    for key, count in counts.items():
        if count < 0:
            raise DataError(f"{key} is {count}; give 0 or more pictures")
    if not 32 <= image_size_px <= 2048:
        raise DataError(f"image_size_px is {image_size_px}; composites may be 32 to 2048 px")


def draw_number(rng: random.Random, most: int = 5) -> int:
    """How many products a composite shows: 2 to 5, fewer more often."""
    number = rng.choices(tuple(NUM_PRODUCTS_WEIGHTS), tuple(NUM_PRODUCTS_WEIGHTS.values()))[0]
    return min(number, max(2, most))


def _sprite(rng: random.Random, photo: Image.Image, slot: Slot) -> Image.Image:
    """The product, turned a little and fitted into its slot."""
    room = (slot[2] - slot[0], slot[3] - slot[1])
    cut = cut_out(photo)
    sprite = cut if cut is not None else tile(rng, photo, room)
    turn = rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES) * (1.0 if cut is not None else 0.5)
    cosine, sine = math.cos(math.radians(turn)), abs(math.sin(math.radians(turn)))
    wide, high = sprite.width * cosine + sprite.height * sine, sprite.height * cosine + sprite.width * sine
    scale = rng.uniform(0.88, 1.0) * min(room[0] / wide, room[1] / high)
    size = (max(2, int(sprite.width * scale)), max(2, int(sprite.height * scale)))
    # Shrunk before it is turned: a third of the time.
    return sprite.resize(size, Image.Resampling.BICUBIC).rotate(turn, Image.Resampling.BICUBIC, expand=True)


def compose(rng: random.Random, photos: Sequence[Image.Image], size_px: int) -> tuple[bytes, tuple[Box, ...]]:
    """One picture of 1 to 5 products; later ones may cover a little of earlier ones.

    Args:
        rng: decides ground, places, sizes and angles.
        photos: RGB, one product each.
        size_px: side of the square canvas.

    Returns:
        JPEG bytes and one box per photo (px, x1 y1 x2 y2, inside the canvas), in the order of `photos`.
    """
    canvas = background(rng, (size_px, size_px))
    boxes = []
    for photo, slot in zip(photos, place(rng, len(photos), canvas.size), strict=True):
        sprite = _sprite(rng, photo, slot)
        x = round(slot[0] + rng.uniform(0.2, 0.8) * (slot[2] - slot[0] - sprite.width))
        y = round(slot[1] + rng.uniform(0.2, 0.8) * (slot[3] - slot[1] - sprite.height))
        alpha = sprite.getchannel("A")
        canvas.paste(sprite, (x, y), alpha)
        left, top, right, bottom = alpha.point(lambda value: 255 * (value > 127)).getbbox() or (0, 0, *sprite.size)
        boxes.append(
            (float(max(0, x + left)), float(max(0, y + top)),
             float(min(size_px, x + right)), float(min(size_px, y + bottom)))
        )  # fmt: skip
    out = io.BytesIO()
    canvas.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), tuple(boxes)
