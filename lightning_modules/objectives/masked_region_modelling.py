"""MRM: predict the features of the masked regions of the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import all_sum, mean_over_ranks
from lightning_modules.layers.attention import NORM_EPS
from lightning_modules.objectives.draws import Draws


class MaskedRegions(NamedTuple):
    """Which regions are predicted, and which of these the model does not see (90 % of them)."""

    predicted_BR: Tensor
    hidden_BR: Tensor


class RegionLoss(NamedTuple):
    """The loss and, where the target is standardised, its mean variance before that (near 0 = it has collapsed)."""

    loss: Tensor
    target_variance: Tensor | None


class MaskedRegionModelling(nn.Module):
    """Regression of the region feature, averaged over all masked elements of the global batch.

    Source: CAPTURE §4.3 and its released `cls.imagePredictions` head. The whole-image region is neither masked nor
    predicted.
    Differs: where the features come from the network itself (grid regions) the target is standardised per dimension,
    else shrinking the features would lower the loss. The moments are those of the global batch.

    Args:
        output_width: Width of the image outputs this head reads.
        width: Inner width of the head.
        region_width: Width of the features to predict.
        mask_prob: Share of regions predicted; of these 90 % are hidden, 10 % stay visible.
        standardise: Whether to standardise the target.
    """

    def __init__(
        self, output_width: int, width: int, region_width: int, mask_prob: float = 0.15, standardise: bool = False
    ) -> None:
        super().__init__()
        self.mask_prob = mask_prob
        self.standardise = standardise
        self.back = nn.Linear(output_width, width)
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder = nn.Linear(width, region_width)

    def mask(self, region_mask_BR: Tensor, draws: Draws) -> MaskedRegions:
        """Choose regions to predict and, of these, the ones to hide."""
        chosen, fate = draws.uniform(region_mask_BR.shape[0], 2, region_mask_BR.shape[1]).unbind(1)
        predicted = region_mask_BR & (chosen < self.mask_prob)
        return MaskedRegions(predicted, predicted & (fate < 0.9))

    def forward(
        self, outputs_BRD: Tensor, targets_BRD: Tensor, predicted_BR: Tensor, region_mask_BR: Tensor
    ) -> RegionLoss:
        """Mean squared error over the predicted regions.

        Inputs:
            outputs_BRD: Image outputs without the whole-image region.
            targets_BRD: The features as they were before masking.
            predicted_BR, region_mask_BR: bool.
        """
        target_MD = targets_BRD.detach()[predicted_BR].float()
        variance = None
        if self.standardise:
            mean_D, variance_D = _moments(targets_BRD.detach().float(), region_mask_BR)
            target_MD = (target_MD - mean_D) * torch.rsqrt(variance_D + 1e-6)
            variance = variance_D.mean()
        hidden_MD = self.norm(F.gelu(self.transform(self.back(outputs_BRD[predicted_BR]))))
        total = F.mse_loss(self.decoder(hidden_MD).float(), target_MD, reduction="sum")
        return RegionLoss(mean_over_ranks(total, predicted_BR.sum() * targets_BRD.shape[-1]), variance)


@torch.no_grad()
def _moments(features_BRD: Tensor, mask_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Per-dimension mean and variance over the real regions of all ranks."""
    rows_MD = features_BRD[mask_BR]
    count = all_sum(mask_BR.sum().float()).clamp(min=1)
    mean_D = all_sum(rows_MD.sum(0)) / count
    return mean_D, all_sum((rows_MD - mean_D).square().sum(0)) / count
