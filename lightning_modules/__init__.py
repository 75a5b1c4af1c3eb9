"""Models: batches in, losses and unit-norm embeddings out. One paper, one file."""

from __future__ import annotations

import importlib
from typing import Any

# Imported on first use: `import lightning_modules` alone must not load torch (light commands of the CLI).
_EXPORTS = {
    "CAPTURE": "lightning_modules.capture",
    "EGECMP": "lightning_modules.ege_cmp",
    "CLIP": "lightning_modules.clip",
    "UNITER": "lightning_modules.uniter",
    "ViLBERT": "lightning_modules.vilbert",
    "LXMERT": "lightning_modules.lxmert",
    "ImageOnly": "lightning_modules.image_only",
    "TextOnly": "lightning_modules.text_only",
    "InstanceDetector": "lightning_modules.instance_detector",
    "RetrievalModule": "lightning_modules.retrieval_module",
    "ModelError": "lightning_modules.errors",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'lightning_modules' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
