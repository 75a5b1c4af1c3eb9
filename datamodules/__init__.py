"""Raw catalogues -> shards -> batches. Knows no model.

Exports are lazy: light commands read manifests without paying for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.batch import DetectionBatch, InputSpec, ProductBatch
    from datamodules.detection.pasted_pictures import PastedPictures
    from datamodules.errors import DataError
    from datamodules.product1m import Product1M

__all__ = ["DataError", "DetectionBatch", "InputSpec", "PastedPictures", "Product1M", "ProductBatch"]

_HOME = {
    "DataError": "datamodules.errors",
    "DetectionBatch": "datamodules.batch",
    "InputSpec": "datamodules.batch",
    "PastedPictures": "datamodules.detection.pasted_pictures",
    "Product1M": "datamodules.product1m",
    "ProductBatch": "datamodules.batch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
