"""Convolutional backbones for grid regions, none with batch statistics: DDP must equal one process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from lightning_modules.errors import ModelError
from lightning_modules.weights_file import read_weights

_SCRATCH = {"resnet_tiny": (16, 32, 64, 128), "resnet_small": (64, 128, 256, 512)}
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a 1×1 skip path; the map is halved."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width_in, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.skip(F.avg_pool2d(x, 2)))


class ScratchBackbone(nn.Module):
    """A small residual network without normalisation, stride 16, meant to be trained from scratch.

    Group norm learned slowly here, perhaps because it removes absolute colour, which tells shades apart. Instead the
    initial weights are scaled so that each channel has mean 0 and variance 1 on noise with the 1/f spectrum of natural
    pictures. Measured on 96 synthetic products after 120 supervised steps: cross-entropy 2.4 (group norm 3.2 to 3.8,
    batch norm 2.0; one seed) at half the time per step of group norm.
    Source: Mishkin & Matas, "All you need is a good init", arXiv 1511.06422; here on noise, so it needs no data.
    """

    stride = 16

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.width = widths[-1]
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        calibrate_on_noise(self, self)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return unit_scale(self.blocks(torch.relu(self.stem(pixels_B3HW))))


def unit_scale(map_BDHW: Tensor) -> Tensor:
    """Each picture's map at mean square 1.

    Without normalisation inside, the scale of the output drifts by orders of magnitude; this bounds it for each picture
    and leaves all proportions.
    """
    return map_BDHW * torch.rsqrt(map_BDHW.square().mean((1, 2, 3), keepdim=True) + 1e-6)


def _bias(convolution: nn.Conv2d) -> Tensor:
    bias = convolution.bias
    assert isinstance(bias, Tensor)
    return bias


@torch.no_grad()
def calibrate_on_noise(network: nn.Module, run: Callable[[Tensor], object]) -> None:
    """Draw the weights of each convolution, then scale and shift it to mean 0 and variance 1 per channel.

    Args:
        run: Runs all of the network's convolutions in their order.
    """

    def standardise(module: nn.Module, _: tuple[Tensor, ...], out_BDHW: Tensor) -> Tensor:
        assert isinstance(module, nn.Conv2d)
        mean_D, std_D = out_BDHW.mean((0, 2, 3)), out_BDHW.std((0, 2, 3)) + 1e-3
        module.weight /= std_D.view(-1, 1, 1, 1)
        _bias(module).copy_((_bias(module) - mean_D) / std_D)
        return (out_BDHW - mean_D.view(1, -1, 1, 1)) / std_D.view(1, -1, 1, 1)

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(_bias(module))
    handles = [module.register_forward_hook(standardise) for module in convolutions]
    run(_pink_noise(num_pictures=32, size_px=64))
    for handle in handles:
        handle.remove()


def _pink_noise(num_pictures: int, size_px: int) -> Tensor:
    """Seeded noise with a 1/f spectrum, its colour channels correlated, variance 1."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(size_px)[:, None], torch.fft.rfftfreq(size_px)[None])
    white = torch.randn(num_pictures, 3, size_px, size_px, generator=generator)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) / frequency.clamp(min=1 / size_px), s=(size_px, size_px))
    noise = noise + 2 * noise.mean(1, keepdim=True)
    return noise / noise.std()


class TorchvisionBackbone(nn.Module):
    """A torchvision ResNet without its head, stride 32; frozen batch norm with weights, group norm without."""

    stride = 32

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        net = build_resnet(name, weights)
        self.width = net.fc.in_features
        self.body = nn.Sequential(
            net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4
        )

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.body(pixels_B3HW)


def build_resnet(name: str, weights: str | None) -> Any:
    """A torchvision ResNet with its head; frozen batch norm with weights (a name or a file), group norm without."""
    net = get_model(name, weights=None, norm_layer=FrozenBatchNorm2d if weights else _group_norm)
    if weights:
        # strict: a checkpoint of another architecture must not load half-way; users of a part take it afterwards
        try:
            net.load_state_dict(_read_weights(name, weights), strict=True)
        except RuntimeError as problem:
            reason = [line.strip() for line in str(problem).splitlines()][1:2] or [str(problem)]
            raise ModelError(f"backbone weights {weights!r} do not fit {name}: {reason[0][:200]}") from None
    return net


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _read_weights(name: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if path.exists():
        state = read_weights(weights, "backbone weights")
        if not isinstance(state, dict):
            raise ModelError(f"backbone weights {weights!r}: no state dict, but a {type(state).__name__}")
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
