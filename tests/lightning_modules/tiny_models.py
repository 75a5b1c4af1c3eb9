"""Small models for tests: any model of the package, by the argument names they have in common."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from typing import Any, TypeVar

import torch

import lightning_modules
from lightning_modules import CAPTURE, CLIP, EGECMP, LXMERT, ImageOnly, RetrievalModule, TextOnly
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.example_batch import ENTITY_ROWS, example_entity_tokens

Model = TypeVar("Model", bound=RetrievalModule)

CLIP_CONFIG: dict[str, Any] = {  # as open_clip writes them
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 120, "width": 32, "heads": 2, "layers": 1},
}

# Width 32 on 24-wide region features; a model takes what its constructor knows.
SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "mask_token_id": 4,
    "text_length": 12,
    "num_regions": 6,
    "region_width": 24,
    "region_classes": 7,
    "num_entities": 4,
    "entity_length": 14,
    "graph_method": "cosine",
    "image_size_px": 64,
    "backbone": "resnet_tiny",
    "width": 32,
    "image_width": 24,
    "output_width": 16,
    "max_positions": 40,
    "layers": 1,
    "heads": 4,
    "ffn": 48,
    "text_layers": 1,
    "text_heads": 4,
    "text_ffn": 48,
    "image_layers": 1,
    "image_heads": 4,
    "image_ffn": 40,
    "cross_layers": 1,
    "cross_heads": 2,
    "cross_width": 16,
    "matching_candidates": 2,
    "co_layers": 1,
    "co_heads": 4,
}


def every_model() -> list[type[RetrievalModule]]:
    """Every RetrievalModule defined in a file of the package, found without registration."""
    files = pkgutil.iter_modules(lightning_modules.__path__, f"{lightning_modules.__name__}.")
    modules = [importlib.import_module(file.name) for file in files]
    found = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, RetrievalModule) and kind.__module__ == module.__name__
    ]
    return sorted((kind for kind in found if not inspect.isabstract(kind)), key=lambda kind: kind.__name__)


def objectives_of(kind: type[RetrievalModule]) -> tuple[str, ...]:
    """All that a model can be trained by: the constant beside its class."""
    return sys.modules[kind.__module__].OBJECTIVES  # type: ignore[attr-defined]


def tiny(kind: type[Model], **changes: Any) -> Model:
    """A model of a class with small sizes; if it has an entity graph, with the one of `build_graph`."""
    known = inspect.signature(kind).parameters
    if "architecture" in known:  # open_clip says the sizes
        return kind(**({"architecture": CLIP_CONFIG, "pretrained": None} | changes))
    sizes = {name: value for name, value in SIZES.items() if name in known}
    model = kind(**(sizes | changes))
    if getattr(model, "graph", None) is not None:
        build_graph(model.graph)  # type: ignore[arg-type]
    return model


def build_graph(graph: EntityGraph, groups: int = 6) -> None:
    """The entities of the example batch, every one alike to those whose row leaves the same remainder."""
    tokens_NL = torch.zeros(ENTITY_ROWS, 16, dtype=torch.int32)
    for row in range(ENTITY_ROWS):
        tokens = example_entity_tokens(row, SIZES["vocab_size"])
        tokens_NL[row, : len(tokens)] = torch.tensor(tokens)
    graph.set_entities(tokens_NL, "of the example batch")
    graph.rebuild(torch.eye(groups)[torch.arange(ENTITY_ROWS) % groups], 0)


def tiny_capture(**changes: Any) -> CAPTURE:
    """CAPTURE with width 32 on 24-wide region features."""
    return tiny(CAPTURE, **changes)


def tiny_ege(**changes: Any) -> EGECMP:
    """EGE-CMP with width 32 on 24-wide region features, its graph built."""
    return tiny(EGECMP, **changes)


def tiny_clip(**changes: Any) -> CLIP:
    """CLIP with width 32 on pictures of 32 px."""
    return tiny(CLIP, **changes)


def tiny_lxmert(**changes: Any) -> LXMERT:
    """LXMERT with width 32 on 24-wide region features of 9 classes, all objectives."""
    return tiny(LXMERT, **({"objectives": ["mlm", "mrm", "mrc", "itm", "clr"], "region_classes": 9} | changes))


def tiny_imageonly(**changes: Any) -> ImageOnly:
    """ImageOnly with width 32 on 24-wide region features."""
    return tiny(ImageOnly, **changes)


def tiny_textonly(**changes: Any) -> TextOnly:
    """TextOnly with width 32."""
    return tiny(TextOnly, **changes)
