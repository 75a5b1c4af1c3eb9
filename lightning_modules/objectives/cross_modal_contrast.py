"""CLR: cross-modal contrast with the NT-Xent loss over the 2B vectors of a global batch; also of two views alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows, rank, world_size
from lightning_modules.errors import ModelError


class CrossModalContrast(nn.Module):
    """The image and the text of a sample are each other's positive; all other 2B − 2 vectors are negatives.

    l_i = −log( exp(s_ij / τ) / Σ_{k ≠ i} exp(s_ik / τ) ), averaged over the 2B rows, s = cosine.
    Source: SimCLR (arXiv 2002.05709) eq. 1, with CAPTURE §4.3's pairs: unlike CLIP's loss, vectors of the *same*
    modality are negatives too. A model of one modality hands over its two views in place of image and text, which is
    SimCLR itself.

    Args:
        temperature: τ; the released scripts use 0.07.

    Raises:
        ModelError: τ is not above 0.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        if not temperature > 0:
            raise ModelError(f"model.temperature {temperature} must be above 0")
        self.temperature = temperature

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Loss averaged over this rank's 2B rows against the columns of all ranks; similarities in fp32."""
        with torch.autocast(image_BD.device.type, enabled=False):
            image_BD = F.normalize(image_BD.float(), dim=-1)
            text_BD = F.normalize(text_BD.float(), dim=-1)
            columns_CD = torch.cat([gather_rows(image_BD), gather_rows(text_BD)])
            logits = torch.cat([image_BD, text_BD]) @ columns_CD.T / self.temperature
            batch, total = len(image_BD), len(image_BD) * world_size()
            own = torch.arange(batch, device=logits.device) + rank() * batch
            itself = torch.cat([own, own + total])
            positive = torch.cat([own + total, own])
            logits = logits.scatter(1, itself[:, None], float("-inf"))
            return F.cross_entropy(logits, positive)
