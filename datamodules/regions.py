"""Precomputed regions of one picture: the `.regions.npz` member, written and read without pickle.

Shape legend: R regions, D feature width.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import DataError

MAX_BYTES = 64 << 20  # a zip can promise more than it weighs; 100 regions × 2048 × 2 bytes are 0.4 MB


class Regions(NamedTuple):
    """What a detector found in one picture. The whole-image region is not stored."""

    boxes_R4: np.ndarray  # float32 px: x1, y1, x2, y2
    features_RD: np.ndarray  # float16
    scores_R: np.ndarray  # float32
    size_hw: tuple[int, int]  # px of the picture the boxes refer to


def pack_regions(regions: Regions) -> bytes:
    """The bytes of the member; equal regions give equal bytes (npz entries carry no clock)."""
    _check_shapes(regions)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        boxes=np.asarray(regions.boxes_R4, np.float32),
        features=np.asarray(regions.features_RD, np.float16),
        scores=np.asarray(regions.scores_R, np.float32),
        size=np.asarray(regions.size_hw, np.int32),
    )
    return buffer.getvalue()


def unpack_regions(data: bytes) -> Regions:
    """Read the member and check its shapes.

    Raises:
        DataError: not an npz, an array missing, of objects, or of another shape. The caller adds file and id.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise DataError(f"regions.npz unpacks to more than {MAX_BYTES} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            boxes, features, scores, size = (_array(arrays, key) for key in ("boxes", "features", "scores", "size"))
    except DataError:
        raise
    except Exception as error:  # zip and npy raise many kinds on damaged bytes
        raise DataError(f"regions.npz is not readable ({type(error).__name__})") from None
    if size.shape != (2,) or not np.isfinite(size).all() or (size < 1).any():
        raise DataError("regions.npz: size should be height and width in pixels")
    regions = Regions(boxes, features, scores, (int(size[0]), int(size[1])))
    _check_shapes(regions)
    return regions


def boxes_with_area(regions: Regions) -> np.ndarray:
    """Boxes_R5 float32 in [0, 1] with the relative area as fifth value, as the models take them."""
    height, width = regions.size_hw
    boxes_R4 = np.clip(np.asarray(regions.boxes_R4, np.float32) / (width, height, width, height), 0, 1)
    area_R1 = (boxes_R4[:, 2:3] - boxes_R4[:, 0:1]) * (boxes_R4[:, 3:4] - boxes_R4[:, 1:2])
    return np.concatenate([boxes_R4, area_R1], axis=1).astype(np.float32)


def _array(arrays: Any, key: str) -> np.ndarray:
    if key not in arrays:
        raise DataError(f"regions.npz has no array '{key}'")
    array = arrays[key]
    if array.dtype.kind not in "fiu":
        raise DataError(f"regions.npz: '{key}' holds {array.dtype}, not numbers")
    return array


def _check_shapes(regions: Regions) -> None:
    boxes, features, scores = (np.asarray(part) for part in regions[:3])
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"regions.npz: boxes have shape {boxes.shape}, not (R, 4)")
    if features.ndim != 2 or scores.ndim != 1 or not len(boxes) == len(features) == len(scores):
        raise DataError(
            f"regions.npz: boxes {boxes.shape}, features {features.shape} and scores {scores.shape} differ in R"
        )
