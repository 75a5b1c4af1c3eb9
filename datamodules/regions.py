"""Regions of one picture: what a detector found, its checks, and the `.regions.npz` member, never pickled.

Shape legend: R regions, D feature width, C detector classes.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.npz import read_npz

# Detectors work on a resized picture; a box at the edge, scaled back and rounded, may stand out by a pixel.
BOX_TOLERANCE_PX = 1.0

# A probability that stands outside [0, 1] by no more was rounded, and is put back.
SCORE_TOLERANCE = 1e-3
# Rounding 1601 probabilities to float16 moves their sum by 5e-4 at most, bfloat16 of a detector by 4e-3.
SUM_TOLERANCE = 1e-2

_LONGEST_SIDE_PX = 1 << 24  # float32, which boxes are in, counts no further

_HALF_EXPONENT = 0x7C00  # all bits of a float16's exponent: infinity or NaN
_HALF_ONE = 0x3C00  # the float16 1.0; larger bits are larger numbers, infinity, NaN or have a sign


class BadRegionsError(DataError):
    """Regions that no model can use; builds and training runs count them under `reason`. The caller adds file and id.

    Reasons: malformed_regions (not readable, shapes, size), non_finite_regions, misplaced_boxes, bad_class_scores (no
    probabilities).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Regions(NamedTuple):
    """What a detector found in one picture. The whole-image region is not stored."""

    boxes_R4: np.ndarray  # float32 px: x1, y1, x2, y2
    features_RD: np.ndarray  # any float; stored as float16
    scores_R: np.ndarray  # float32
    size_hw: tuple[int, int]  # px of the picture the boxes refer to
    # The probability of each of the detector's classes, background or not; any float, stored as float16. None = unknown
    class_scores_RC: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """Classes of the detector with a score; 0 = no class scores."""
        return 0 if self.class_scores_RC is None else int(np.shape(self.class_scores_RC)[-1])


def best_regions(regions: Regions, num: int) -> Regions:
    """The `num` regions with the highest scores, in their order; of equal scores the first."""
    if len(regions.boxes_R4) <= num:
        return regions
    kept = np.sort(np.argsort(-np.asarray(regions.scores_R), kind="stable")[:num])
    classes_RC = None if regions.class_scores_RC is None else regions.class_scores_RC[kept]
    return Regions(
        regions.boxes_R4[kept], regions.features_RD[kept], regions.scores_R[kept], regions.size_hw, classes_RC
    )


def pack_regions(regions: Regions) -> bytes:
    """The bytes of the member; equal regions give equal bytes (npz entries carry no clock).

    Raises:
        BadRegionsError: shapes, boxes or values that `unpack_regions` or a batch would refuse, among them features
            that float16 cannot hold and class scores that are no probabilities.
    """
    with np.errstate(over="ignore"):  # checked below, with a message
        stored = Regions(
            _numbers("boxes", regions.boxes_R4).astype(np.float32),
            _numbers("features", regions.features_RD).astype(np.float16),
            _numbers("scores", regions.scores_R).astype(np.float32),
            _size(regions.size_hw),
            None if regions.class_scores_RC is None else _probabilities(regions.class_scores_RC),
        )
    check_regions(stored)
    optional: dict[str, Any] = {} if stored.class_scores_RC is None else {"class_scores": stored.class_scores_RC}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        boxes=stored.boxes_R4,
        features=stored.features_RD,
        scores=stored.scores_R,
        size=np.asarray(stored.size_hw, np.int32),
        **optional,
    )
    return buffer.getvalue()


def unpack_regions(data: bytes, class_scores: bool = True) -> Regions:
    """Read the member and check all but the values of features and class scores; without `scores` they are ones.

    The arrays may be read-only views of `data`: who copies them anyway checks the copy (`check_finite`,
    `check_class_scores`).

    Args:
        class_scores: read them, if there are any.

    Raises:
        BadRegionsError: not an npz, an array missing, of objects, or of another shape; boxes outside the picture.
    """
    try:
        arrays = read_npz(data, ("boxes", "features", "scores", "size", *(("class_scores",) if class_scores else ())))
    except Exception as error:  # zip and npy raise many kinds on damaged bytes
        reason = (str(error).splitlines() or [""])[0]
        raise _malformed(f"not readable ({type(error).__name__}: {reason}); write the file again") from None
    for key in ("boxes", "features", "size"):
        if key not in arrays:
            raise _malformed(f"it has no array '{key}'; write boxes, features and size")
    boxes, features = _numbers("boxes", arrays["boxes"]), _numbers("features", arrays["features"])
    scores = _numbers("scores", arrays["scores"]) if "scores" in arrays else np.ones(boxes.shape[:1], np.float32)
    of_classes = _numbers("class_scores", arrays["class_scores"]) if "class_scores" in arrays else None
    regions = Regions(boxes, features, scores, _size(arrays["size"]), of_classes)
    _check_shapes(regions)
    _check_boxes(regions.boxes_R4, regions.size_hw)
    return regions


def check_regions(regions: Regions) -> None:
    """Refuse shapes, boxes and values that a batch would not take.

    Raises:
        BadRegionsError: with the key, the first bad row and the remedy.
    """
    _check_shapes(regions)
    _check_boxes(regions.boxes_R4, regions.size_hw)
    with np.errstate(over="ignore"):
        check_finite(regions.features_RD.astype(np.float16))
        if regions.class_scores_RC is not None:
            check_class_scores(regions.class_scores_RC.astype(np.float16))


def check_finite(features_RD: np.ndarray) -> None:
    """Refuse float16 features that are no numbers, or were none before float16 made infinity of them.

    Raises:
        BadRegionsError: non_finite_regions.
    """
    bits_RD = features_RD.view(np.uint16)
    if ((bits_RD & _HALF_EXPONENT) == _HALF_EXPONENT).any():  # a seventh of the time of np.isfinite
        row = int(np.flatnonzero(~np.isfinite(features_RD).all(axis=1))[0])
        raise BadRegionsError(
            "non_finite_regions",
            f"'features' of region {row} hold NaN, infinity or a value that float16 cannot (beyond ±65504); run the "
            "detector on this picture again, or scale its features",
        )


def check_class_scores(class_scores_RC: np.ndarray, sums_R: np.ndarray | None = None) -> None:
    """Refuse float16 class scores of which a row is no distribution over classes. Background may have been left out.

    Args:
        sums_R: float32 sums of the rows; None = summed here. At 36 × 1601 numpy takes 0.5 ms for it, torch 0.02 ms.

    Raises:
        BadRegionsError: non_finite_regions, bad_class_scores.
    """
    if sums_R is None:
        sums_R = class_scores_RC.sum(axis=1, dtype=np.float32)
    unlikely_R = ~((sums_R > 0) & (sums_R <= 1 + SUM_TOLERANCE))  # NaN compares as false
    if not unlikely_R.any() and not (class_scores_RC.view(np.uint16) > _HALF_ONE).any():
        return
    outside_RC = ~((class_scores_RC >= 0) & (class_scores_RC <= 1))
    bad_R = unlikely_R | outside_RC.any(axis=1)
    if not bad_R.any():  # only −0.0, whose sign is a bit too
        return
    row = int(bad_R.argmax())
    if not np.isfinite(class_scores_RC[row]).all():
        raise BadRegionsError(
            "non_finite_regions",
            f"'class_scores' of region {row} hold NaN or infinity; run the detector on this picture again",
        )
    if outside_RC[row].any():
        what = f"hold {float(class_scores_RC[row][outside_RC[row]][0]):.4g}"
    else:
        what = f"sum to {float(sums_R[row]):.4g}"
    raise BadRegionsError(
        "bad_class_scores",
        f"'class_scores' of region {row} {what}; give the probability of each class, at most 1 in sum and not all 0 "
        "(apply softmax to logits)",
    )


def boxes_with_area(regions: Regions) -> np.ndarray:
    """Boxes_R5 float32 in [0, 1] with the relative area as fifth value, as the models take them."""
    height, width = regions.size_hw
    boxes_R4 = np.clip(np.asarray(regions.boxes_R4, np.float32) / (width, height, width, height), 0, 1)
    area_R1 = (boxes_R4[:, 2:3] - boxes_R4[:, 0:1]) * (boxes_R4[:, 3:4] - boxes_R4[:, 1:2])
    return np.concatenate([boxes_R4, area_R1], axis=1).astype(np.float32)


def _numbers(key: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise _malformed(f"'{key}' holds {array.dtype}, not numbers")
    return array


def _probabilities(values: Any) -> np.ndarray:
    """As float16, what rounding put outside [0, 1] inside again; anything else is left for the check to refuse."""
    array = _numbers("class_scores", values)
    inside = np.clip(array, 0, 1)
    return np.where(np.abs(array - inside) <= SCORE_TOLERANCE, inside, array).astype(np.float16)


def _size(values: Any) -> tuple[int, int]:
    size = _numbers("size", values)
    if size.shape != (2,) or not (np.abs(size.astype(np.float64)) <= _LONGEST_SIDE_PX).all():  # nor NaN
        raise _malformed(f"'size' is {size.tolist()}; give the picture's height and width in pixels")
    return int(size[0]), int(size[1])


def _check_shapes(regions: Regions) -> None:
    boxes, features, scores, _, class_scores = regions
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise _malformed(f"'boxes' have shape {boxes.shape}, not (R, 4)")
    if features.ndim != 2 or scores.ndim != 1 or not len(boxes) == len(features) == len(scores):
        raise _malformed(f"'boxes' {boxes.shape}, 'features' {features.shape} and 'scores' {scores.shape} differ in R")
    if not features.shape[1]:
        raise _malformed("'features' are 0 wide")
    if class_scores is not None and (
        class_scores.ndim != 2 or len(class_scores) != len(boxes) or not class_scores.shape[1]
    ):
        raise _malformed(
            f"'class_scores' have shape {class_scores.shape}, not ({len(boxes)}, C): give each box the probability of "
            "each of at least one class"
        )


def _check_boxes(boxes_R4: np.ndarray, size_hw: tuple[int, int]) -> None:
    """A box may be one pixel thin: detectors that count pixels inclusively give it x1 = x2."""
    height, width = size_hw
    if height < 1 or width < 1:
        raise _malformed(f"'size' is {height} × {width}; give the picture's height and width in pixels")
    if not len(boxes_R4):
        return
    corner_R2, opposite_R2 = boxes_R4[:, :2], boxes_R4[:, 2:]
    limit_2 = (width + BOX_TOLERANCE_PX, height + BOX_TOLERANCE_PX)
    # NaN compares as false, so that these three find it too.
    in_place_R2 = (corner_R2 >= -BOX_TOLERANCE_PX) & (opposite_R2 <= limit_2) & (corner_R2 <= opposite_R2)
    if not in_place_R2.all():
        row = int(in_place_R2.all(axis=1).argmin())
        values = boxes_R4[row].tolist()
        if not np.isfinite(values).all():
            raise BadRegionsError(
                "non_finite_regions", f"'boxes' row {row} is {values}; run the detector on this picture again"
            )
        raise _misplaced(
            f"'boxes' row {row} is {values}, inverted or outside the picture of {width} × {height} px; give x1, y1, "
            "x2, y2 in pixels of the picture whose height and width stand in 'size'"
        )
    if 0 < opposite_R2.max() <= 1 < min(size_hw):
        raise _misplaced(
            f"all 'boxes' lie within the first pixel of {width} × {height}: they look like fractions; multiply them by "
            "width and height"
        )


def _malformed(message: str) -> BadRegionsError:
    return BadRegionsError("malformed_regions", message)


def _misplaced(message: str) -> BadRegionsError:
    return BadRegionsError("misplaced_boxes", message)
