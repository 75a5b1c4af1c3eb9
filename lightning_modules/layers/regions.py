"""Three visual inputs behind one interface: a module that turns a batch into regions.

    regions(batch, hidden_BR=None) -> Regions          hidden_BR: True = this region must not be seen

Region 0 is not among them: `with_global` puts the whole-image region in front, after masking.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.batch import ProductBatch
from lightning_modules.errors import ModelError
from lightning_modules.layers.visual_backbone import build_backbone

# Mean and standard deviation of ImageNet's pixels, which pretrained backbones expect (torchvision's weights).
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


GlobalPooling = Literal["mean", "max"]


class Regions(NamedTuple):
    """Region features with their boxes (x1, y1, x2, y2 in [0, 1], relative area) and mask (True = real)."""

    features_BRD: Tensor
    boxes_BR5: Tensor
    mask_BR: Tensor


def with_global(regions: Regions, pooling: GlobalPooling = "mean", batch: ProductBatch | None = None) -> Regions:
    """Put the whole-image region first: mean or maximum of the real regions, box (0, 0, 1, 1, 1), always real.

    Of an instance, the detector's feature of its box takes this place, with the box in whole-picture coordinates.

    Args:
        batch: What the regions are of; None = of no instances.

    Source: CAPTURE's released data loader: the sum is taken after masking and divided by the number of real boxes. The
    maximum is that of Tolias et al., "Particular object retrieval with integral max-pooling", arXiv 1511.05879.
    """
    features_BRD, boxes_BR5, mask_BR = regions
    if pooling == "max":
        whole_B1D = features_BRD.masked_fill(~mask_BR.unsqueeze(-1), float("-inf")).amax(1, keepdim=True)
        whole_B1D = whole_B1D.masked_fill(~mask_BR.any(1).view(-1, 1, 1), 0.0)  # a picture without regions
    else:
        real_BR1 = mask_BR.unsqueeze(-1).to(features_BRD.dtype)
        whole_B1D = (features_BRD * real_BR1).sum(1, keepdim=True) / real_BR1.sum(1, keepdim=True).clamp(min=1)
    box_B15 = boxes_BR5.new_ones(len(boxes_BR5), 1, 5)  # filled on the device: a list would be copied there each step
    box_B15[..., :2] = 0
    if batch is not None and batch.instance_feature_BD is not None:
        whole_B1D, box_B15 = _of_instances(batch, whole_B1D, box_B15)
    return Regions(
        torch.cat([whole_B1D, features_BRD], 1),
        torch.cat([box_B15, boxes_BR5], 1),
        torch.cat([mask_BR.new_ones(len(mask_BR), 1), mask_BR], 1),
    )


def _of_instances(batch: ProductBatch, whole_B1D: Tensor, box_B15: Tensor) -> tuple[Tensor, Tensor]:
    """The first region of instances; a query in which nothing was found (score 0) keeps that of its picture."""
    feature_BD, box_B5, score_B = batch.instance_feature_BD, batch.instance_box_B5, batch.instance_score_B
    if feature_BD is None or box_B5 is None or score_B is None:
        raise ModelError("a batch of instances must hold instance_feature_BD, instance_box_B5 and instance_score_B")
    if feature_BD.shape[-1] != whole_B1D.shape[-1]:
        raise ModelError(
            f"instance_feature_BD is {feature_BD.shape[-1]} wide, the regions beside it {whole_B1D.shape[-1]}"
        )
    found_B11 = (score_B > 0).view(-1, 1, 1)
    feature_B1D = feature_BD.unsqueeze(1).to(whole_B1D.dtype)
    return (
        torch.where(found_B11, feature_B1D, whole_B1D),
        torch.where(found_B11, box_B5.unsqueeze(1).to(box_B15.dtype), box_B15),
    )


class PrecomputedRegions(nn.Module):
    """Region features a detector left in the shard; hidden ones are zeroed and keep their box."""

    standardise_target = False  # the published MRM regresses the raw 2048-d feature

    def __init__(self, region_width: int) -> None:
        super().__init__()
        self.region_width = region_width

    def forward(self, batch: ProductBatch, hidden_BR: Tensor | None = None) -> Regions:
        if batch.features_BRD is None or batch.boxes_BR5 is None or batch.region_mask_BR is None:
            raise ModelError(
                "visual_input 'regions' needs region features, which these shards do not hold; "
                "train on pixels instead (visual_input: grid, or SCALE=tiny or small) or add regions to the shards"
            )
        features_BRD = self.features(batch).float()
        if hidden_BR is not None:
            features_BRD = features_BRD.masked_fill(hidden_BR.unsqueeze(-1), 0.0)
        return Regions(features_BRD, batch.boxes_BR5, batch.region_mask_BR)

    def features(self, batch: ProductBatch) -> Tensor:
        """What MRM predicts: the features as they came, none hidden."""
        assert batch.features_BRD is not None
        width = batch.features_BRD.shape[-1]
        if width != self.region_width:
            raise ModelError(
                f"the shards' region features have width {width}, but model.region_width={self.region_width}: set "
                f"model.region_width={width}"
            )
        return batch.features_BRD

    @torch.no_grad()
    def mask(self, batch: ProductBatch) -> Tensor:
        """Which regions are real, without computing any feature."""
        assert batch.region_mask_BR is not None
        return batch.region_mask_BR


class GridRegions(nn.Module):
    """Cells of a convolutional backbone's feature map, row by row, as regions.

    A hidden cell's pixels are replaced by the mean colour *before* the backbone: a receptive field reaches over its
    own cell, so zeroing features would leak what MRM has to predict.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    boxes_R5: Tensor
    standardise_target = True  # the target is the network's own, so its scale must not be a way to win

    def __init__(self, backbone: str, image_size_px: int, weights: str | None) -> None:
        super().__init__()
        # Channels last: what convolution kernels want; measured 1.7 × faster on CPU, forward and backward.
        self.backbone = build_backbone(backbone, weights).to(memory_format=torch.channels_last)
        self.region_width = self.backbone.width
        self.cells = image_size_px // self.backbone.stride
        if image_size_px % self.backbone.stride:
            raise ModelError(
                f"image_size_px {image_size_px} is not a multiple of the backbone's stride {self.backbone.stride}"
            )
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("boxes_R5", _grid_boxes(self.cells), persistent=False)

    def forward(self, batch: ProductBatch, hidden_BR: Tensor | None = None) -> Regions:
        if batch.images_B3HW is None:
            raise ModelError("visual_input 'grid' needs pictures, which this batch does not hold")
        pixels = (batch.images_B3HW.float() - self.pixel_mean) / self.pixel_std
        if hidden_BR is not None:
            cells = hidden_BR.view(-1, 1, self.cells, self.cells).to(pixels.dtype)
            pixels = pixels * (1 - nn.functional.interpolate(cells, size=pixels.shape[-2:], mode="nearest"))
        features_BRD = self.backbone(pixels.contiguous(memory_format=torch.channels_last)).flatten(2).transpose(1, 2)
        return Regions(features_BRD, self.boxes_R5.expand(len(pixels), -1, -1), self.mask(batch))

    def features(self, batch: ProductBatch) -> Tensor:
        """What MRM predicts: the cells' features with none hidden."""
        return self(batch).features_BRD

    def mask(self, batch: ProductBatch) -> Tensor:
        """Every cell is real."""
        return torch.ones(len(batch.index_B), self.cells**2, dtype=torch.bool, device=batch.index_B.device)


def build_visual_input(
    kind: str, region_width: int, backbone: str, image_size_px: int, weights: str | None
) -> PrecomputedRegions | GridRegions:
    """The visual input of a model: "regions" of `region_width`, or the "grid" of a backbone over pixels."""
    return PrecomputedRegions(region_width) if kind == "regions" else GridRegions(backbone, image_size_px, weights)


def _grid_boxes(cells: int) -> Tensor:
    edge = torch.arange(cells, dtype=torch.float32) / cells
    y, x = torch.meshgrid(edge, edge, indexing="ij")
    x1, y1 = x.flatten(), y.flatten()
    return torch.stack([x1, y1, x1 + 1 / cells, y1 + 1 / cells, torch.full_like(x1, 1 / cells**2)], dim=1)
