"""Which regions a masked objective predicts and which of these the model does not see."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_modules.objectives.chosen import Chosen, chosen
from lightning_modules.objectives.draws import Draws


class MaskedRegions(NamedTuple):
    """Which regions are predicted, which of these the model does not see (90 % of them), and where those may stand."""

    predicted_BR: Tensor
    hidden_BR: Tensor
    chosen: Chosen


def mask_regions(region_mask_BR: Tensor, mask_prob: float, draws: Draws) -> MaskedRegions:
    """Each real region is predicted with probability `mask_prob`, and a predicted one hidden with probability 0.9."""
    uniform_B2R = draws.uniform(region_mask_BR.shape[0], 2, region_mask_BR.shape[1])
    choice_BR, fate_BR = draws.send(uniform_B2R).unbind(1)
    predicted = region_mask_BR & (choice_BR < mask_prob)
    return MaskedRegions(predicted, predicted & (fate_BR < 0.9), chosen(uniform_B2R[:, 0] < mask_prob, draws))
