"""Grounds to put products on: plain, gradient, softly textured, table edge. Shared by the renderer and the composer."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from datamodules.catalogues.seeding import flip

Colour = tuple[int, int, int]


def _colour(rng: random.Random) -> Colour:
    """Mostly light, slightly tinted: the ground of a shop photo; now and then a strong one."""
    if flip(rng, 0.2):
        return rng.randint(60, 220), rng.randint(60, 220), rng.randint(60, 220)
    base = rng.randint(205, 250)
    red, green, blue = (max(0, min(255, base + rng.randint(-22, 8))) for _ in range(3))
    return red, green, blue


def _gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    corners = [_colour(rng), _colour(rng)]
    corners += [corners[flip(rng, 0.5)], corners[1]]
    small = Image.new("RGB", (2, 2))
    small.putdata(corners)
    return small.resize(size, Image.Resampling.BILINEAR)


def _texture(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Cloudy paper: coarse noise, enlarged until it is soft."""
    noise = np.random.default_rng(rng.getrandbits(63))
    cells = rng.choice((6, 10, 18))
    grain = noise.normal(0.0, rng.uniform(4, 12), (cells, cells, 1)) + np.asarray(_colour(rng))
    small = Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _table(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, _colour(rng))
    edge = int(size[1] * rng.uniform(0.62, 0.85))
    image.paste(_colour(rng), (0, edge, size[0], size[1]))
    return image


def background(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A ground of `size` (width, height) px, drawn from `rng`."""
    kind = rng.choices(("plain", "gradient", "texture", "table"), (30, 30, 25, 15))[0]
    if kind == "plain":
        return Image.new("RGB", size, _colour(rng))
    if kind == "gradient":
        return _gradient(rng, size)
    return _texture(rng, size) if kind == "texture" else _table(rng, size)
