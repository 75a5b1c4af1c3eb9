"""Small CAPTURE models for tests."""

from __future__ import annotations

from typing import Any

from lightning_modules import CAPTURE


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
