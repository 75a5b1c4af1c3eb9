"""What tells products apart, learned without labels: regions of one cut-out, pasted twice, against all others."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.errors import ModelError


class InstanceContrast(nn.Module):
    """Regions that show the same cut-out are each other's positives; all other regions of the process are negatives.

    l_i = −mean over positives j of log( exp(s_ij / τ) / Σ_{k ≠ i} exp(s_ik / τ) ), averaged over the regions with a
    positive; s = cosine of linear projections; 0 where nothing is shown twice.
    Source: Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362, eq. 2, with the cut-out in the place of
    the label: instance discrimination (Wu et al., arXiv 1805.01978), for regions.

    Args:
        width: D of the region features.
        temperature: τ.
        projected_width: Of the vectors compared.

    Raises:
        ModelError: τ is not above 0.
    """

    def __init__(self, width: int, temperature: float = 0.1, projected_width: int = 128) -> None:
        super().__init__()
        if not temperature > 0:
            raise ModelError(f"model.temperature {temperature} must be above 0")
        self.temperature = temperature
        self.project = nn.Linear(width, projected_width)

    def forward(self, features_MD: Tensor, cut_outs_M: Tensor) -> Tensor:
        """Loss of M regions; cut_outs_M says which cut-out each shows (int64)."""
        with torch.autocast(features_MD.device.type, enabled=False):
            unit_MD = F.normalize(self.project(features_MD.float()), dim=-1)
            itself_MM = torch.eye(len(unit_MD), dtype=torch.bool, device=unit_MD.device)
            logits_MM = (unit_MD @ unit_MD.T / self.temperature).masked_fill(itself_MM, -1e9)  # −inf × 0 would be NaN
            positive_MM = (cut_outs_M[:, None] == cut_outs_M) & ~itself_MM
            count_M = positive_MM.sum(1)
            sum_M = (logits_MM.log_softmax(1) * positive_MM).sum(1)
            shown_twice_M = (count_M > 0).to(sum_M.dtype)
            return -(sum_M / count_M.clamp(min=1)).sum() / shown_twice_M.sum().clamp(min=1)
