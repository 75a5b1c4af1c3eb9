"""Which boxes of a query become instances, on hand-made geometry."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules import DataError
from datamodules.instances import (
    InstanceOptions,
    check_instance_boxes,
    check_options,
    detected_boxes,
    inside,
    non_maximum_suppression,
    true_boxes,
    whole_picture,
)
from datamodules.regions import BadRegionsError, Regions, boxes_with_area

OPTIONS = InstanceOptions()


def _regions(boxes: list, scores: list[float] | None = None, size_hw: tuple[int, int] = (100, 200)) -> Regions:
    boxes_R4 = np.array(boxes, np.float32).reshape(-1, 4)
    features_RD = np.arange(2 * len(boxes_R4), dtype=np.float16).reshape(-1, 2)
    return Regions(boxes_R4, features_RD, np.array(scores or [1.0] * len(boxes_R4), np.float32), size_hw)


def test_detected_boxes_are_ordered_by_score_and_carry_their_features() -> None:
    found = detected_boxes(_regions([[0, 0, 20, 20], [50, 0, 90, 40], [100, 50, 180, 90]], [0.6, 0.9, 0.7]), OPTIONS)
    assert found.boxes_R4.tolist() == [[50, 0, 90, 40], [100, 50, 180, 90], [0, 0, 20, 20]]
    assert found.scores_R.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.features_RD.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert boxes_with_area(found)[0].tolist() == pytest.approx([0.25, 0, 0.45, 0.4, 0.08])


def test_of_overlapping_boxes_the_better_one_stays() -> None:
    # IoU of the first two 90/110, of the first and the third 50/150: a third.
    boxes, scores = [[0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10]], [0.8, 0.9, 0.7]
    assert detected_boxes(_regions(boxes, scores), OPTIONS).scores_R.tolist() == pytest.approx([0.9, 0.7])
    assert len(detected_boxes(_regions(boxes, scores), OPTIONS._replace(nms_iou=0.9)).boxes_R4) == 3
    # What is suppressed suppresses nothing: a chain keeps its ends.
    chain = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)
    assert non_maximum_suppression(chain, 0.5).tolist() == [0, 2]
    assert non_maximum_suppression(np.zeros((0, 4), np.float32), 0.5).tolist() == []
    assert non_maximum_suppression(np.array([[0, 0, 4, 4]] * 2, np.float32), 1.0).tolist() == [0, 1]


def test_suppression_equals_torchvision_s() -> None:
    import torch
    from torchvision.ops import nms

    rng = np.random.default_rng(0)
    for _ in range(50):
        corner = rng.uniform(0, 80, (30, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (30, 2))], 1).astype(np.float32)
        expected = nms(torch.from_numpy(boxes), torch.arange(30, 0, -1).float(), 0.4)
        assert non_maximum_suppression(boxes, 0.4).tolist() == expected.tolist()


def test_thresholds_and_the_most() -> None:
    boxes = [[10 * n, 0, 10 * n + 9, 9] for n in range(8)]
    scores = [0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9, 0.0]
    assert len(detected_boxes(_regions(boxes, scores), OPTIONS).boxes_R4) == 5, "the threshold itself counts"
    some = detected_boxes(_regions(boxes, scores), OPTIONS._replace(max_instances=2))
    assert some.scores_R.tolist() == pytest.approx([0.9, 0.8])
    every = detected_boxes(_regions(boxes, scores), OPTIONS._replace(min_score=0.0))
    assert len(every.boxes_R4) == 7, "a score of 0 says that nothing was found"
    assert len(detected_boxes(_regions(boxes, scores), OPTIONS._replace(min_score=0.95)).boxes_R4) == 0


def test_equal_scores_keep_the_order_they_were_stored_in() -> None:
    found = detected_boxes(_regions([[30, 0, 39, 9], [0, 0, 9, 9], [60, 0, 69, 9]]), OPTIONS)
    assert found.boxes_R4[:, 0].tolist() == [30, 0, 60]


def test_a_region_belongs_to_a_box_that_holds_its_centre() -> None:
    regions = _regions([[0, 0, 10, 10], [8, 0, 20, 10], [0, 0, 60, 60], [10, 0, 30, 10]])
    found = inside(regions, np.array([0, 0, 20, 10], np.float32))
    assert found.boxes_R4.tolist() == [[0, 0, 10, 10], [8, 0, 20, 10], [10, 0, 30, 10]], "the edge counts"
    assert found.features_RD.tolist() == [[0, 1], [2, 3], [6, 7]]
    assert len(inside(regions, np.array([90, 40, 99, 50], np.float32)).boxes_R4) == 0


def test_true_boxes_keep_their_order_and_whole_pictures_have_score_0() -> None:
    boxes = true_boxes([[5, 5, 20, 20], [0, 0, 3, 3]], (40, 50))
    assert (boxes.boxes_R4.tolist(), boxes.scores_R.tolist()) == ([[5, 5, 20, 20], [0, 0, 3, 3]], [1, 1])
    whole = whole_picture((40, 50), 3)
    assert boxes_with_area(whole).tolist() == [[0, 0, 1, 1, 1]]
    assert (whole.scores_R.tolist(), whole.features_RD.shape) == ([0], (1, 3))
    assert len(true_boxes([], (40, 50)).boxes_R4) == 0
    for bad in ([[1, 2, 3]], ["a"], [[1, 2, 3, None]], 5):
        with pytest.raises(BadRegionsError, match="not a list of x1, y1, x2, y2"):
            true_boxes(bad, (40, 50))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, float("nan"), 9], "holds NaN or infinity"),
        ([0, 0, float("inf"), 9], "holds NaN or infinity"),
        ([5, 5, 5, 9], "has zero area"),
        ([9, 5, 5, 9], "has zero area"),
        ([-9, 5, 0, 9], "is outside the picture"),
        ([150, 5, 250, 9], "is outside the picture; the picture has 200 × 100 px"),
        ([200, 5, 201, 9], "has zero area"),
    ],
)
def test_boxes_that_are_no_part_of_the_picture_are_refused(box: list[float], message: str) -> None:
    with pytest.raises(BadRegionsError, match=message):
        check_instance_boxes(_regions([[0, 0, 5, 5], box]))
    check_instance_boxes(_regions([[-1, -1, 201, 101]]))  # rounding


@pytest.mark.parametrize(
    ("kinds", "changes", "message"),
    [
        (["detectd"], {}, "no 'detectd'; did you mean 'detected'"),
        (["boxes"], {}, "There are detected and true"),
        (["true", "true"], {}, "name each once"),
        ([], {"max_instances": 37}, "data.max_instances=37: should be between 1 and 36"),
        ([], {"max_instances": 0}, "between 1 and 36"),
        ([], {"min_score": -0.1}, "data.instance_min_score"),
        ([], {"nms_iou": 1.5}, "data.instance_nms_iou"),
        ([], {"crop_margin": float("nan")}, "data.crop_margin"),
    ],
)
def test_bad_settings_are_told(kinds: list[str], changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_options(kinds, OPTIONS._replace(**changes))
