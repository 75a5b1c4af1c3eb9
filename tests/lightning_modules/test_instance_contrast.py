"""The contrast between regions, beside a slow transcription."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_modules import ModelError
from lightning_modules.objectives.instance_contrast import InstanceContrast


def slowly(objective: InstanceContrast, features: torch.Tensor, cut_outs: list[int]) -> float:
    unit = F.normalize(objective.project(features), dim=-1)
    losses = []
    for i, own in enumerate(cut_outs):
        similar = [math.exp(float(unit[i] @ unit[k]) / objective.temperature) for k in range(len(cut_outs))]
        others = sum(value for k, value in enumerate(similar) if k != i)
        positives = [k for k, other in enumerate(cut_outs) if other == own and k != i]
        if positives:
            losses.append(-sum(math.log(similar[k] / others) for k in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("cut_outs", [[0, 1, 0, 1, 2], [5, 5, 5, 1], [3, 4, 5]])
def test_it_equals_a_slow_transcription(cut_outs: list[int]) -> None:
    torch.manual_seed(0)
    objective, features = InstanceContrast(6, 0.2, 4), torch.randn(len(cut_outs), 6)
    found = objective(features, torch.tensor(cut_outs))
    assert float(found) == pytest.approx(slowly(objective, features, cut_outs), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_without_a_pair_it_is_0_and_has_a_gradient(count: int) -> None:
    objective = InstanceContrast(6)
    loss = objective(torch.randn(count, 6), torch.arange(count))
    loss.backward()
    assert float(loss) == 0
    assert objective.project.weight.grad is not None


def test_a_bad_temperature_is_refused() -> None:
    with pytest.raises(ModelError, match="temperature 0"):
        InstanceContrast(4, temperature=0.0)
