"""MRM: predict the features of the masked regions of the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import all_sum, mean_over_ranks
from lightning_modules.layers.attention import NORM_EPS
from lightning_modules.objectives.chosen import Chosen, chosen
from lightning_modules.objectives.draws import Draws


class MaskedRegions(NamedTuple):
    """Which regions are predicted, which of these the model does not see (90 % of them), and where those may stand."""

    predicted_BR: Tensor
    hidden_BR: Tensor
    chosen: Chosen


class Moments(NamedTuple):
    """Mean and variance of region features per dimension."""

    mean_D: Tensor
    variance_D: Tensor


class MaskedRegionModelling(nn.Module):
    """Regression of the region feature, averaged over all masked elements of the global batch.

    Source: CAPTURE §4.3 and its released `cls.imagePredictions` head. The whole-image region is neither masked nor
    predicted.
    Differs: where the features come from the network itself (grid regions) the caller gives their moments and the
    target is standardised per dimension, else shrinking the features would lower the loss. The moments are those of the
    global batch.

    Args:
        output_width: Width of the image outputs this head reads.
        width: Inner width of the head.
        region_width: Width of the features to predict.
        mask_prob: Share of regions predicted; of these 90 % are hidden, 10 % stay visible.
    """

    def __init__(self, output_width: int, width: int, region_width: int, mask_prob: float = 0.15) -> None:
        super().__init__()
        self.mask_prob = mask_prob
        self.back = nn.Linear(output_width, width)
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder = nn.Linear(width, region_width)

    def mask(self, region_mask_BR: Tensor, draws: Draws) -> MaskedRegions:
        """Choose regions to predict and, of these, the ones to hide."""
        uniform_B2R = draws.uniform(region_mask_BR.shape[0], 2, region_mask_BR.shape[1])
        choice_BR, fate_BR = draws.send(uniform_B2R).unbind(1)
        predicted = region_mask_BR & (choice_BR < self.mask_prob)
        return MaskedRegions(predicted, predicted & (fate_BR < 0.9), chosen(uniform_B2R[:, 0] < self.mask_prob, draws))

    def forward(
        self, outputs_MD: Tensor, targets_MD: Tensor, predicted_M: Tensor, moments: Moments | None = None
    ) -> Tensor:
        """Mean squared error over the predicted regions of all ranks (0 where there are none).

        Inputs:
            outputs_MD: Image outputs at any regions, in any shape (..., D); never the whole-image region.
            targets_MD: Their features as they were before masking.
            predicted_M: bool, which of them are to be predicted.
            moments: Of the features, to standardise the target with.
        """
        target_MD = targets_MD.detach().float()
        if moments is not None:
            target_MD = (target_MD - moments.mean_D) * torch.rsqrt(moments.variance_D + 1e-6)
        hidden_MD = self.norm(F.gelu(self.transform(self.back(outputs_MD))))
        squared_M = (self.decoder(hidden_MD).float() - target_MD).square().sum(-1)
        return mean_over_ranks((squared_M * predicted_M).sum(), predicted_M.sum() * targets_MD.shape[-1])


@torch.no_grad()
def region_moments(features_BRD: Tensor, mask_BR: Tensor) -> Moments:
    """Per-dimension mean and variance over the real regions of all ranks."""
    features_BRD, weight_BR1 = features_BRD.detach().float(), mask_BR.unsqueeze(-1).float()
    count = all_sum(weight_BR1.sum()).clamp(min=1)
    mean_D = all_sum((features_BRD * weight_BR1).sum((0, 1))) / count
    return Moments(mean_D, all_sum(((features_BRD - mean_D).square() * weight_BR1).sum((0, 1))) / count)
