"""Which boxes of a query become instances: those a detector found, or as an upper bound the true ones. Pure numpy.

Shape legend: R regions, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from datamodules.batch import InputSpec
from datamodules.errors import DataError
from datamodules.region_sets import DEFAULT_SET, how_to_write
from datamodules.regions import BOX_TOLERANCE_PX, BadRegionsError, Regions
from datamodules.shard_folder import ShardFolder

DETECTED, TRUE = "detected", "true"
KINDS = (DETECTED, TRUE)
MOST_INSTANCES = 36  # of a query: as many as the published recipe keeps regions of a picture


class InstanceOptions(NamedTuple):
    """How boxes are chosen and cropped; the defaults are ours, not a paper's."""

    min_score: float = 0.5  # a detected box with less is no instance
    max_instances: int = 10  # the most of a query
    nms_iou: float = 0.5  # of two detected boxes that overlap by more, the better one stays
    crop_margin: float = 0.05  # added around a crop on every side, as a share of the box's longer side


def check_options(kinds: Sequence[str], options: InstanceOptions) -> None:
    """Refuse unknown or repeated kinds and numbers out of range.

    Raises:
        DataError: naming the argument of `Product1M`.
    """
    for kind in kinds:
        if kind not in KINDS:
            near = get_close_matches(kind, KINDS, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise DataError(f"data.instances: there is no '{kind}'; {hint}There are {' and '.join(KINDS)}.")
    if len(set(kinds)) != len(kinds):
        raise DataError(f"data.instances={list(kinds)}: name each once.")
    ranges = {
        "instance_min_score": (options.min_score, 0.0, 1.0),
        "max_instances": (options.max_instances, 1, MOST_INSTANCES),
        "instance_nms_iou": (options.nms_iou, 0.0, 1.0),
        "crop_margin": (options.crop_margin, 0.0, 1.0),
    }
    for key, (value, least, most) in ranges.items():
        if not least <= value <= most:
            raise DataError(f"data.{key}={value}: should be between {least} and {most}.")


def check_boxes_known(
    folder: ShardFolder, kinds: Sequence[str], spec: InputSpec, query_splits: Sequence[str], region_set: str | None
) -> None:
    """Refuse a folder that has no boxes of a kind, before anything long runs.

    Raises:
        DataError: with the commands that make them.
    """
    if DETECTED in kinds and folder.region_sizes(region_set) is None:
        raise DataError(f"data.instances=[{DETECTED}]: {folder.path} holds no detected boxes. {how_to_detect(folder)}")
    if TRUE not in kinds:
        return
    for split in query_splits:
        if not folder.has_true_boxes(split):
            raise DataError(
                f"data.instances=[{TRUE}]: no {split} query of {folder.path} has known boxes (`boxes` in its .json); "
                "only pictures that were composed or annotated have. Leave it out."
            )
    if spec.visual_input != "regions":
        return
    for split in query_splits:
        if region_set is None or not folder.has_true_features(split, region_set):
            whose = folder.path if region_set is None else f"region set '{region_set}' of {folder.path}"
            raise DataError(
                f"data.instances=[{TRUE}]: the model reads region features, and {whose} holds none of the true boxes "
                f"of {split}. {how_to_detect(folder)}"
            )


def how_to_detect(folder: ShardFolder) -> str:
    """The commands that write a detector's boxes beside the shards of a folder."""
    return (
        f"Train a detector (`make train EXP=detector DATA={folder.path}`) and let it write them: "
        f"{how_to_write(folder.path)} Then name them: --data.region_set={DEFAULT_SET}."
    )


def detected_boxes(regions: Regions, options: InstanceOptions) -> Regions:
    """The regions that are instances: score high enough, none overlapping a better one, best first.

    A score of 0 says that nothing was found.

    Raises:
        BadRegionsError: a box of zero area among them.
    """
    scores_R = np.asarray(regions.scores_R, np.float32)
    candidates = _taken(regions, np.flatnonzero((scores_R >= options.min_score) & (scores_R > 0)))
    check_instance_boxes(candidates)
    order = np.argsort(-candidates.scores_R, kind="stable")
    kept = order[non_maximum_suppression(candidates.boxes_R4[order], options.nms_iou)]
    return _taken(candidates, kept[: options.max_instances])


def true_boxes(boxes: Any, size_hw: tuple[int, int]) -> Regions:
    """The `boxes` of a record (px of the upright picture) in their order, with score 1 and without features.

    Raises:
        BadRegionsError: not numbers, N × 4.
    """
    try:
        boxes_N4 = np.array([[float(value) for value in box] for box in boxes], np.float32).reshape(len(boxes), 4)
    except (TypeError, ValueError):
        raise BadRegionsError("malformed_regions", "its boxes are not a list of x1, y1, x2, y2") from None
    return Regions(boxes_N4, np.zeros((len(boxes_N4), 0), np.float16), np.ones(len(boxes_N4), np.float32), size_hw)


def whole_picture(size_hw: tuple[int, int], width: int) -> Regions:
    """What stands for a query in which nothing was found: its picture, with score 0."""
    height, wide = size_hw
    box_14 = np.array([[0, 0, wide, height]], np.float32)
    return Regions(box_14, np.zeros((1, width), np.float16), np.zeros(1, np.float32), size_hw)


def inside(regions: Regions, box_4: np.ndarray) -> Regions:
    """The regions whose centre lies in a box (px), edges included."""
    centre_R2 = (regions.boxes_R4[:, :2] + regions.boxes_R4[:, 2:]) / 2
    return _taken(regions, np.flatnonzero(((centre_R2 >= box_4[:2]) & (centre_R2 <= box_4[2:])).all(axis=1)))


def check_instance_boxes(boxes: Regions) -> None:
    """Refuse boxes that are no part of the picture.

    Raises:
        BadRegionsError: NaN, inverted, outside the picture by more than a pixel, or of zero area in it.
    """
    height, width = boxes.size_hw
    for number, box in enumerate(boxes.boxes_R4.tolist()):
        x1, y1, x2, y2 = box
        finite = all(np.isfinite(box))
        outside = min(x1, y1) < -BOX_TOLERANCE_PX or x2 > width + BOX_TOLERANCE_PX or y2 > height + BOX_TOLERANCE_PX
        empty = min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0)
        if finite and not outside and not empty:
            continue
        what = "holds NaN or infinity" if not finite else "is outside the picture" if outside else "has zero area"
        raise BadRegionsError(
            "non_finite_regions" if not finite else "misplaced_boxes",
            f"box {number}, {box} (x1, y1, x2, y2 in px), {what}; the picture has {width} × {height} px",
        )


def non_maximum_suppression(boxes_N4: np.ndarray, iou: float) -> np.ndarray:
    """Rows that stay (int64), in order, when a box goes that overlaps an earlier one that stays by more than `iou`."""
    corners_N1 = [boxes_N4[:, side : side + 1].astype(np.float64) for side in range(4)]
    left, top = (np.maximum(corners_N1[side], corners_N1[side].T) for side in (0, 1))
    right, bottom = (np.minimum(corners_N1[side], corners_N1[side].T) for side in (2, 3))
    both_NN = (right - left).clip(0) * (bottom - top).clip(0)
    area_N1 = (corners_N1[2] - corners_N1[0]) * (corners_N1[3] - corners_N1[1])
    overlap_NN = both_NN > iou * (area_N1 + area_N1.T - both_NN)
    stays_N = np.ones(len(boxes_N4), bool)
    for row in range(len(boxes_N4)):
        if stays_N[row]:
            stays_N[row + 1 :] &= ~overlap_NN[row, row + 1 :]
    return np.flatnonzero(stays_N)


def _taken(regions: Regions, rows: np.ndarray) -> Regions:
    scores_RC = regions.class_scores_RC
    return Regions(
        np.asarray(regions.boxes_R4, np.float32)[rows],
        regions.features_RD[rows],
        np.asarray(regions.scores_R, np.float32)[rows],
        regions.size_hw,
        None if scores_RC is None else scores_RC[rows],
    )
