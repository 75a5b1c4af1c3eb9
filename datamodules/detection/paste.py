"""One picture to train a detector on: a ground, cut-outs pasted on it, and a box around what is seen of each."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datamodules.detection.clutter import badge, decorate
from datamodules.detection.cut_outs import CutOut
from datamodules.detection.grounds import ground, soften
from datamodules.detection.layouts import Spot, draw_number, lay_out

LEAST_SEEN = 0.6  # of each product's own area; what would be covered further is not pasted
CROWDS = (LEAST_SEEN, 0.8, 0.95)  # a picture draws one of these as its own limit
LEAST_SIDE_PX = 6
MOST_TURN_DEGREES = 20.0
MOST_SHEAR = 0.06
MOST_ENLARGED = 1.7  # times; a small cut-out enlarged further is a blur
SHADOW = (0.2, 0.5)  # of black, where a product throws one
TRIES = 3  # places tried for a product before it is left out

_NOBODY, _CLUTTER = -1, -2


class PastedPicture(NamedTuple):
    """A finished picture."""

    pixels_SS3: np.ndarray  # uint8
    boxes_N4: np.ndarray  # float32 px, x1 y1 x2 y2, tight around what is seen of each product
    seen_N: np.ndarray  # float32, share of each product's area that is seen
    cut_outs_N: np.ndarray  # int64, which of the cut-outs each product is


def paste_picture(
    rng: Random, cut_outs: Sequence[CutOut], photos: Sequence[np.ndarray], size_px: int, max_products: int
) -> PastedPicture:
    """Draw a picture of 1 to `max_products` products.

    Args:
        rng: decides everything; nothing else is random.
        cut_outs: to choose from, at least one.
        photos: for photographic grounds, RGB or RGBA arrays.
        size_px: side of the square.
        max_products: 1 or more.
    """
    size = _canvas_size(rng, size_px)
    image = soften(rng, ground(rng, size, photos))
    if rng.random() < 0.3:
        decorate(rng, image)
    canvas = _Canvas(image, rng.choice(CROWDS))
    shadows = rng.random() < 0.4
    for spot in lay_out(rng, draw_number(rng, max_products)):
        canvas.add(rng, cut_outs, spot, shadows)
    for _ in range(TRIES):
        if canvas.areas:
            break
        # A picture without a product teaches nothing about boxes; this one may be thin (a belt).
        canvas.add(rng, cut_outs, Spot(0.5, 0.5, 0.9, 0.9), shadows, least_side_px=2)
    if rng.random() < 0.12:
        canvas.add_badge(rng)
    return _finished(rng, canvas, size_px)


def _canvas_size(rng: Random, size_px: int) -> tuple[int, int]:
    """Mostly the square; else a picture that will be letterboxed on white."""
    if rng.random() < 0.85:
        return size_px, size_px
    other = round(size_px * rng.uniform(0.6, 0.98))
    return (size_px, other) if rng.random() < 0.5 else (other, size_px)


class _Canvas:
    """The picture so far, and which product each pixel shows."""

    def __init__(self, image: Image.Image, least_seen: float) -> None:
        self.image, self.least_seen = image, least_seen
        self.owner_HW = np.full((image.height, image.width), _NOBODY, np.int16)
        self.areas: list[int] = []  # px of each product, hidden and cut-off ones included
        self.cut_outs: list[int] = []  # which one each product is

    def add(
        self, rng: Random, cut_outs: Sequence[CutOut], spot: Spot, shadow: bool, least_side_px: int = LEAST_SIDE_PX
    ) -> None:
        """Paste one of the cut-outs near its spot, unless it would hide too much or be hidden."""
        chosen = rng.randrange(len(cut_outs))
        sprite = _sprite(rng, cut_outs[chosen], spot, self.image.size)
        width, height = sprite.size
        if min(width, height) < least_side_px:
            return
        mask_HW = np.asarray(sprite.getchannel("A")) > 127
        area = int(mask_HW.sum())
        for attempt in range(TRIES):
            x = round(spot.x * self.image.width - width / 2)
            y = round(spot.y * self.image.height - height / 2)
            if attempt:
                x = rng.randint(min(0, self.image.width - width), max(0, self.image.width - width))
                y = rng.randint(min(0, self.image.height - height), max(0, self.image.height - height))
            if self._claim(mask_HW, area, x, y):
                self.cut_outs.append(chosen)
                self._blend(rng, sprite, x, y, shadow)
                return

    def add_badge(self, rng: Random) -> None:
        """A badge over the picture, where it leaves enough of every product."""
        image = self.image.copy()
        left, top, right, bottom = badge(rng, ImageDraw.Draw(image), image.size)
        owner_HW = self.owner_HW.copy()
        owner_HW[math.floor(top) : math.ceil(bottom) + 1, math.floor(left) : math.ceil(right) + 1] = _CLUTTER
        if self._enough_seen(owner_HW):
            self.image, self.owner_HW = image, owner_HW

    def seen(self) -> np.ndarray:
        """Share of each product's area that is seen."""
        return self._seen_px(self.owner_HW) / np.maximum(self.areas, 1)

    def _seen_px(self, owner_HW: np.ndarray) -> np.ndarray:
        shown = owner_HW[owner_HW >= 0]
        return np.bincount(shown, minlength=len(self.areas))

    def _enough_seen(self, owner_HW: np.ndarray) -> bool:
        return bool((self._seen_px(owner_HW) >= self.least_seen * np.array(self.areas)).all())

    def _claim(self, mask_HW: np.ndarray, area: int, x: int, y: int) -> bool:
        """Take the mask's pixels for a new product, if it and all others keep enough of theirs."""
        height, width = self.owner_HW.shape
        x1, y1, x2, y2 = max(0, x), max(0, y), min(width, x + mask_HW.shape[1]), min(height, y + mask_HW.shape[0])
        if x1 >= x2 or y1 >= y2 or not area:
            return False
        inside_HW = mask_HW[y1 - y : y2 - y, x1 - x : x2 - x]
        if inside_HW.sum() < self.least_seen * area:
            return False
        owner_HW = self.owner_HW.copy()
        owner_HW[y1:y2, x1:x2][inside_HW] = len(self.areas)
        self.areas.append(area)
        if self._enough_seen(owner_HW):
            self.owner_HW = owner_HW
            return True
        self.areas.pop()
        return False

    def _blend(self, rng: Random, sprite: Image.Image, x: int, y: int, shadow: bool) -> None:
        alpha = sprite.getchannel("A")
        if shadow:
            soft = max(1.0, 0.04 * max(sprite.size))
            margin = math.ceil(2 * soft)
            cast = Image.new("L", (sprite.width + 2 * margin, sprite.height + 2 * margin))
            cast.paste(round(255 * rng.uniform(*SHADOW)), (margin, margin), alpha)
            at = (x - margin + rng.randint(-2, 3), y - margin + rng.randint(0, 4))
            self.image.paste((0, 0, 0), at, cast.filter(ImageFilter.BoxBlur(soft)))
        self.image.paste(sprite, (x, y), alpha)


def _sprite(rng: Random, cut_out: CutOut, spot: Spot, canvas: tuple[int, int]) -> Image.Image:
    """The cut-out scaled to its spot, turned and sheared a little, in slightly other colours. Never mirrored."""
    room = (spot.width * canvas[0], spot.height * canvas[1])
    pixels_HW4 = cut_out.pixels_HW4
    if cut_out.kind == "tile":
        pixels_HW4 = _cropped(rng, pixels_HW4, room)
    height, width = pixels_HW4.shape[:2]
    most = MOST_TURN_DEGREES if rng.random() < 0.3 else MOST_TURN_DEGREES / 3
    turn = math.radians(rng.uniform(-most, most) * (1.0 if cut_out.kind == "outline" else 0.4))
    shear = rng.uniform(-MOST_SHEAR, MOST_SHEAR) if rng.random() < 0.4 else 0.0
    cosine, sine = math.cos(turn), math.sin(turn)
    # Output = rotation × shear × input; what it covers is to fit the room.
    a, b, c, d = cosine, cosine * shear - sine, sine, sine * shear + cosine
    wide, high = width * abs(a) + height * abs(b), width * abs(c) + height * abs(d)
    scale = min(room[0] / wide, room[1] / high, MOST_ENLARGED)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Premultiplied once: Pillow would go there and back for each of the two.
    image = Image.fromarray(pixels_HW4).convert("RGBa").resize(small, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if cut_out.kind == "tile":
        image = image.convert("RGB")
        image.putalpha(_tile_edge(rng, small))
        image = image.convert("RGBa")
    if abs(turn) > 0.02 or shear:
        out = (max(1, math.ceil(wide * scale)), max(1, math.ceil(high * scale)))
        determinant = a * d - b * c
        inverse = (d / determinant, -b / determinant, -c / determinant, a / determinant)
        shift_x = small[0] / 2 - inverse[0] * out[0] / 2 - inverse[1] * out[1] / 2
        shift_y = small[1] / 2 - inverse[2] * out[0] / 2 - inverse[3] * out[1] / 2
        matrix = (inverse[0], inverse[1], shift_x, inverse[2], inverse[3], shift_y)
        image = image.transform(out, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return _recoloured(rng, image.convert("RGBA"))


def _cropped(rng: Random, pixels_HW4: np.ndarray, room: tuple[float, float]) -> np.ndarray:
    """Part of a tile, nearer to the shape of its room than the photo is."""
    height, width = pixels_HW4.shape[:2]
    wanted = room[0] / max(1.0, room[1]) * math.exp(rng.uniform(-0.35, 0.35))
    least = rng.uniform(0.55, 1.0)  # of either side
    crop_w = round(max(least * width, min(width, height * wanted)))
    crop_h = round(max(least * height, min(height, width / wanted)))
    left, top = rng.randint(0, width - crop_w), rng.randint(0, height - crop_h)
    return np.ascontiguousarray(pixels_HW4[top : top + crop_h, left : left + crop_w])


def _tile_edge(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Sharp, rounded or fading out."""
    draw = rng.random()
    if draw < 0.25:
        return Image.new("L", size, 255)
    mask = Image.new("L", size, 0)
    side = min(size)
    inset = rng.uniform(0.02, 0.06) * side if draw > 0.6 else 0.0
    ImageDraw.Draw(mask).rounded_rectangle(
        (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset), rng.uniform(0.02, 0.25) * side, fill=255
    )
    return mask.filter(ImageFilter.BoxBlur(inset / 2)) if inset else mask


def _recoloured(rng: Random, sprite: Image.Image) -> Image.Image:
    """A little lighter or darker, warmer or colder, flatter or fuller in contrast."""
    if rng.random() < 0.3:
        return sprite
    gain, lift = rng.uniform(0.85, 1.12), rng.uniform(-12, 12)
    gain_4 = np.array([*(gain * rng.uniform(0.96, 1.04) for _ in range(3)), 1.0], np.float32)
    lift_4 = np.array([*(128 * (1 - own) + lift for own in gain_4[:3]), 0.0], np.float32)
    pixels_HW4 = np.asarray(sprite) * gain_4 + lift_4
    return Image.fromarray(np.clip(pixels_HW4, 0, 255).astype(np.uint8))


def _finished(rng: Random, canvas: _Canvas, size_px: int) -> PastedPicture:
    image = canvas.image
    if rng.random() < 0.3:  # queries are photos that a codec has been over
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=rng.randint(60, 95))
        image = Image.open(buffer).convert("RGB")
    left, top = (size_px - image.width) // 2, (size_px - image.height) // 2
    if image.size != (size_px, size_px):
        square = Image.new("RGB", (size_px, size_px), (255, 255, 255))
        square.paste(image, (left, top))
        image = square
    boxes = []
    for number in range(len(canvas.areas)):
        x1, y1, x2, y2 = _bounds(canvas.owner_HW == number)
        boxes.append((x1 + left, y1 + top, x2 + left, y2 + top))
    return PastedPicture(
        np.asarray(image),
        np.array(boxes, np.float32).reshape(-1, 4),
        canvas.seen().astype(np.float32),
        np.array(canvas.cut_outs, np.int64),
    )


def _bounds(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
