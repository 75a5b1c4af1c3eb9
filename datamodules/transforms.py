"""Pictures -> uint8 squares: letterboxed on white, lightly jittered in training; or as CLIP's weights know them.

A product photo keeps its aspect ratio (bottles and palettes differ by it) and its colours (shades are what tells
instances apart), and is never mirrored (packs carry lettering). Weights that were trained on cropped or squashed
pictures can have theirs so.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.pictures import MAX_PIXELS, decode_picture, open_picture, plain_jpeg_size, upright_size

try:  # torchvision 0.29 announces the end of its decoders; Pillow does the work where they are gone
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

WHITE = 255
_LONGEST_ASPECT = 4  # what is longer is cut to it before it is cropped: a picture of one line must not fill the memory


class Letterbox(NamedTuple):
    """Where the picture came to lie on the square: output px = input px × scale + (left, top)."""

    scale_x: float
    scale_y: float
    left_px: int
    top_px: int
    size_px: int  # side of the square

    def boxes(self, boxes_R4: np.ndarray) -> np.ndarray:
        """Move boxes (px of the upright picture, x1 y1 x2 y2) onto the square, clipped to it."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        offset = np.array([self.left_px, self.top_px] * 2)
        return np.clip(np.asarray(boxes_R4) * scale + offset, 0, self.size_px).astype(np.float32)


class Jitter(NamedTuple):
    """Light training augmentation: a change of scale and a shift. Defaults are ours, not a paper's."""

    scale: tuple[float, float] = (0.85, 1.1)  # of the side that fills the square
    shift: float = 0.06  # of the square, where the picture already fits it exactly


class Fit(NamedTuple):
    """How a picture comes to fill the square, in open_clip's words (its `resize_mode` and `interpolation`).

    "longest": the longest side fills it, margins are white. "shortest": the shortest side fills it and the rest is cut
    off, in the middle in evaluation, at a random place in training, which is CLIP's only augmentation (arXiv 2103.00020
    §2.4). "squash": both sides fill it, whatever the aspect ratio.
    """

    resize: str = "longest"
    interpolation: str = "bilinear"


def picture_to_square(
    data: bytes, out_SS3: np.ndarray, jitter: Jitter | None = None, rng: Random | None = None, fit: Fit | None = None
) -> Letterbox:
    """Decode one picture onto a white square.

    Args:
        data: encoded picture.
        out_SS3: uint8, overwritten; a row of the batch, so that nothing is copied twice.
        jitter: None in evaluation.
        rng: seeded by (seed, pass, row), so that a resumed run sees the same pixels.
        fit: a letterbox unless told otherwise.

    Raises:
        PictureError: the picture cannot be decoded or is too large.
    """
    fit = fit or Fit()
    pixels_HW3, full_w, full_h = _decode(data, _needed_px(data, out_SS3.shape[0], fit, jitter))
    scale_x, scale_y = pixels_HW3.shape[1] / full_w, pixels_HW3.shape[0] / full_h
    box = _onto_square(pixels_HW3, out_SS3, jitter, rng, fit)
    return box._replace(scale_x=scale_x * box.scale_x, scale_y=scale_y * box.scale_y)


def crops_to_squares(
    data: bytes, boxes_N4: np.ndarray, out_NSS3: np.ndarray, margin: float = 0.0, fit: Fit | None = None
) -> None:
    """Crop boxes out of one picture, each onto its own white square; the picture is decoded once.

    A crop is taken from the decoded picture, not from a square: it has all the detail the file has.

    Args:
        data: encoded picture.
        boxes_N4: x1, y1, x2, y2 as fractions of the upright picture, each of positive area.
        out_NSS3: uint8, overwritten.
        margin: added on every side, as a share of the box's longer side; the picture's edge cuts it off.
        fit: how a crop comes to fill its square; a letterbox unless told otherwise.

    Raises:
        PictureError: the picture cannot be decoded or is too large.
    """
    fit = fit or Fit()
    width, height = upright_size(data)
    around_N4 = _with_margin(boxes_N4, margin, width, height)
    pixels_HW3, _, _ = _decode(data, _needed_for_crops(around_N4, width, height, out_NSS3.shape[1], fit))
    decoded_h, decoded_w = pixels_HW3.shape[:2]
    for box_4, out_SS3 in zip(around_N4 * (decoded_w, decoded_h, decoded_w, decoded_h), out_NSS3, strict=True):
        # Whole pixels that hold the box; fractions of them that are rounding do not count.
        left, top = (min(int(edge + 1e-3), side - 1) for edge, side in zip(box_4, (decoded_w, decoded_h), strict=False))
        right, bottom = max(left + 1, math.ceil(box_4[2] - 1e-3)), max(top + 1, math.ceil(box_4[3] - 1e-3))
        _onto_square(pixels_HW3[top:bottom, left:right], out_SS3, None, None, fit)


def _with_margin(boxes_N4: np.ndarray, margin: float, width: int, height: int) -> np.ndarray:
    """Larger boxes, fractions still, clipped to the picture of these many px."""
    boxes_N4 = np.asarray(boxes_N4, np.float64)
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) * (width, height)
    added_N2 = margin * sides_N2.max(axis=1, keepdims=True) / (width, height)
    return np.clip(np.concatenate([boxes_N4[:, :2] - added_N2, boxes_N4[:, 2:] + added_N2], axis=1), 0, 1)


def _needed_for_crops(boxes_N4: np.ndarray, width: int, height: int, size_px: int, fit: Fit) -> int:
    """The longest side at which the picture has to be decoded for the smallest crop to fill its square."""
    sides_N2 = (boxes_N4[:, 2:] - boxes_N4[:, :2]) * (width, height)
    filling_N = sides_N2.max(axis=1) if fit.resize == "longest" else sides_N2.min(axis=1)
    longest = max(width, height)
    return min(longest, math.ceil(size_px * longest / max(1.0, float(filling_N.min()))))


def _onto_square(
    pixels_HW3: Tensor, out_SS3: np.ndarray, jitter: Jitter | None, rng: Random | None, fit: Fit
) -> Letterbox:
    """Resize pixels (uint8) and paste them; where they came to lie."""
    size_px, cut_left, cut_top = out_SS3.shape[0], 0, 0
    if fit.resize == "shortest":
        pixels_HW3, cut_left, cut_top = _not_too_long(pixels_HW3)
    height, width = pixels_HW3.shape[:2]
    target_h, target_w = _target(height, width, size_px, fit, jitter, rng)
    if (target_h, target_w) != (height, width):
        # Channels-last uint8 with antialias is torch's vectorised kernel, about twice as fast as Pillow's.
        pixels_13HW = pixels_HW3.permute(2, 0, 1)[None]
        resized_13HW = interpolate(pixels_13HW, size=(target_h, target_w), mode=fit.interpolation, antialias=True)
        pixels_HW3 = resized_13HW[0].permute(1, 2, 0)
    left, top = (_offset(size_px, side, fit, jitter, rng) for side in (target_w, target_h))
    _paste(pixels_HW3.numpy(), out_SS3, left, top)
    by_x, by_y = target_w / width, target_h / height
    return Letterbox(by_x, by_y, left - round(cut_left * by_x), top - round(cut_top * by_y), size_px)


def _decode(data: bytes, needed_px: int) -> tuple[Tensor, int, int]:
    """Pixels_HW3 uint8, at least `needed_px` on the longest side if the picture has that many; its full size."""
    size = plain_jpeg_size(data) if decode_jpeg is not None else None
    if size is not None and max(size) < 2 * needed_px and size[0] * size[1] <= MAX_PIXELS:
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            # The same libjpeg and pixels as Pillow, without Pillow's detour over four bytes per pixel.
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0), *size
        except RuntimeError:
            pass  # damaged: Pillow says how
    decoded = decode_picture(data, needed_px)
    return torch.from_numpy(np.array(decoded.image)), decoded.width_px, decoded.height_px


def _needed_px(data: bytes, size_px: int, fit: Fit, jitter: Jitter | None) -> int:
    """The longest side of which use is made."""
    if fit.resize == "longest":
        return round(size_px * (1.0 if jitter is None else max(1.0, jitter.scale[1])))
    sides = open_picture(data).size  # of the header
    return -(-size_px * max(sides) // min(sides))


def _not_too_long(pixels_HW3: Tensor) -> tuple[Tensor, int, int]:
    """The middle of a picture that is many times longer than wide, and what was cut off at its left and top."""
    height, width = pixels_HW3.shape[:2]
    most = _LONGEST_ASPECT * min(height, width)
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return pixels_HW3[top : top + most, left : left + most], left, top


def _target(
    height: int, width: int, size_px: int, fit: Fit, jitter: Jitter | None, rng: Random | None
) -> tuple[int, int]:
    if fit.resize == "squash":
        return size_px, size_px
    if fit.resize == "shortest":  # rounded as torchvision's Resize does
        shortest = min(height, width)
        return size_px * height // shortest, size_px * width // shortest
    longest = max(height, width)
    # A picture that fits exactly is only shifted: resampling would cost as much as decoding and blur it.
    if jitter is None or rng is None or longest == size_px:
        scale = size_px / longest
    else:
        scale = size_px / longest * rng.uniform(*jitter.scale)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _offset(size_px: int, side_px: int, fit: Fit, jitter: Jitter | None, rng: Random | None) -> int:
    """Centred in evaluation; in training anywhere the picture stays inside (or fills the square, when larger)."""
    slack = size_px - side_px
    if fit.resize != "longest":  # never positive: the square is filled; the middle as torchvision's CenterCrop rounds
        return -round(-slack / 2) if jitter is None or rng is None else rng.randint(slack, 0)
    if jitter is None or rng is None:
        return slack // 2
    if slack == 0:
        most = int(jitter.shift * size_px)
        return rng.randint(-most, most)
    return rng.randint(min(0, slack), max(0, slack))


def _paste(pixels_HW3: np.ndarray, out_SS3: np.ndarray, left: int, top: int) -> None:
    size_px = out_SS3.shape[0]
    height, width = pixels_HW3.shape[:2]
    x1, x2 = max(0, left), min(size_px, left + width)
    y1, y2 = max(0, top), min(size_px, top + height)
    out_SS3[y1:y2, x1:x2] = pixels_HW3[y1 - top : y2 - top, x1 - left : x2 - left]
    for margin in (out_SS3[:y1], out_SS3[y2:], out_SS3[y1:y2, :x1], out_SS3[y1:y2, x2:]):
        margin[...] = WHITE
