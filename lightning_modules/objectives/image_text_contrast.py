"""InfoNCE: symmetric contrast of images with texts over a global batch, its temperature learned."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows, rank


class ImageTextContrast(nn.Module):
    """Which of the batch's texts belongs to an image, and which image to a text: the mean of both cross-entropies.

    Source: CLIP (arXiv 2103.00020) figure 3 and §2.4-2.5. Its scale is a vector as far as the optimiser is concerned:
    it is not decayed.

    Args:
        temperature: To start from; the scale is 1 / temperature, learned as its logarithm.
        max_scale: The scale is kept at or below it, which CLIP found necessary against instability.
    """

    def __init__(self, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        self.max_log_scale = math.log(max_scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Loss averaged over this rank's rows against the columns of all ranks; similarities in fp32."""
        with torch.no_grad():  # before use is after the step before; a clamp with gradient would hold a scale beyond it
            self.log_scale.clamp_(max=self.max_log_scale)
        with torch.autocast(image_BD.device.type, enabled=False):
            image_BD = F.normalize(image_BD.float(), dim=-1)
            text_BD = F.normalize(text_BD.float(), dim=-1)
            scale = self.log_scale.exp()
            own = torch.arange(len(image_BD), device=image_BD.device) + rank() * len(image_BD)
            of_image = F.cross_entropy(scale * image_BD @ gather_rows(text_BD).T, own)
            of_text = F.cross_entropy(scale * text_BD @ gather_rows(image_BD).T, own)
            return (of_image + of_text) / 2
