"""MRM: predict the features of the masked regions of the picture."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import all_sum, mean_over_ranks
from lightning_modules.layers.attention import NORM_EPS
from lightning_modules.objectives.chosen import check_rate
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_regions import MaskedRegions, mask_regions


class Moments(NamedTuple):
    """Mean and variance of region features per dimension."""

    mean_D: Tensor
    variance_D: Tensor


class MaskedRegionModelling(nn.Module):
    """Regression of the region feature, averaged over all masked elements of the global batch.

    Source: CAPTURE §4.3 and its released `cls.imagePredictions` head. The whole-image region is neither masked nor
    predicted. The tied decoder is that of UNITER (arXiv 1909.11740) §3.2, MRFR, and its released
    `RegionFeatureRegression`.
    Differs: where the features come from the network itself (grid regions) the caller gives their moments and the
    target is standardised per dimension, else shrinking the features would lower the loss. The moments are those of the
    global batch.

    Args:
        output_width: Width of the image outputs this head reads; None = `width`, and no layer back to it.
        width: Inner width of the head.
        region_width: Width of the features to predict.
        mask_prob: Share of regions predicted; of these 90 % are hidden, 10 % stay visible.
        tied: The decoder is the transpose of the layer that embeds region features, with a bias of its own; it is
            handed to `forward`.
    """

    def __init__(
        self, output_width: int | None, width: int, region_width: int, mask_prob: float = 0.15, tied: bool = False
    ) -> None:
        super().__init__()
        check_rate("mrm", mask_prob)
        self.mask_prob = mask_prob
        self.back = nn.Identity() if output_width is None else nn.Linear(output_width, width)
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder = None if tied else nn.Linear(width, region_width)
        if tied:
            self.bias = nn.Parameter(torch.zeros(region_width))

    def mask(self, region_mask_BR: Tensor, draws: Draws) -> MaskedRegions:
        """Choose regions to predict and, of these, the ones to hide."""
        return mask_regions(region_mask_BR, self.mask_prob, draws)

    def forward(
        self,
        outputs_MD: Tensor,
        targets_MD: Tensor,
        predicted_M: Tensor,
        moments: Moments | None = None,
        feature_WD: Tensor | None = None,
    ) -> Tensor:
        """Mean squared error over the predicted regions of all ranks (0 where there are none).

        Inputs:
            outputs_MD: Image outputs at any regions, in any shape (..., D); never the whole-image region.
            targets_MD: Their features as they were before masking.
            predicted_M: bool, which of them are to be predicted.
            moments: Of the features, to standardise the target with.
            feature_WD: Weight of the Linear that embeds region features, for a tied decoder and only for that.
        """
        target_MD = targets_MD.detach().float()
        if moments is not None:
            target_MD = (target_MD - moments.mean_D) * torch.rsqrt(moments.variance_D + 1e-6)
        hidden_MD = self.norm(F.gelu(self.transform(self.back(outputs_MD))))
        squared_M = (self._decode(hidden_MD, feature_WD).float() - target_MD).square().sum(-1)
        return mean_over_ranks((squared_M * predicted_M).sum(), predicted_M.sum() * targets_MD.shape[-1])

    def _decode(self, hidden_MW: Tensor, feature_WD: Tensor | None) -> Tensor:
        if (self.decoder is None) != (feature_WD is not None):
            raise TypeError("feature_WD belongs to a tied decoder, and a tied decoder needs it")
        if feature_WD is not None:
            return F.linear(hidden_MW, feature_WD.T, self.bias)
        assert self.decoder is not None
        return self.decoder(hidden_MW)


@torch.no_grad()
def region_moments(features_BRD: Tensor, mask_BR: Tensor) -> Moments:
    """Per-dimension mean and variance over the real regions of all ranks."""
    features_BRD, weight_BR1 = features_BRD.detach().float(), mask_BR.unsqueeze(-1).float()
    count = all_sum(weight_BR1.sum()).clamp(min=1)
    mean_D = all_sum((features_BRD * weight_BR1).sum((0, 1))) / count
    return Moments(mean_D, all_sum(((features_BRD - mean_D).square() * weight_BR1).sum((0, 1))) / count)
