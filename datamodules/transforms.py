"""Pictures -> uint8 squares: letterboxed on white, lightly jittered in training.

A product photo keeps its aspect ratio (bottles and palettes differ by it) and its colours (shades are what tells
instances apart), and is never mirrored (packs carry lettering).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datamodules.pictures import MAX_PIXELS, decode_picture, plain_jpeg_size

try:  # torchvision 0.29 announces the end of its decoders; Pillow does the work where they are gone
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:
    decode_jpeg = None

WHITE = 255


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


def picture_to_square(
    data: bytes, out_SS3: np.ndarray, jitter: Jitter | None = None, rng: Random | None = None
) -> Letterbox:
    """Decode one picture onto a white square.

    Args:
        data: encoded picture.
        out_SS3: uint8, overwritten; a row of the batch, so that nothing is copied twice.
        jitter: None in evaluation.
        rng: seeded by (seed, pass, row), so that a resumed run sees the same pixels.

    Raises:
        PictureError: the picture cannot be decoded or is too large.
    """
    size_px = out_SS3.shape[0]
    most = 1.0 if jitter is None else max(1.0, jitter.scale[1])
    pixels_HW3, full_w, full_h = _decode(data, needed_px=round(size_px * most))
    height, width = pixels_HW3.shape[:2]
    target_h, target_w = _target(height, width, size_px, jitter, rng)
    if (target_h, target_w) != (height, width):
        # Channels-last uint8 with antialias is torch's vectorised kernel, about twice as fast as Pillow's.
        pixels_13HW = pixels_HW3.permute(2, 0, 1)[None]
        resized_13HW = interpolate(pixels_13HW, size=(target_h, target_w), mode="bilinear", antialias=True)
        pixels_HW3 = resized_13HW[0].permute(1, 2, 0)
    left, top = (_offset(size_px, side, jitter, rng) for side in (target_w, target_h))
    _paste(pixels_HW3.numpy(), out_SS3, left, top)
    return Letterbox(target_w / full_w, target_h / full_h, left, top, size_px)


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


def _target(height: int, width: int, size_px: int, jitter: Jitter | None, rng: Random | None) -> tuple[int, int]:
    longest = max(height, width)
    # A picture that fits exactly is only shifted: resampling would cost as much as decoding and blur it.
    if jitter is None or rng is None or longest == size_px:
        scale = size_px / longest
    else:
        scale = size_px / longest * rng.uniform(*jitter.scale)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _offset(size_px: int, side_px: int, jitter: Jitter | None, rng: Random | None) -> int:
    """Centred in evaluation; in training anywhere the picture stays inside (or fills the square, when larger)."""
    slack = size_px - side_px
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
