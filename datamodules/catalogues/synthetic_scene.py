"""Puts pack shots into a picture: view, light, shadow, ground, badges."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from datamodules.catalogues.backgrounds import background
from datamodules.catalogues.placement import place
from datamodules.catalogues.seeding import flip
from datamodules.catalogues.synthetic_packs import lettering, pack_shot
from datamodules.catalogues.synthetic_shop import Product

Box = tuple[float, float, float, float]

JPEG_QUALITY = 90
OUTLINE_PX = 64  # a small pack shot, to know how wide and high a product is
SHADOW_PAD_PX = 8  # room for the soft edge
BADGE_PROB = 0.35
BADGES = ("SALE", "NEW", "HOT", "-30%", "-50%", "59.-", "99.-", "129.-", "2 for 1", "TOP 1")
BADGE_COLOURS = ((222, 30, 40), (250, 196, 20), (20, 20, 20), (240, 90, 30), (40, 140, 70))


def _perspective(target: list[tuple[float, float]], size: tuple[int, int]) -> list[float]:
    """The eight coefficients Pillow wants: from output pixels back to the corners of a source of `size`."""
    width, height = size
    source = ((0, 0), (width, 0), (width, height), (0, height))
    rows, right = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return [float(value) for value in np.linalg.solve(np.asarray(rows), np.asarray(right))]


def _view(rng: random.Random, product: Product, size: tuple[float, float], most_tilt: float) -> Image.Image:
    """The pack turned and seen slightly from the side, fitted into `size` (width, height) px."""
    outline = pack_shot(product, OUTLINE_PX)
    enlarge = min(size[0] / outline.width, size[1] / outline.height)
    # Drawn near its final size, in few steps: a perspective transform does not filter when it shrinks.
    shot = pack_shot(product, max(16, 16 * round(OUTLINE_PX * enlarge / 16)))
    angle = math.radians(rng.gauss(0, most_tilt / 2))
    corners = []
    for x, y in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)):
        x, y = (x + rng.uniform(-0.05, 0.05)) * shot.width, (y + rng.uniform(-0.05, 0.05)) * shot.height
        corners.append((x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)))
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    wide, high = max(x for x, _ in corners) - left, max(y for _, y in corners) - top
    scale = min(size[0] / wide, size[1] / high)
    corners = [((x - left) * scale, (y - top) * scale) for x, y in corners]
    out = (max(2, round(wide * scale)), max(2, round(high * scale)))
    coefficients = _perspective(corners, shot.size)
    return shot.transform(out, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)


def _paste(canvas: Image.Image, sprite: Image.Image, position: tuple[int, int], shadow: tuple[int, int] | None) -> Box:
    """Pastes with an optional soft shadow; returns the box of what is visible of the sprite, clipped to the canvas."""
    alpha = sprite.getchannel("A")
    if shadow is not None:
        padded = ImageOps.expand(alpha, SHADOW_PAD_PX)
        coarse = padded.reduce(4).filter(ImageFilter.BoxBlur(1)).point(lambda value: value * 2 // 5)
        corner = (position[0] + shadow[0] - SHADOW_PAD_PX, position[1] + shadow[1] - SHADOW_PAD_PX)
        canvas.paste((30, 26, 24), corner, coarse.resize(padded.size, Image.Resampling.BILINEAR))
    canvas.paste(sprite, position, alpha)
    left, top, right, bottom = alpha.point(lambda value: 255 * (value > 127)).getbbox() or (0, 0, *sprite.size)
    x, y = position
    return (
        float(max(0, x + left)), float(max(0, y + top)),
        float(min(canvas.width, x + right)), float(min(canvas.height, y + bottom)),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _badge(text: str, colour: tuple[int, int, int], size_px: int, is_round: bool) -> Image.Image:
    badge = Image.new("RGBA", (size_px, size_px if is_round else size_px // 2), (0, 0, 0, 0))
    draw = ImageDraw.Draw(badge)
    area = (0, 0, badge.width - 1, badge.height - 1)
    draw.ellipse(area, fill=colour) if is_round else draw.rectangle(area, fill=colour)
    font = lettering(int(0.8 * size_px / (0.62 * max(3, len(text)))))
    ink = (20, 20, 20) if sum(colour) > 420 else (255, 255, 255)
    draw.text((badge.width / 2, badge.height / 2), text, fill=ink, font=font, anchor="mm")
    return badge


def _stick_badge(rng: random.Random, canvas: Image.Image) -> None:
    """A sticker in one of the corners, as sellers print them over their pictures."""
    size_px = max(8, round(min(canvas.size) * rng.choice((0.18, 0.22, 0.26))))
    badge = _badge(rng.choice(BADGES), rng.choice(BADGE_COLOURS), size_px, flip(rng, 0.5))
    x = rng.choice((0, canvas.width - badge.width))
    y = rng.choice((0, canvas.height - badge.height))
    canvas.paste(badge, (x, y), badge)


def _light(rng: random.Random, canvas: Image.Image) -> Image.Image:
    """Exposure and a warm or cold cast, as one lookup table."""
    gain, warmth = rng.uniform(0.86, 1.08), rng.uniform(-0.05, 0.05)
    table: list[int] = []
    for channel in (1 + warmth, 1.0, 1 - warmth):
        table += [min(255, int(value * gain * channel)) for value in range(256)]
    return canvas.point(table)


def render(rng: random.Random, products: Sequence[Product], size_px: int) -> tuple[bytes, tuple[Box, ...]]:
    """One shop picture of 1 to 5 products.

    Returns:
        JPEG bytes and one box per product (px, x1 y1 x2 y2), in the order of `products`.
    """
    canvas = background(rng, (size_px, size_px))
    shadow = (round(0.02 * size_px), round(0.03 * size_px)) if flip(rng, 0.7) else None
    boxes = []
    single = len(products) == 1
    for product, (left, top, right, bottom) in zip(products, place(rng, len(products), canvas.size), strict=True):
        fill = rng.uniform(0.72, 0.97) if single else rng.uniform(0.86, 1.0)
        sprite = _view(rng, product, ((right - left) * fill, (bottom - top) * fill), 14 if single else 9)
        x = left + rng.uniform(0.3, 0.7) * (right - left - sprite.width)
        y = top + rng.uniform(0.3, 0.7) * (bottom - top - sprite.height)
        boxes.append(_paste(canvas, sprite, (round(x), round(y)), shadow))
    if flip(rng, BADGE_PROB):
        _stick_badge(rng, canvas)
    out = io.BytesIO()
    _light(rng, canvas).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), tuple(boxes)
