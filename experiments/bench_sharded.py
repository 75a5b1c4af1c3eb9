"""Does a gallery that is dealt over ranks give the lists of one process, and what does a rank hold of it?"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from datamodules.batch import ProductBatch
from experiments.bench_search import measured
from lightning_modules.embedding_store import EmbeddingStore, InstanceStore
from lightning_modules.instance_levels import InstanceSearch
from lightning_modules.split_search import SplitSearch
from retrieval import Ranking, official_metrics

BATCH = 64  # items or queries that a rank embeds at a time
MOST_INSTANCES = 8
CPU = torch.device("cpu")


class Size(NamedTuple):
    """How much is searched."""

    queries: int
    instances: float  # of a query, on average
    items: int
    width: int
    labels: int
    depth: int
    seed: int


def bench_sharded(
    num_queries: int = 6_547,
    instances: float = 2.86,
    num_items: int = 40_033,
    width: int = 256,
    num_labels: int = 4_000,
    depth: int = 100,
    worlds: Sequence[int] = (1, 2),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Search at Product1M's size by instance, and the gallery among itself, on so many gloo processes of one thread.

    Vectors are made batch by batch on the rank that would embed them: noisy copies of their label's centre, one item
    in twenty equal to another one. What is timed: all collectives, the search, merging instances, the metrics.

    Returns: one row for each number of processes, {"name", "seconds", "gallery_mb": embeddings of the gallery on the
        fullest rank, "peak_mb" and "added_mb" (over what it held before the search) of the hungriest, "mAP@10",
        "same": whether every rank has the lists, scores and metrics of the first row, to the bit}.
    """
    size = Size(num_queries, instances, num_items, width, num_labels, depth, seed)
    rows, first = [], None
    for world in worlds:
        found = _on_ranks(world, size)
        first = first or found[0]["digest"]
        rows.append(
            {
                "name": f"{world} process{'es' if world > 1 else ''}",
                "seconds": max(one["seconds"] for one in found),
                "gallery_mb": max(one["gallery_mb"] for one in found),
                "peak_mb": max(one["peak_mb"] or 0.0 for one in found) or None,
                "added_mb": max(one["added_mb"] or 0.0 for one in found) or None,
                "mAP@10": found[0]["mAP@10"],
                "same": str({one["digest"] for one in found} == {first}),
            }
        )
    return rows


def _on_ranks(world: int, size: Size) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (world, folder, size), nprocs=world, join=True)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, size: Size) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    gallery, queries = _gallery(rank, world, size), _queries(rank, world, size)
    found: dict[str, Any] = {}

    def run() -> np.ndarray:
        found.update(_searched(gallery, queries, size))
        return np.zeros(0)

    row, _ = measured("", run)
    gallery_mb = gallery.vectors("product").numel() * 4 / 2**20
    torch.save({**row, **found, "gallery_mb": gallery_mb}, Path(folder, f"{rank}.pt"))
    if world > 1:
        dist.destroy_process_group()


def _searched(gallery: EmbeddingStore, queries: InstanceStore, size: Size) -> dict[str, Any]:
    query_ids = np.array([f"q{row:06d}" for row in range(size.queries)])
    # Items in no order of ids, so that ties are not broken by row.
    gallery_ids = np.array([f"g{row:06d}" for row in np.random.default_rng(size.seed).permutation(size.items)])
    gallery.check_complete(gallery_ids, "gallery", CPU)
    queries.check_complete(query_ids, "queries", CPU)
    search = SplitSearch(queries, gallery, query_ids, gallery_ids, CPU, size.depth, "torch")
    merged = InstanceSearch(search, "round_robin")("product", "product")
    among = search.among_gallery("product", np.arange(0, size.items, 8), 10)
    of_queries, of_items = ([(str(row % size.labels),) for row in range(num)] for num in (size.queries, size.items))
    metrics = official_metrics(merged, of_queries, of_items)
    return {"digest": _digest((merged, among), metrics), "mAP@10": metrics["mAP@10"]}


def _digest(rankings: Sequence[Ranking], metrics: dict[str, float]) -> str:
    digest = hashlib.sha256(repr(sorted(metrics.items())).encode())
    for ranking in rankings:
        digest.update(ranking.index_QK.tobytes() + ranking.score_QK.tobytes())
    return digest.hexdigest()


def _gallery(rank: int, world: int, size: Size) -> EmbeddingStore:
    store = EmbeddingStore()
    for start in range(rank * BATCH, size.items, world * BATCH):
        rows_B = np.arange(start, min(start + BATCH, size.items))
        vectors_BD = _vectors(rows_B % size.labels, size, start)
        vectors_BD[5::20] = vectors_BD[4::20][: len(vectors_BD[5::20])]
        store.update(_batch(rows_B), {"product": vectors_BD})
    return store


def _queries(rank: int, world: int, size: Size) -> InstanceStore:
    """Each query has an instance of its own label; the others are of any."""
    store = InstanceStore()
    for start in range(rank * BATCH, size.queries, world * BATCH):
        generator = np.random.default_rng([size.seed, 1, start])
        rows_B = np.arange(start, min(start + BATCH, size.queries))
        num_B = 1 + generator.binomial(MOST_INSTANCES - 1, (size.instances - 1) / (MOST_INSTANCES - 1), len(rows_B))
        owner_I = np.repeat(rows_B, num_B)
        number_I = np.concatenate([np.arange(num) for num in num_B])
        label_I = np.where(number_I == 0, owner_I, generator.integers(0, size.labels, len(owner_I))) % size.labels
        batch = _batch(owner_I * MOST_INSTANCES + number_I)._replace(
            owner_B=torch.from_numpy(owner_I),
            instance_box_B5=torch.ones(len(owner_I), 5),
            instance_score_B=torch.ones(len(owner_I)),
        )
        store.update(batch, {"product": _vectors(label_I, size, size.items + start)})
    return store


def _vectors(label_B: np.ndarray, size: Size, number: int) -> torch.Tensor:
    """Unit vectors around their labels' centres, the same whichever rank makes them."""
    centre_BD = np.stack(
        [np.random.default_rng([size.seed, 2, label]).standard_normal(size.width, np.float32) for label in label_B]
    )
    noise_BD = np.random.default_rng([size.seed, 3, number]).standard_normal(centre_BD.shape, np.float32)
    return torch.nn.functional.normalize(torch.from_numpy(centre_BD + 2 * noise_BD))


def _batch(rows_B: np.ndarray) -> ProductBatch:
    tokens_BT = torch.zeros(len(rows_B), 0, dtype=torch.int64)
    return ProductBatch(torch.from_numpy(rows_B), tokens_BT, tokens_BT.bool())
