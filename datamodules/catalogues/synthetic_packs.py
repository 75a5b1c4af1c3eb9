"""Pack shots: one drawing per pack shape, coloured by the brand's family, lettered by the brand.

A pack is drawn once per product and size on a transparent square, at double size for smooth edges; what varies from
picture to picture (view, light, place) is the business of `synthetic_scene`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from datamodules.catalogues.synthetic_shop import FAMILIES, Colour, Family, Product

SUPERSAMPLING = 2


def tint(colour: Colour, factor: float) -> Colour:
    """`colour` brightened (factor > 1) or darkened, clipped to bytes."""
    red, green, blue = (int(max(0, min(255, channel * factor))) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=64)
def lettering(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font of the machine changes the bytes."""
    return ImageFont.load_default(max(6, size_px))


class Pen:
    """Draws on the unit square: coordinates run from 0 to 1, down and to the right."""

    def __init__(self, size_px: int, product: Product):
        self.size = size_px
        self.image = Image.new("RGBA", (size_px, size_px), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.product = product
        self.family: Family = FAMILIES[product.brand.family]

    def at(self, *values: float) -> list[float]:
        return [value * self.size for value in values]

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour, radius: float = 0.0) -> None:
        edge = tint(fill, 0.78)
        self.draw.rounded_rectangle(
            self.at(left, top, right, bottom),
            radius * self.size,
            fill=fill,
            outline=edge,
            width=max(1, self.size // 96),
        )

    def disc(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        self.draw.ellipse(
            self.at(left, top, right, bottom), fill=fill, outline=tint(fill, 0.78), width=max(1, self.size // 96)
        )

    def shape(self, points: list[tuple[float, float]], fill: Colour) -> None:
        self.draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=fill, outline=tint(fill, 0.78))

    def label(self, left: float, top: float, right: float, bottom: float) -> None:
        """The brand's panel: its name in its own lettering and the motif of the series below."""
        self.box(left, top, right, bottom, self.family.panel, 0.01)
        height = bottom - top
        self.brand_name((left + right) / 2, top + 0.36 * height, 0.92 * (right - left), 0.5 * height)
        self.motif(left, right, top + 0.80 * height)

    def brand_name(self, x: float, y: float, width: float, height: float) -> None:
        style, text = self.product.brand.lettering, self.product.brand.latin
        if style == 2:
            text = " ".join(text)
        elif style == 3:
            text = text.capitalize()
        font = lettering(100)
        natural = font.getlength(text) / 100
        size_px = int(min(width / natural, height) * self.size)
        centre = (x * self.size, y * self.size)
        bold = max(1, size_px // 14) if style == 0 else 0
        self.draw.text(
            centre, text, fill=self.family.ink, font=lettering(size_px), anchor="mm", stroke_width=bold,
            stroke_fill=self.family.ink,
        )  # fmt: skip
        if style == 1:
            half_w, half_h = 0.5 * width, 0.75 * size_px / self.size
            self.draw.rectangle(self.at(x - half_w, y - half_h, x + half_w, y + half_h), outline=self.family.ink)

    def motif(self, left: float, right: float, y: float) -> None:
        """Stripes for the first series of a brand, dots for the second."""
        ink, inner = self.family.cap, (right - left) * 0.12
        if self.product.series_index == 0:
            for offset in (-0.014, 0.014):
                line = self.at(left + inner, y + offset - 0.006, right - inner, y + offset + 0.006)
                self.draw.rectangle(line, fill=ink)
            return
        step = (right - left - 2 * inner) / 4
        for number in range(5):
            x = left + inner + number * step
            self.draw.ellipse(self.at(x - 0.018, y - 0.018, x + 0.018, y + 0.018), fill=ink)


def draw_jar(pen: Pen) -> None:
    pen.box(0.12, 0.42, 0.88, 0.86, pen.family.body, 0.07)
    pen.box(0.10, 0.22, 0.90, 0.44, pen.family.cap, 0.03)
    pen.label(0.22, 0.51, 0.78, 0.78)


def draw_tube(pen: Pen) -> None:
    pen.shape([(0.20, 0.05), (0.80, 0.05), (0.69, 0.80), (0.31, 0.80)], pen.family.body)
    pen.box(0.20, 0.03, 0.80, 0.09, tint(pen.family.body, 0.9))
    pen.box(0.32, 0.79, 0.68, 0.97, pen.family.cap, 0.02)
    pen.label(0.31, 0.26, 0.69, 0.56)


def draw_pump(pen: Pen) -> None:
    pen.box(0.46, 0.08, 0.54, 0.32, pen.family.cap)
    pen.box(0.20, 0.04, 0.58, 0.12, pen.family.cap, 0.03)
    pen.box(0.38, 0.22, 0.62, 0.34, pen.family.cap, 0.02)
    pen.box(0.27, 0.32, 0.73, 0.97, pen.family.body, 0.06)
    pen.label(0.31, 0.48, 0.69, 0.80)


def draw_dropper(pen: Pen) -> None:
    pen.disc(0.42, 0.03, 0.58, 0.30, (60, 60, 64))
    pen.box(0.38, 0.22, 0.62, 0.38, pen.family.cap, 0.01)
    pen.shape([(0.40, 0.37), (0.60, 0.37), (0.74, 0.50), (0.26, 0.50)], pen.family.body)
    pen.box(0.26, 0.48, 0.74, 0.96, pen.family.body, 0.05)
    pen.label(0.30, 0.58, 0.70, 0.86)


def draw_bottle(pen: Pen) -> None:
    pen.box(0.40, 0.02, 0.60, 0.18, pen.family.cap, 0.01)
    pen.shape([(0.44, 0.17), (0.56, 0.17), (0.67, 0.30), (0.33, 0.30)], pen.family.body)
    pen.box(0.33, 0.28, 0.67, 0.98, pen.family.body, 0.03)
    pen.label(0.36, 0.44, 0.64, 0.74)


def draw_sachet(pen: Pen) -> None:
    teeth = [(0.16 + 0.068 * n, 0.04 if n % 2 else 0.07) for n in range(11)]
    foot = [(0.84 - 0.068 * n, 0.96 if n % 2 else 0.93) for n in range(11)]
    pen.shape(teeth + foot, pen.family.body)
    pen.disc(0.33, 0.42, 0.67, 0.88, (248, 244, 240))
    for left in (0.40, 0.53):
        pen.disc(left, 0.56, left + 0.07, 0.61, pen.family.body)
    pen.disc(0.45, 0.74, 0.55, 0.78, pen.family.body)
    pen.label(0.22, 0.12, 0.78, 0.37)


def draw_flask(pen: Pen) -> None:
    pen.box(0.36, 0.04, 0.64, 0.20, pen.family.cap, 0.02)
    pen.disc(0.20, 0.16, 0.80, 0.98, pen.family.body)
    pen.disc(0.38, 0.68, 0.62, 0.92, (255, 170, 40))
    centre = (0.5 * pen.size, 0.80 * pen.size)
    pen.draw.text(centre, "50+", fill=(255, 255, 255), font=lettering(int(0.1 * pen.size)), anchor="mm")
    pen.label(0.29, 0.34, 0.71, 0.63)


def draw_wand(pen: Pen) -> None:
    pen.shape([(0.39, 0.30), (0.61, 0.30), (0.57, 0.08), (0.53, 0.03), (0.47, 0.03), (0.43, 0.08)], pen.family.cap)
    pen.box(0.38, 0.28, 0.62, 0.97, pen.family.body, 0.02)
    pen.box(0.38, 0.92, 0.62, 0.97, tint(pen.family.body, 0.85))
    pen.label(0.395, 0.48, 0.605, 0.76)


def draw_lipstick(pen: Pen) -> None:
    shade = pen.product.shade_colour
    pen.box(0.16, 0.50, 0.46, 0.97, pen.family.body, 0.02)
    pen.box(0.20, 0.36, 0.42, 0.52, pen.family.cap)
    pen.shape([(0.23, 0.36), (0.39, 0.36), (0.39, 0.08), (0.32, 0.07), (0.23, 0.19)], shade)
    pen.box(0.56, 0.38, 0.86, 0.97, pen.family.cap, 0.03)
    pen.label(0.57, 0.60, 0.85, 0.84)
    pen.disc(0.20, 0.66, 0.42, 0.88, shade)


def draw_polish(pen: Pen) -> None:
    pen.box(0.39, 0.03, 0.61, 0.52, pen.family.cap, 0.04)
    pen.box(0.24, 0.48, 0.76, 0.97, pen.product.shade_colour, 0.10)
    pen.label(0.32, 0.62, 0.68, 0.85)


def draw_compact(pen: Pen) -> None:
    pen.disc(0.16, 0.02, 0.84, 0.52, pen.family.cap)
    pen.disc(0.22, 0.06, 0.78, 0.48, (214, 226, 234))
    pen.disc(0.08, 0.42, 0.92, 0.98, pen.family.body)
    pen.disc(0.18, 0.47, 0.82, 0.90, pen.product.shade_colour)
    pen.label(0.31, 0.14, 0.69, 0.39)


def draw_palette(pen: Pen) -> None:
    shade = pen.product.shade_colour
    pen.box(0.06, 0.16, 0.94, 0.86, pen.family.body, 0.04)
    pen.box(0.06, 0.16, 0.94, 0.24, pen.family.cap, 0.02)
    for number, factor in enumerate((1.3, 1.0, 0.8, 0.55)):
        left = 0.11 + 0.20 * number
        pen.box(left, 0.29, left + 0.18, 0.56, tint(shade, factor), 0.01)
    pen.label(0.28, 0.60, 0.72, 0.82)


def draw_foundation(pen: Pen) -> None:
    pen.box(0.36, 0.03, 0.64, 0.32, pen.family.cap, 0.01)
    pen.box(0.23, 0.31, 0.77, 0.97, (236, 240, 242), 0.03)
    pen.box(0.28, 0.38, 0.72, 0.92, pen.product.shade_colour, 0.02)
    pen.label(0.31, 0.50, 0.69, 0.76)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "jar": draw_jar,
    "tube": draw_tube,
    "pump": draw_pump,
    "dropper": draw_dropper,
    "bottle": draw_bottle,
    "sachet": draw_sachet,
    "flask": draw_flask,
    "wand": draw_wand,
    "lipstick": draw_lipstick,
    "polish": draw_polish,
    "compact": draw_compact,
    "palette": draw_palette,
    "foundation": draw_foundation,
}


def _shade_round(image: Image.Image) -> Image.Image:
    """Light from the upper left on a round body: darker towards both sides, a highlight left of the middle."""
    left, _, right, _ = image.getbbox() or (0, 0, *image.size)
    x = (np.arange(image.width) - left) / max(1, right - left) * 2 - 1
    light = 1.0 - 0.30 * np.abs(x) ** 3 - 0.10 * np.clip(x, 0, 1)
    row = np.clip(light * 255, 0, 255).astype(np.uint8)
    grey = Image.fromarray(np.broadcast_to(row, (image.height, image.width)).copy())
    gleam = np.clip(60 * np.exp(-(((x + 0.45) / 0.10) ** 2)), 0, 255).astype(np.uint8)
    white = Image.fromarray(np.broadcast_to(gleam, (image.height, image.width)).copy())
    rgb = ImageChops.multiply(image.convert("RGB"), Image.merge("RGB", (grey,) * 3))
    rgb = ImageChops.screen(rgb, Image.merge("RGB", (white,) * 3))
    rgb.putalpha(image.getchannel("A"))
    return rgb


@lru_cache(maxsize=768)
def pack_shot(product: Product, size_px: int) -> Image.Image:
    """The product seen from the front on a transparent square, cropped to what is drawn. Do not draw on the result."""
    pen = Pen(size_px * SUPERSAMPLING, product)
    DRAWINGS[product.category.pack](pen)
    shaded = _shade_round(pen.image)
    shaded = shaded.crop(shaded.getbbox())
    return shaded.reduce(SUPERSAMPLING)
