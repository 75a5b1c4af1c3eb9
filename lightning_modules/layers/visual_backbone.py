"""Convolutional backbones for grid regions, none with batch statistics: DDP must equal one process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from lightning_modules.errors import ModelError

_SCRATCH = {"resnet_tiny": (16, 32, 64, 128), "resnet_small": (64, 128, 256, 512)}
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group norm; the first one halves the map."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        last_norm = nn.GroupNorm(1, width)
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(1, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            last_norm,
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width_in, width, 1, bias=False))
        # Zero-initialised last norm: each block starts as its skip path (arXiv 1706.02677 §5.1).
        nn.init.zeros_(last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class ScratchBackbone(nn.Module):
    """A small residual network with group norm, stride 16, meant to be trained from scratch.

    Each cell's output is normalised over its channels: at initialisation the raw features are small and much alike
    (standard deviation 0.2 within a cell), so the region embedding would see little but the box.
    """

    stride = 16

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 5, stride=2, padding=2, bias=False),
            nn.GroupNorm(1, widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        map_BHWD = self.blocks(self.stem(pixels_B3HW)).permute(0, 2, 3, 1)
        return F.layer_norm(map_BHWD, map_BHWD.shape[-1:]).permute(0, 3, 1, 2)


class TorchvisionBackbone(nn.Module):
    """A torchvision ResNet without its head, stride 32; frozen batch norm with weights, group norm without."""

    stride = 32

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if weights else _group_norm
        net = get_model(name, weights=None, norm_layer=norm)
        if weights:
            # strict: a checkpoint of another architecture must not load half-way; the head is dropped afterwards
            net.load_state_dict(_read_weights(name, weights), strict=True)
        self.width = net.fc.in_features
        self.body = nn.Sequential(
            net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
        )

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.body(pixels_B3HW)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _read_weights(name: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix in {".pt", ".pth", ".bin"} or "/" in weights:
        raise ModelError(f"backbone weights {weights!r}: no such file")
    else:
        try:
            state = get_model_weights(name)[weights].get_state_dict(progress=False)
        except KeyError:
            known = ", ".join(get_model_weights(name).__members__)
            raise ModelError(
                f"backbone weights {weights!r} are unknown for {name}; known: {known}, or a file"
            ) from None
        except OSError as error:
            raise ModelError(
                f"backbone weights {weights!r} could not be downloaded ({error}); give a local file"
            ) from None
    # FrozenBatchNorm2d has no counter.
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def build_backbone(name: str, weights: str | None = None) -> ScratchBackbone | TorchvisionBackbone:
    """A backbone with attributes `width` (channels) and `stride` (pixels per grid cell).

    Args:
        name: `resnet_tiny` or `resnet_small` (from scratch), or a torchvision ResNet.
        weights: torchvision's weight name or a local state-dict file; None trains from scratch.
    """
    if name in _SCRATCH:
        if weights:
            raise ModelError(f"backbone {name!r} is trained from scratch: leave backbone_weights empty")
        return ScratchBackbone(_SCRATCH[name])
    if name in _TORCHVISION:
        return TorchvisionBackbone(name, weights)
    raise ModelError(f"unknown backbone {name!r}; known: {', '.join([*_SCRATCH, *_TORCHVISION])}")
