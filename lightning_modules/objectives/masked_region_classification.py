"""MRC: predict what a detector recognised in the masked regions of the picture."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import mean_over_ranks
from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import NORM_EPS
from lightning_modules.objectives.chosen import check_rate
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_regions import MaskedRegions, mask_regions


class MaskedRegionClassification(nn.Module):
    """Classification of the hidden region, averaged over all predicted regions of the global batch.

    "hard": cross-entropy with the detector's most probable class. "kl": Σ_c p_c (log p_c − log q_c), p the detector's
    scores normalised to sum 1, q the prediction.
    Source: UNITER (arXiv 1909.11740) §3.2, MRC and MRC-kl, and its released `RegionClassification` head; "kl" is also
    the image half of ViLBERT's (arXiv 1908.02265) §2.2 masked multi-modal modelling, "hard" LXMERT's (arXiv 1908.07490)
    §3.1.2 detected-label classification.
    Differs: all stored classes count. UNITER's detector gives class 0 to the background, which its code leaves out of
    the hard target; leave it out when features are stored. UNITER's code averages the divergence over classes too,
    which only scales it.

    Args:
        width: Width of the image outputs this head reads, and its inner width.
        region_classes: Number of the detector's classes.
        target: What is compared, "hard" or "kl".
        mask_prob: Share of regions predicted; of these 90 % are hidden, 10 % stay visible.
        weight_by_confidence: "hard" only: a region's loss is multiplied by the detector's score of its class, as in
            LXMERT's released code; the mean still divides by the number of regions. LXMERT's code does so for visible
            regions too and multiplies by 1/0.15 instead.
    """

    def __init__(
        self,
        width: int,
        region_classes: int,
        target: Literal["hard", "kl"],
        mask_prob: float = 0.15,
        weight_by_confidence: bool = False,
    ) -> None:
        super().__init__()
        if target not in ("hard", "kl"):
            raise ModelError(f"region classification: target {target!r} is unknown; known: hard, kl")
        if weight_by_confidence and target != "hard":
            raise ModelError("region classification: weight_by_confidence goes with target 'hard' only")
        check_rate("mrm", mask_prob)
        self.region_classes = region_classes
        self.target = target
        self.mask_prob = mask_prob
        self.weight_by_confidence = weight_by_confidence
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.decoder = nn.Linear(width, region_classes)

    def mask(self, region_mask_BR: Tensor, draws: Draws) -> MaskedRegions:
        """Choose regions to predict and, of these, the ones to hide."""
        return mask_regions(region_mask_BR, self.mask_prob, draws)

    def forward(self, outputs_MD: Tensor, class_scores_MC: Tensor, predicted_M: Tensor) -> Tensor:
        """Loss averaged over the predicted regions of all ranks (0 where there are none).

        Inputs:
            outputs_MD: Image outputs at any regions, in any shape (..., D); never the whole-image region.
            class_scores_MC: The detector's scores of each class, at least 0; they need not sum to 1.
            predicted_M: bool, which of them are to be predicted.
        """
        classes = class_scores_MC.shape[-1]
        if classes != self.region_classes:
            raise ModelError(
                f"regions have scores of {classes} classes, the model expects {self.region_classes}; set "
                f"model.region_classes={classes}"
            )
        score_MC = class_scores_MC.detach().float()
        logits_MC = self.decoder(self.norm(F.gelu(self.transform(outputs_MD)))).float()
        if self.target == "hard":
            confidence_M, class_M = score_MC.max(-1)
            loss_M = F.cross_entropy(logits_MC.flatten(0, -2), class_M.flatten(), reduction="none").view(class_M.shape)
            if self.weight_by_confidence:
                loss_M = loss_M * confidence_M
        else:
            total_M1 = score_MC.sum(-1, keepdim=True)
            # Under the mask scores may be all 0: no distribution, and a divergence of 0 instead of one of 0 / 0.
            probability_MC = score_MC / total_M1.clamp(min=torch.finfo(torch.float32).tiny)
            loss_M = F.kl_div(logits_MC.log_softmax(-1), probability_MC, reduction="none").sum(-1)
        return mean_over_ranks((loss_M * predicted_M).sum(), predicted_M.sum())
