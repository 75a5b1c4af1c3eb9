"""Takes a product off its photo: along its outline where the ground is white, else as a tile with soft edges."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from datamodules.catalogues.seeding import flip

WHITE = 238  # the darkest channel of a pixel of white ground; JPEG noise stays above
MIN_WHITE_BORDER = 0.7  # models are often cut by the lower edge, so not all of the border is ground
AREA = (0.04, 0.92)  # outside of this the outline is not to be trusted (a white shirt, say)
MAX_CROP = 0.3  # of either side, when a tile is fitted to its slot


def cut_out(photo: Image.Image) -> Image.Image | None:
    """The product of a white-ground RGB photo as RGBA, cropped; None where the ground is not white."""
    from scipy.ndimage import label

    red, green, blue = photo.split()
    light = np.asarray(ImageChops.darker(ImageChops.darker(red, green), blue)) >= WHITE
    border = np.concatenate((light[0], light[-1], light[:, 0], light[:, -1]))
    if border.mean() < MIN_WHITE_BORDER:
        return None
    parts, _ = label(light)
    edge = np.concatenate((parts[0], parts[-1], parts[:, 0], parts[:, -1]))
    ground = np.bincount(edge[edge > 0], minlength=parts.max() + 1)[parts] > 0  # white inside the product stays
    if not AREA[0] <= 1 - ground.mean() <= AREA[1]:
        return None
    mask = Image.fromarray(np.where(ground, 0, 255).astype(np.uint8))
    # Soft, and all of the softness inside the outline: no white fringe on a dark canvas.
    mask = mask.filter(ImageFilter.BoxBlur(1)).point(lambda value: max(0, 2 * value - 255))
    sprite = photo.copy()
    sprite.putalpha(mask)
    box = mask.point(lambda value: 255 * (value > 127)).getbbox()
    return sprite.crop(box) if box else None


def tile(rng: random.Random, photo: Image.Image, slot: tuple[float, float]) -> Image.Image:
    """The photo cropped towards the shape of its slot (width, height), with rounded or soft edges, as RGBA."""
    width, height = photo.size
    wanted = slot[0] / slot[1]
    crop_w = min(width, max(height * wanted, width * (1 - MAX_CROP)))
    crop_h = min(height, max(width / wanted, height * (1 - MAX_CROP)))
    left, top = (width - crop_w) / 2, (height - crop_h) / 2
    sprite = photo.crop((round(left), round(top), round(left + crop_w), round(top + crop_h)))
    side = min(sprite.size)
    mask = Image.new("L", sprite.size, 0)
    draw = ImageDraw.Draw(mask)
    if flip(rng, 0.5):
        draw.rounded_rectangle((0, 0, sprite.width - 1, sprite.height - 1), rng.uniform(0.04, 0.2) * side, fill=255)
    else:
        blur = 0.03 * side
        inset = 2 * blur
        draw.rounded_rectangle((inset, inset, sprite.width - inset, sprite.height - inset), 0.08 * side, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    sprite.putalpha(mask)
    return sprite
