"""Small models for tests: `tiny_<class>(**changes)` for every model of the package."""

from __future__ import annotations

from typing import Any

from lightning_modules import CAPTURE, CLIP, ImageOnly, TextOnly


def tiny_capture(**changes: Any) -> CAPTURE:
    """CAPTURE with width 32 on 24-wide region features."""
    sizes: dict[str, Any] = {
        "vocab_size": 120,
        "mask_token_id": 4,
        "text_length": 12,
        "num_regions": 6,
        "region_width": 24,
        "image_size_px": 64,
        "backbone": "resnet_tiny",
        "width": 32,
        "output_width": 16,
        "max_positions": 40,
        "text_layers": 1,
        "text_heads": 4,
        "text_ffn": 48,
        "image_layers": 1,
        "image_heads": 4,
        "image_ffn": 40,
        "cross_layers": 1,
        "cross_heads": 2,
        "cross_width": 16,
        "co_layers": 1,
        "co_heads": 4,
    }
    return CAPTURE(**(sizes | changes))


CLIP_CONFIG: dict[str, Any] = {  # as open_clip writes them
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 120, "width": 32, "heads": 2, "layers": 1},
}


def tiny_clip(**changes: Any) -> CLIP:
    """CLIP with width 32 on pictures of 32 px."""
    return CLIP(**({"architecture": CLIP_CONFIG, "pretrained": None} | changes))


def tiny_imageonly(**changes: Any) -> ImageOnly:
    """ImageOnly with width 32 on 24-wide region features."""
    sizes: dict[str, Any] = {
        "num_regions": 6,
        "region_width": 24,
        "image_size_px": 64,
        "backbone": "resnet_tiny",
        "width": 32,
        "output_width": 16,
        "image_layers": 1,
        "image_heads": 4,
        "image_ffn": 40,
    }
    return ImageOnly(**(sizes | changes))


def tiny_textonly(**changes: Any) -> TextOnly:
    """TextOnly with width 32, which reads all positions: a random first token would give an untrained caption away."""
    sizes: dict[str, Any] = {
        "vocab_size": 120,
        "text_length": 12,
        "width": 32,
        "output_width": 16,
        "max_positions": 40,
        "text_layers": 1,
        "text_heads": 4,
        "text_ffn": 48,
        "text_pooling": "mean",
    }
    return TextOnly(**(sizes | changes))
