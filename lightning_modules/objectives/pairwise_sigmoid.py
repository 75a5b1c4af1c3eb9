"""SigLIP's loss: every image-text pair of a global batch is a yes-or-no question of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows, rank


class PairwiseSigmoid(nn.Module):
    """−log sigmoid(±(scale · cosine + bias)) summed over all pairs, + for a sample's own pair, per sample.

    Source: SigLIP (arXiv 2303.15343) §3.2 and algorithm 1.
    Differs: the texts of all ranks are gathered at once instead of passed on from rank to rank, with the same loss and
    gradient; that takes memory for B rows of B · world size pairs.

    Args:
        scale, bias: To start from. The bias makes the many negatives of the first steps weigh little.
    """

    def __init__(self, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Loss of this rank's images against the texts of all ranks, per image; similarities in fp32."""
        with torch.autocast(image_BD.device.type, enabled=False):
            image_BD = F.normalize(image_BD.float(), dim=-1)
            text_CD = gather_rows(F.normalize(text_BD.float(), dim=-1))
            logits_BC = self.log_scale.exp() * image_BD @ text_CD.T + self.bias
            own_B1 = (torch.arange(len(image_BD), device=image_BD.device) + rank() * len(image_BD))[:, None]
            own_pair_BC = torch.arange(len(text_CD), device=image_BD.device) == own_B1
            return -F.logsigmoid(torch.where(own_pair_BC, logits_BC, -logits_BC)).sum() / len(image_BD)
