"""Pictures on disk: where a line's picture lies, and whether it can be used at all."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from datamodules.pictures import FORMATS

MAX_MEGAPIXELS = 64  # a decoded picture of this size takes 192 MB; larger ones are skipped before they are decoded
MAX_BYTES = 64_000_000  # of a file; no shop serves larger ones

_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")

# Tried by name: listing `images/` once per item would cost a scan of a million entries each time.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".JPG", ".JPEG", ".PNG", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class UnusablePictureError(Exception):
    """Why a picture cannot be used; `reason` is what `Skipped` counts."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def find_picture(raw: Path, item_id: str, urls: Sequence[str]) -> Path:
    """The first url that is an existing relative path inside `raw`, else `images/<id>.*`.

    Raises:
        UnusablePictureError: "missing_picture".
    """
    for url in urls:
        if not url or "://" in url or "\0" in url or Path(url).is_absolute():
            continue
        try:
            path = (raw / url).resolve()
            # A list is data: it must not lead out of its own folder.
            if path.is_relative_to(raw.resolve()) and path.is_file():
                return path
        except (OSError, ValueError):  # longer than a path may be, or with characters that no path has
            continue
    for extension in EXTENSIONS:
        path = raw / "images" / f"{item_id}{extension}"
        if os.path.isfile(path):  # False, too, for an id that is too long for a name
            return path
    raise UnusablePictureError("missing_picture")


def has_picture(raw: Path, item_id: str, urls: Sequence[str]) -> bool:
    """Whether `find_picture` finds one."""
    try:
        find_picture(raw, item_id, urls)
    except UnusablePictureError:
        return False
    return True


def _open(data: bytes, max_megapixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns at its own limit; ours is lower and counted.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise UnusablePictureError("oversized_picture") from None
    except Exception:  # Pillow's plugins raise nearly anything on damaged data
        raise UnusablePictureError("undecodable_picture") from None
    if image.width * image.height > max_megapixels * 1_000_000:
        raise UnusablePictureError("oversized_picture")
    return image


def read_picture(path: Path, max_megapixels: int = MAX_MEGAPIXELS, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes as found, after a trial decoding.

    Raises:
        UnusablePictureError: "missing_picture", "empty_file", "oversized_file", "html_page", "undecodable_picture" or
            "oversized_picture".
    """
    try:
        if path.stat().st_size > max_bytes:
            raise UnusablePictureError("oversized_file")
        data = path.read_bytes()
    except OSError:
        raise UnusablePictureError("missing_picture") from None
    if not data:
        raise UnusablePictureError("empty_file")
    if (
        data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGE_STARTS)
    ):  # servers say 404 with status 200, too
        raise UnusablePictureError("html_page")
    image = _open(data, max_megapixels)
    try:
        image.draft("RGB", (32, 32))  # JPEG: all data is read, but only 1/8 of the size is reconstructed
        image.load()
    except Exception:
        raise UnusablePictureError("undecodable_picture") from None
    return data


def decode(data: bytes, max_megapixels: int = MAX_MEGAPIXELS) -> Image.Image:
    """An RGB picture, upright. Transparent parts become white, the ground of most product photos.

    Raises:
        UnusablePictureError: "undecodable_picture" or "oversized_picture".
    """
    image = _open(data, max_megapixels)
    try:
        image = ImageOps.exif_transpose(image)
        if "A" in image.getbands() or "transparency" in image.info:
            layer = image.convert("RGBA")
            image = Image.new("RGB", layer.size, (255, 255, 255))
            image.paste(layer, (0, 0), layer)
        return image.convert("RGB")
    except Exception:
        raise UnusablePictureError("undecodable_picture") from None
