"""What a promotional picture shows beside products, and no box may hold: bars, badges, frames, lettering."""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw, ImageFont

from datamodules.detection.grounds import colour

WORDS = ("NEW", "SALE", "-20%", "SET", "2+1", "HOT", "9.90", "49,-", "BEST", "GIFT", "x2", "100 ml", "TOP", "FREE")
_FONTS: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

Box = tuple[float, float, float, float]  # px, x1 y1 x2 y2


def decorate(rng: Random, image: Image.Image) -> None:
    """Draw one to three pieces of clutter on a ground, in place."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice((_banner, _lines_of_text, _frame, _discs, badge))(rng, draw, image.size)


def badge(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> Box:
    """A disc or a label with a word, in a corner or anywhere along an edge."""
    width, height = size
    side = rng.uniform(0.1, 0.24) * min(size)
    round_ = rng.random() < 0.5
    wide = side if round_ else side * rng.uniform(1.2, 2.2)
    high = side if round_ else side * rng.uniform(0.5, 0.8)
    x = rng.choice((0.0, width - wide, rng.uniform(0, width - wide)))
    y = rng.choice((0.0, height - high))
    box = (x, y, x + wide, y + high)
    (draw.ellipse if round_ else draw.rectangle)(box, fill=colour(rng))
    _word(rng, draw, (x + wide / 2, y + high / 2), 0.45 * high)
    return box


def _banner(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    width, height = size
    thick = rng.uniform(0.06, 0.2)
    if rng.random() < 0.75:
        y = rng.choice((0.0, 1 - thick, rng.uniform(0, 1 - thick)))
        draw.rectangle((0, y * height, width, (y + thick) * height), fill=colour(rng))
        if rng.random() < 0.7:
            _word(rng, draw, (rng.uniform(0.2, 0.8) * width, (y + thick / 2) * height), 0.6 * thick * height)
    else:
        x = rng.choice((0.0, 1 - thick))
        draw.rectangle((x * width, 0, (x + thick) * width, height), fill=colour(rng))


def _lines_of_text(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """Bars as long as words, which is what small print is at this size."""
    width, height = size
    ink = colour(rng)
    high = rng.uniform(0.01, 0.035) * height
    x0, y = rng.uniform(0, 0.6) * width, rng.uniform(0, 0.8) * height
    for _ in range(rng.randint(1, 4)):
        x = x0
        for _ in range(rng.randint(1, 4)):
            wide = rng.uniform(0.03, 0.12) * width
            draw.rectangle((x, y, x + wide, y + high), fill=ink)
            x += wide + 0.02 * width
        y += 2 * high + 1


def _frame(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    inset = rng.choice((0, rng.uniform(0, 0.06) * min(size)))
    thick = max(1, round(rng.uniform(0.008, 0.05) * min(size)))
    draw.rectangle((inset, inset, size[0] - 1 - inset, size[1] - 1 - inset), outline=colour(rng), width=thick)


def _discs(rng: Random, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    """Confetti, bokeh, a sun behind the product."""
    ink = colour(rng)
    largest = rng.choice((0.04, 0.1, 0.45))
    for _ in range(1 if largest > 0.4 else rng.randint(2, 9)):
        radius = rng.uniform(0.3, 1) * largest * min(size)
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _word(rng: Random, draw: ImageDraw.ImageDraw, centre: tuple[float, float], height_px: float) -> None:
    size = max(6, 2 * round(height_px / 2))
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size)
    draw.text(centre, rng.choice(WORDS), fill=colour(rng), font=_FONTS[size], anchor="mm")
