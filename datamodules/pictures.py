"""Bytes of unknown origin -> an upright RGB picture, bounded in pixels. No torch: the shard writer uses it too."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import (  # the plugins register themselves; naming them spares a search for all others
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from datamodules.errors import DataError

MAX_PIXELS = 64_000_000  # phone cameras reach 50; anything above is a mistake or an attack on memory

_ORIENTATION = 0x0112  # EXIF tag
_LYING = (5, 6, 7, 8)  # its values that swap width and height
_JPEG_FRAMES = (0xC0, 0xC2)  # baseline and progressive
_JPEG_HARMLESS = (0xC4, 0xDB, 0xDD, 0xE0, 0xE2, 0xED, 0xFE)  # tables, JFIF, colour profile, IPTC, comment

# Only codecs a shop serves (JPEG includes MPO), and none that starts another program (EPS runs ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class PictureError(DataError):
    """A picture that cannot be used; `reason` is the word it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, str]]:
        return type(self), (self.reason, str(self))  # it crosses process borders


def open_picture(data: bytes) -> Image.Image:
    """Read the header only and check the size.

    Raises:
        PictureError: reason `undecodable_picture` or `picture_too_large`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError("picture_too_large", str(error)) from None
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise _undecodable(error) from None
    if image.width * image.height > MAX_PIXELS:
        raise PictureError("picture_too_large", f"{image.width}×{image.height} px, the limit is {MAX_PIXELS} in all")
    return image


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height (px) of a JPEG that is upright YCbCr beyond doubt, else None.

    For such a file any decoder gives the same pixels, so the fastest may do it. Anything unusual (EXIF, Adobe's colour
    marker, CMYK, grey, arithmetic coding, damage in the header) is Pillow's business.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            plain = len(data) > at + 9 and data[at + 4] == 8 and data[at + 9] == 3  # bits per value, channels
            return (width, height) if plain and width and height else None
        if marker not in _JPEG_HARMLESS:
            return None
        at += 2 + length
    return None


def upright_size(data: bytes) -> tuple[int, int]:
    """Width and height (px) of the upright picture, from the header.

    Raises:
        PictureError: reason `undecodable_picture` or `picture_too_large`.
    """
    plain = plain_jpeg_size(data)
    if plain is not None and plain[0] * plain[1] <= MAX_PIXELS:
        return plain
    image = open_picture(data)
    try:
        lying = image.getexif().get(_ORIENTATION, 1) in _LYING
    except Exception as error:
        raise _undecodable(error) from None
    return (image.height, image.width) if lying else image.size


class Decoded(NamedTuple):
    """An upright RGB picture, perhaps decoded at a fraction of its size."""

    image: Image.Image
    width_px: int  # of the whole picture, upright: what boxes refer to
    height_px: int


def decode_picture(data: bytes, needed_px: int | None = None) -> Decoded:
    """Decode the first frame to upright RGB; transparency becomes white, 16 bits become 8.

    Args:
        data: the file as downloaded, whatever the codec.
        needed_px: longest side that will be used. A larger JPEG is decoded at 1/2, 1/4 or 1/8 (libjpeg's own
            scaling, several times faster), never below this side.

    Raises:
        PictureError: reason `undecodable_picture` or `picture_too_large`.
    """
    image = open_picture(data)
    width, height = image.size
    try:
        if needed_px is not None and image.format in ("JPEG", "MPO"):
            image.draft("RGB", _draft_size(image.size, needed_px))
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation != 1:
            image = ImageOps.exif_transpose(image)
        if orientation in _LYING:
            width, height = height, width
        return Decoded(_to_rgb(image), width, height)
    except Exception as error:  # see above
        raise _undecodable(error) from None


def _undecodable(error: Exception) -> PictureError:
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    return PictureError("undecodable_picture", reason)


def _draft_size(size: tuple[int, int], needed_px: int) -> tuple[int, int]:
    scale = needed_px / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":  # PIL's own conversion clips 16-bit values to white
        values = np.asarray(image, dtype=np.float64)
        if values.max(initial=0) > 255:
            values = values / 257
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
