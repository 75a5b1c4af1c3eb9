"""What does a training step of each method cost? All at their published sizes, beside CAPTURE in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import lightning_modules
from experiments.bench_step import Variant, compare

# The first is compared with.
METHODS = ("CAPTURE", "EGECMP", "CLIP", "UNITER", "ViLBERT", "LXMERT", "ImageOnly", "TextOnly")
ARGUMENTS: dict[str, tuple[tuple[str, Any], ...]] = {"CLIP": (("pretrained", None),)}  # nothing is downloaded
BATCH_SIZE, CUDA_BATCH_SIZE = 16, 64


def bench_methods() -> list[dict[str, Any]]:
    """One optimiser step of every method that there is: fp32 on a CPU, bf16 on a GPU, nothing compiled."""
    return compare_methods(published())


def published() -> list[Variant]:
    """The methods of the package at their published sizes."""
    cuda = torch.cuda.is_available()
    batch_size, dtype = (CUDA_BATCH_SIZE, torch.bfloat16) if cuda else (BATCH_SIZE, None)
    return [
        Variant(name, dtype=dtype, batch_size=batch_size, model=name, arguments=ARGUMENTS.get(name, ()))
        for name in METHODS
        if name in lightning_modules.__all__
    ]


def bench_graph_losses() -> list[dict[str, Any]]:
    """One optimiser step of EGE-CMP at its published size without the entity graph, then with both ranking losses."""
    return compare_methods(with_and_without_graph())


def with_and_without_graph() -> list[Variant]:
    """EGE-CMP without the graph first; with it, every entity of the batch has related ones to be ranked by."""
    ranked = next(variant for variant in published() if variant.model == "EGECMP")
    rest = (*ranked.arguments, ("objectives", ["mlm", "mlm_entity", "mrm", "clr"]))
    return [ranked._replace(name="EGE-CMP, no graph", arguments=rest), ranked._replace(name="EGE-CMP, node + subgraph")]


def compare_methods(variants: Sequence[Variant], rounds: int = 4) -> list[dict[str, Any]]:
    """As `compare`, in what is of interest of a method.

    Returns: rows {"name", "step_s" (fastest; of a method with several tasks the mean by their shares),
        "samples_per_s", "ratio" of samples/s to the first method's in the same turn, "parameters_m" trained, in
        millions, "peak_mb"}.
    """
    return [_row(row) for row in compare(variants, rounds)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    if "note" in row:
        return row
    return {
        "name": row["name"],
        "step_s": row["step_s"],
        "samples_per_s": row["samples_per_s"],
        "ratio": row.get("speedup"),
        "parameters_m": row["parameters"] / 1e6,
        "peak_mb": row["peak_mb"],
    }
