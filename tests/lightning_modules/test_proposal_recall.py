"""Which boxes count as found, and the numbers made of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batch import DetectionBatch
from lightning_modules import ModelError
from lightning_modules.callbacks.detection_evaluation import DetectionEvaluation
from lightning_modules.instance_detector import Proposals
from lightning_modules.proposal_recall import found_at


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_each_proposal_counts_for_one_box() -> None:
    true = boxes((0, 0, 10, 10), (0, 0, 10, 9), (50, 50, 60, 60))
    assert found_at(boxes((0, 0, 10, 10)), true, 0.5).tolist() == [0, 1, 1]
    twice = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    assert found_at(twice, true, 0.5).tolist() == [0, 1, 2]


def test_the_threshold_counts_and_nothing_finds_nothing() -> None:
    half = boxes((0, 0, 10, 5))
    assert found_at(half, boxes((0, 0, 10, 10)), 0.5).tolist() == [0]
    assert found_at(half, boxes((0, 0, 10, 10)), 0.51).tolist() == [1]
    assert found_at(boxes(), boxes((0, 0, 1, 1)), 0.5).tolist() == [0]
    assert found_at(half, boxes(), 0.5).tolist() == []


box = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(st.lists(box, max_size=8), st.lists(box, max_size=5), st.sampled_from([0.3, 0.5, 0.75]))
def test_the_first_k_ranks_are_those_of_a_list_of_k(proposals: list, true: list, iou: float) -> None:
    whole = found_at(boxes(*proposals), boxes(*true), iou)
    for k in range(len(proposals)):
        part = found_at(boxes(*proposals[:k]), boxes(*true), iou)
        assert np.array_equal(whole < k, part < k)


class Module:
    """Takes what a callback logs."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}

    def log_dict(self, values: dict[str, float], sync_dist: bool) -> None:
        self.logged |= values


def evaluated(found: list[Proposals], true: list[torch.Tensor], **settings: Any) -> dict[str, float]:
    callback, module = DetectionEvaluation(**settings), Module()
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(eval_names=lambda stage: (stage,)), sanity_checking=False)
    most = max(len(rows) for rows in true)
    padded = torch.stack([torch.cat([rows, torch.zeros(most - len(rows), 4)]) for rows in true])
    mask = torch.stack([torch.arange(most) < len(rows) for rows in true])
    nothing = torch.zeros(len(true))
    batch = DetectionBatch(nothing, nothing, padded, mask, nothing, nothing)
    callback.on_test_epoch_start(trainer, module)  # type: ignore[arg-type]
    callback.on_test_batch_end(trainer, module, {"proposals": found}, batch, 0)  # type: ignore[arg-type]
    callback.on_test_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert module.logged == {f"test/{key}": value for key, value in callback.results["test"].items()}
    return callback.results["test"]


def proposals(rows: torch.Tensor, scores: list[float]) -> Proposals:
    return Proposals(rows, torch.tensor(scores), torch.zeros(len(rows), 2))


def test_numbers_of_a_hand_made_case() -> None:
    true = [boxes((0, 0, 10, 10), (20, 20, 30, 30)), boxes((0, 0, 4, 4))]
    found = [proposals(boxes((40, 40, 50, 50), (0, 0, 10, 9)), [0.9, 0.8]), proposals(boxes((0, 0, 4, 4)), [0.4])]
    metrics = evaluated(found, true, ks=(1, 10), ious=(0.5, 0.95))
    assert metrics["recall@1/IoU50"] == pytest.approx(1 / 3)
    assert metrics["recall@10/IoU50"] == pytest.approx(2 / 3)
    assert metrics["recall@10/IoU95"] == pytest.approx(1 / 3)
    assert metrics["proposals"] == 1.0  # two of the first picture score 0.5 or more, none of the second
    assert metrics["precision/IoU50"] == 0.5
    assert (metrics["pictures"], metrics["true_boxes"]) == (2, 3)


def test_a_list_that_is_shorter_than_k_does_not_count_what_it_misses() -> None:
    metrics = evaluated([proposals(boxes(), [])], [boxes((0, 0, 4, 4))])
    assert all(value == 0 for key, value in metrics.items() if key.startswith("recall"))


def test_without_true_boxes_only_proposals_are_counted() -> None:
    assert evaluated([proposals(boxes((0, 0, 1, 1)), [0.9])], [boxes()]) == {"proposals": 1.0, "pictures": 1.0}


@pytest.mark.parametrize("settings", [{"ious": (0.0,)}, {"ks": (0,)}, {"min_score": 2.0}])
def test_bad_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ModelError, match="must lie in"):
        DetectionEvaluation(**settings)


def test_cut_offs_that_leave_out_the_monitored_number_are_refused() -> None:
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(monitor="pasted/recall@10/IoU75")])
    module: Any = Module()
    DetectionEvaluation().setup(trainer, module, "fit")
    with pytest.raises(ModelError, match=r"pasted/recall@10/IoU75 is not measured"):
        DetectionEvaluation(ks=(5,)).setup(trainer, module, "fit")
