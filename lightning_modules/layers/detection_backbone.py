"""Feature pyramids for the detector: a light one from scratch, ResNet-50 for the paper recipe. No batch statistics."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from lightning_modules.layers.visual_backbone import ResidualBlock, build_resnet, calibrate_on_noise, unit_scale

LIGHT_WIDTHS = (24, 48, 96, 128, 160)  # strides 2, 4, 8, 16, 32; the pyramid reads the last three
_RESNET_WIDTHS = (256, 512, 1024, 2048)


class LightPyramid(nn.Module):
    """Maps at strides 8, 16 and 32 of a small residual network without normalisation, each with what lies above it.

    Calibrated like `ScratchBackbone`; every map is scaled to unit mean square for each picture, which bounds what a
    network without normalisation can drift to and leaves all proportions.
    """

    strides = (8, 16, 32)

    def __init__(self, widths: tuple[int, ...] = LIGHT_WIDTHS, out_channels: int = 96) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        calibrate_on_noise(self, self._maps)
        self.pyramid = FeaturePyramidNetwork(list(widths[-3:]), out_channels)

    def forward(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        maps = self._maps(pixels_B3HW)[-3:]
        return self.pyramid(OrderedDict((str(level), unit_scale(x_BDHW)) for level, x_BDHW in enumerate(maps)))

    def _maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        maps = [torch.relu(self.stem(pixels_B3HW))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps


def resnet50_pyramid(weights: str | None) -> BackboneWithFPN:
    """ResNet-50 with a pyramid of 256 channels at strides 4 to 64 (Lin et al., arXiv 1612.03144).

    Frozen batch norm where there are weights, group norm where it is trained from scratch.
    """
    net = build_resnet("resnet50", weights)
    layers = {f"layer{number}": str(number - 1) for number in (1, 2, 3, 4)}
    return BackboneWithFPN(net, layers, list(_RESNET_WIDTHS), 256, LastLevelMaxPool())
