"""Grounds to paste products on: plain, graded, cloudy, striped, parted, or a blurred piece of another photo."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]

KINDS = {"plain": 24, "graded": 20, "cloudy": 20, "parted": 12, "striped": 8, "photo": 16}  # weights, ours
_BICUBIC, _BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR


def ground(rng: Random, size: tuple[int, int], photos: Sequence[np.ndarray]) -> Image.Image:
    """A ground without products.

    Args:
        size: width and height in px.
        photos: RGB or RGBA uint8 arrays to take photographic grounds from; may be empty.
    """
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    if kind == "photo" and photos:
        return _photo(rng, size, photos[rng.randrange(len(photos))])
    if kind == "graded":
        return _graded(rng, size)
    if kind == "cloudy":
        return _cloudy(rng, size)
    if kind == "parted":
        return _parted(rng, size)
    if kind == "striped":
        return _striped(rng, size)
    return Image.new("RGB", size, colour(rng))


def colour(rng: Random) -> Colour:
    """White or nearly white, a pale tint, a strong colour or a dark one, as shop pictures have them."""
    draw = rng.random()
    if draw < 0.12:
        return 255, 255, 255
    if draw < 0.55:
        light = rng.randint(195, 255)
        return tuple(max(0, light - rng.randint(0, 35)) for _ in range(3))  # type: ignore[return-value]
    if draw < 0.9:
        return rng.randint(20, 255), rng.randint(20, 255), rng.randint(20, 255)
    return rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 70)


def near(rng: Random, base: Colour, most: int) -> Colour:
    """A colour a little off another."""
    return tuple(min(255, max(0, value + rng.randint(-most, most))) for value in base)  # type: ignore[return-value]


def _graded(rng: Random, size: tuple[int, int]) -> Image.Image:
    first = colour(rng)
    second = colour(rng) if rng.random() < 0.5 else near(rng, first, 50)
    cells = rng.choice(((2, 1), (1, 2), (2, 2), (3, 3)))
    small = Image.new("RGB", cells)
    small.putdata([first if rng.random() < 0.5 else second for _ in range(cells[0] * cells[1])])
    small.putpixel((0, 0), first)
    small.putpixel((cells[0] - 1, cells[1] - 1), second)
    return small.resize(size, rng.choice((_BILINEAR, _BICUBIC)))


def _cloudy(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Soft grain at one or two scales."""
    noise = np.random.default_rng(rng.getrandbits(63))
    cells = rng.randint(3, 24)
    channels = 3 if rng.random() < 0.25 else 1
    grain = noise.normal(0.0, rng.uniform(3, 22), (cells, cells, channels)) + np.array(colour(rng))
    return Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).resize(size, _BICUBIC)


def _parted(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Two areas: the edge of a table, a wall, a page cut in two, perhaps aslant."""
    image = Image.new("RGB", size, colour(rng)) if rng.random() < 0.6 else _graded(rng, size)
    width, height = size
    draw = ImageDraw.Draw(image)
    second = colour(rng)
    if rng.random() < 0.65:
        left, right = (height * rng.uniform(0.45, 0.9) for _ in range(2))
        if rng.random() < 0.7:
            right = left
        draw.polygon(((0, left), (width, right), (width, height), (0, height)), fill=second)
    else:
        upper, lower = (width * rng.uniform(0.2, 0.8) for _ in range(2))
        draw.polygon(((upper, 0), (width, 0), (width, height), (lower, height)), fill=second)
    return image


def _striped(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Stripes or checks of two colours, often hardly different."""
    first = colour(rng)
    second = near(rng, first, 25) if rng.random() < 0.7 else colour(rng)
    step = rng.uniform(0.04, 0.2) * max(size)
    y_H1, x_1W = np.ogrid[: size[1], : size[0]]
    slope = rng.choice((0.0, 0.0, 1.0, -1.0, 0.5))
    phase_HW = np.floor((x_1W + slope * y_H1) / step) if rng.random() < 0.5 else np.floor((y_H1 + slope * x_1W) / step)
    if rng.random() < 0.25:
        phase_HW = np.floor(x_1W / step) + np.floor(y_H1 / step)
    palette = np.array((first, second), np.uint8)
    return Image.fromarray(palette[(phase_HW + np.zeros(size[::-1])).astype(np.int64) % 2])


def _photo(rng: Random, size: tuple[int, int], photo_HWC: np.ndarray) -> Image.Image:
    """A small piece of a photo, enlarged and blurred until what it shows is no product any more."""
    height, width = photo_HWC.shape[:2]
    side = max(4, int(min(height, width) * rng.uniform(0.2, 0.6)))
    left, top = rng.randint(0, width - side), rng.randint(0, height - side)
    piece = Image.fromarray(np.ascontiguousarray(photo_HWC[top : top + side, left : left + side, :3]))
    coarse = rng.randint(3, 8)
    return piece.resize((coarse, coarse), Image.Resampling.BOX).resize(size, _BICUBIC)


def soften(rng: Random, image: Image.Image) -> Image.Image:
    """Now and then out of focus."""
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 2.5))) if rng.random() < 0.15 else image
