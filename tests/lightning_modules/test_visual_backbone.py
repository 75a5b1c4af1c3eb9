"""The backbone that is trained from scratch starts well-scaled, sees colour, and needs no company in its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from lightning_modules.layers.visual_backbone import _pink_noise, build_backbone


def test_first_features_are_scaled_and_alive() -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        features = build_backbone("resnet_tiny")(_pink_noise(16, 64))
    assert features.shape == (16, 128, 4, 4)
    torch.testing.assert_close(features.square().mean((1, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    assert (features.std((0, 2, 3)) > 0.05).float().mean() > 0.9  # hardly a channel is dead


def test_absolute_colour_survives() -> None:
    """Shades are told apart by colour alone."""
    torch.manual_seed(3)
    backbone = build_backbone("resnet_tiny")
    shape = _pink_noise(1, 64) * 0.3
    red, green = torch.tensor([1.0, -0.5, -0.5]), torch.tensor([-0.5, 1.0, -0.5])
    with torch.no_grad():
        one, other = (backbone(shape + colour.view(1, 3, 1, 1)).mean((2, 3)) for colour in (red, green))
    assert F.cosine_similarity(one, other).item() < 0.95


def test_a_picture_does_not_depend_on_its_company() -> None:
    torch.manual_seed(3)
    backbone = build_backbone("resnet_tiny")
    pictures = _pink_noise(5, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pictures[2:3]), backbone(pictures)[2:3], atol=1e-5, rtol=1e-5)
