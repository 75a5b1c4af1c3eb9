"""CLIP in sizes that train from scratch where none of the released ones does: configurations in open_clip's words."""

from __future__ import annotations

from typing import Any

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Two CPU cores: 64 patches, 1.1 million parameters without the word vectors.
    "tiny": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 64, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 36, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
    },
    # One GPU: the proportions of ViT-B at half its width and depth.
    "small": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 128, "layers": 6, "width": 384, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 36, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 6},
    },
}
