"""What does the entity graph cost? Cosine beside a bare FAISS index, and AdaGAE sampled and in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from experiments.bench_search import measured
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.entity_graph.similarity import feature_cosine
from retrieval.nearest import nearest_rows

K, RECALL_AT = 10, 4
BARE_PROBES = 16  # cells that a user without our calibration might search
COSINE_NODES = 190_000  # about the entities of Product1M's training captions
ADAGAE_NODES = (5_000, 190_000)  # the full batch at its largest, and all of Product1M


def bench_graph(
    cosine_nodes: int = COSINE_NODES,
    adagae_nodes: Sequence[int] = ADAGAE_NODES,
    width: int = 768,
    rounds: int = 10,
    steps: int = 50,
    checked: int = 5_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Time the cosine graph beside a bare FAISS inverted file (train, add, search), then AdaGAE at its full schedule.

    Args:
        cosine_nodes, adagae_nodes: 0 and () leave them out.
        checked: rows whose neighbours are also searched exactly.

    Returns: rows {"name", "nodes", "seconds", "ratio" of cosine to the bare index, "peak_mb" of the whole process
        (features included), "added_mb", "recall@4" of the checked rows, "positives": share of nodes with one}.
    """
    rows = _cosine(cosine_nodes, width, checked, seed) if cosine_nodes else []
    return rows + [_adagae(num, width, rounds, steps, seed) for num in adagae_nodes]


def entity_features(num: int, width: int, seed: int) -> Tensor:
    """Features like those of an embedding layer: brands of very unequal size, series within them, own words, LayerNorm.

    All share a long component, as position and segment vectors give it; the entities of a series are close.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    num_series, num_brands = max(1, num // 12), max(1, num // 120)
    brand_of_series = (torch.rand(num_series, generator=generator).square() * num_brands).long()
    series = normal(num_brands, width)[brand_of_series] + 0.8 * normal(num_series, width)
    rows = series[(torch.rand(num, generator=generator).square() * num_series).long()]
    rows += normal(width) * 2
    for start in range(0, num, 16384):  # in place, block by block: the peak is to be the graph's
        part = rows[start : start + 16384]
        part += 0.5 * normal(*part.shape)
        part.copy_(F.layer_norm(part, (width,)))
    return rows


def _cosine(num: int, width: int, checked: int, seed: int) -> list[dict[str, Any]]:
    features_ND = entity_features(num, width, seed)
    chosen = torch.randperm(num, generator=torch.Generator().manual_seed(seed))[:checked].sort().values
    true_QK = _exact(features_ND, chosen)
    contenders: dict[str, Callable[[], np.ndarray]] = {
        f"FAISS IVF, bare, {BARE_PROBES} cells": lambda: _bare_index(features_ND),
        "cosine graph": lambda: feature_cosine(features_ND, K, seed=seed).index_NK.numpy(),
    }
    # Imports and thread pools start outside the clock.
    nearest_rows(features_ND[:64, :8].contiguous(), 2, exact_below=1)
    rows = []
    for name, run in contenders.items():
        row, index_NK = measured(name, run)
        hits = (index_NK[chosen][:, :RECALL_AT, None] == true_QK[:, None]).any(2)
        row[f"recall@{RECALL_AT}"] = float(hits.mean())
        rows.append({"name": name, "nodes": num, **row})
        rows[-1]["ratio"] = row["seconds"] / rows[0]["seconds"]
    return rows


def _centred_unit(features_ND: Tensor) -> Tensor:
    unit_ND = features_ND - features_ND.mean(0)
    unit_ND /= unit_ND.norm(dim=1, keepdim=True)
    return unit_ND


def _exact(features_ND: Tensor, chosen: Tensor) -> np.ndarray:
    """The true neighbours of some rows, by the plainest means."""
    unit_ND = _centred_unit(features_ND)
    found = []
    for rows in chosen.split(256):
        score_BN = unit_ND[rows] @ unit_ND.T
        score_BN[torch.arange(len(rows)), rows] = -torch.inf
        found.append(score_BN.topk(RECALL_AT).indices)
    return torch.cat(found).numpy()


def _bare_index(features_ND: Tensor) -> np.ndarray:
    import faiss

    unit_ND = _centred_unit(features_ND).numpy()
    num, width = unit_ND.shape
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, int(4 * num**0.5), faiss.METRIC_INNER_PRODUCT)
    index.train(unit_ND)
    index.add(unit_ND)
    index.nprobe = BARE_PROBES
    index_NK = index.search(unit_ND, K + 1)[1]
    others_NK = index_NK != np.arange(num)[:, None]
    others_NK[others_NK.all(1), -1] = False  # its own row was not found: the last one goes instead
    return index_NK[others_NK].reshape(num, K)


def _adagae(num: int, width: int, rounds: int, steps: int, seed: int) -> dict[str, Any]:
    graph = EntityGraph("adagae", rounds=rounds, steps=steps, seed=seed)
    graph.set_entities(torch.ones(num, 1, dtype=torch.int32), "bench")
    features_ND = entity_features(num, width, seed)

    def run() -> np.ndarray:
        graph.rebuild(features_ND, interval=0)
        return graph.neighbours.index_NK.numpy()

    kind = "full batch" if num < graph.settings.exact_below else "sampled"
    name = f"AdaGAE {rounds} × {steps}, {kind}"
    row, _ = measured(name, run)
    return {"name": name, "nodes": num, **row, "positives": graph.neighbours.share_with_positive}
