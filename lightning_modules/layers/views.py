"""Two random views of the same pictures, for self-supervised contrast; made on the model's device, drawn on the host.

Drawn from `Draws`, so that a resumed run sees the views the uninterrupted one would have seen, and each rank those that
one process on the whole batch makes of its rows. Nothing here asks the device for a value.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from datamodules.batch import ProductBatch
from lightning_modules.objectives.draws import Draws

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as every colour jitter takes it
_LONGEST_SIDE = math.log(4 / 3)  # of a crop, over its other side: 3/4 to 4/3, Inception's


class Views(NamedTuple):
    """How far a view is from the picture it is of.

    Source: SimCLR (arXiv 2002.05709) appendix A: random crop and resize, flip, colour jitter.
    Differs: pictures here are of products, which colour and lettering tell apart: crops keep at least 30 % of the
    area (there 8 %), brightness, contrast and saturation change by 40 % at most (80 %) and always in this order, and
    there is no change of hue, no greyscale and no blur.

    Args:
        smallest_crop: Least share of a picture's area that a view shows.
        jitter: Strength of the colour jitter: each factor is drawn from 1 − jitter to 1 + jitter.
        hidden: Share of the stored regions that a view leaves out, rounded down: at least one stays.
    """

    smallest_crop: float = 0.3
    jitter: float = 0.4
    hidden: float = 0.5

    def of(self, batch: ProductBatch, draws: Draws) -> ProductBatch:
        """One view of each sample: pixels (float, 0 to 255) where the batch holds them, else stored regions."""
        if batch.images_B3HW is not None:
            return batch._replace(images_B3HW=self._of_pictures(batch.images_B3HW, draws))
        if batch.region_mask_BR is not None:
            return batch._replace(region_mask_BR=self._of_regions(batch.region_mask_BR, draws))
        return batch

    def two(self, batch: ProductBatch, draws: Draws) -> ProductBatch:
        """A first and a second view as 2B rows: row b and row B + b show the same picture."""
        first, second = self.of(batch, draws), self.of(batch, draws)
        pairs = zip(first, second, strict=True)
        with torch.autocast(batch.index_B.device.type, enabled=False):  # on a CPU, bf16's knows no cat of float16
            return ProductBatch._make(
                None if one is None or other is None else torch.cat([one, other]) for one, other in pairs
            )

    @torch.no_grad()
    def _of_pictures(self, images_B3HW: Tensor, draws: Draws) -> Tensor:
        drawn_B8 = draws.uniform(len(images_B3HW), 8)
        crop_B23 = draws.send(self._crops(drawn_B8[:, :5]))
        factor_B3 = draws.send(1 + self.jitter * (2 * drawn_B8[:, 5:] - 1))
        # Under bf16 autocast the grid would be one of bf16: places of a 256th of the picture.
        with torch.autocast(images_B3HW.device.type, enabled=False):
            grid_BHW2 = F.affine_grid(crop_B23, list(images_B3HW.shape), align_corners=False)
            view_B3HW = F.grid_sample(images_B3HW.float(), grid_BHW2, padding_mode="border", align_corners=False)
            return _jittered(view_B3HW, factor_B3)

    def _crops(self, drawn_B5: Tensor) -> Tensor:
        """Affine maps of a view's square, [-1, 1]², onto a box of the picture's, mirrored in half of the cases."""
        area_B, shape_B, x_B, y_B, flip_B = drawn_B5.unbind(1)
        area_B = self.smallest_crop + (1 - self.smallest_crop) * area_B
        stretch_B = torch.exp(_LONGEST_SIDE * (2 * shape_B - 1) / 2)
        width_B, height_B = (area_B.sqrt() * stretch_B).clamp(max=1), (area_B.sqrt() / stretch_B).clamp(max=1)
        mirror_B, none_B = torch.where(flip_B < 0.5, -1.0, 1.0), torch.zeros_like(area_B)
        to_x_B3 = torch.stack([mirror_B * width_B, none_B, (1 - width_B) * (2 * x_B - 1)], 1)
        to_y_B3 = torch.stack([none_B, height_B, (1 - height_B) * (2 * y_B - 1)], 1)
        return torch.stack([to_x_B3, to_y_B3], 1)

    @torch.no_grad()
    def _of_regions(self, mask_BR: Tensor, draws: Draws) -> Tensor:
        """The mask without a random part of its real regions: stored features cannot be cropped again."""
        drawn_BR = draws.send(draws.uniform(*mask_BR.shape))
        # Place of each region in a random order that puts the real ones first: how many there are, the device knows.
        place_BR = drawn_BR.masked_fill(~mask_BR, 2.0).argsort(1).argsort(1)
        hidden_B1 = (self.hidden * mask_BR.sum(1, keepdim=True)).floor()
        return mask_BR & (place_BR >= hidden_B1)


def _jittered(images_B3HW: Tensor, factor_B3: Tensor) -> Tensor:
    """Brightness, then contrast (around the picture's mean grey), then saturation, each by its factor; 0 to 255."""
    brightness, contrast, saturation = factor_B3.view(-1, 3, 1, 1, 1).unbind(1)
    images_B3HW = (images_B3HW * brightness).clamp(0, 255)
    mean_B111 = _grey(images_B3HW).mean((1, 2, 3), keepdim=True)
    images_B3HW = (mean_B111 + contrast * (images_B3HW - mean_B111)).clamp(0, 255)
    grey_B1HW = _grey(images_B3HW)
    return (grey_B1HW + saturation * (images_B3HW - grey_B1HW)).clamp(0, 255)


def _grey(images_B3HW: Tensor) -> Tensor:
    red, green, blue = images_B3HW.split(1, 1)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue
