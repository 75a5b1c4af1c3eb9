"""How fast is the search? Exact top-k of a Product1M-sized gallery, beside a bare FAISS flat index in the same run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import rank

_STATM = Path("/proc/self/statm")  # Linux only; elsewhere memory stays None


def bench_search(
    num_queries: int = 18_700,
    num_items: int = 40_033,
    width: int = 1024,
    k: int = 100,
    repeats: int = 2,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Time `rank` with both CPU backends beside `faiss.IndexFlatIP.search`, which neither breaks ties nor re-scores.

    On a GPU also with embeddings that lie there. They take turns, `repeats` times, and the shortest time of each
    counts: a machine that is shared or warms up then favours nobody much. Building the FAISS index is not counted; the
    checks and re-scoring of `rank` are.

    Returns: one row for each, {"name", "seconds", "ratio" to FAISS flat, "peak_mb" of the whole process during the run
        (None where the system does not tell), "added_mb" over what it held when the run began, "same_order": share of
        queries whose list equals the one of backend "torch"}. The FAISS row holds its own copy of the gallery.
    """
    import faiss
    import torch

    query_QD, gallery_ND = _unit_rows(num_queries, width, seed), _unit_rows(num_items, width, seed + 1)
    query_ids = np.array([f"q{row:08d}" for row in range(num_queries)])
    gallery_ids = np.array([f"g{row:08d}" for row in range(num_items)])
    index = faiss.IndexFlatIP(width)

    def by_rank(backend: str, device: str = "cpu") -> Callable[[], np.ndarray]:
        queries, gallery = (torch.from_numpy(rows).to(device) for rows in (query_QD, gallery_ND))
        # imports, thread pools and kernels start outside the clock
        rank(queries[:64], gallery[:256], query_ids[:64], gallery_ids[:256], backend=backend)
        return lambda: rank(queries, gallery, query_ids, gallery_ids, k=k, backend=backend).index_QK

    contenders = {
        "FAISS IndexFlatIP, bare": lambda: index.search(query_QD, min(k, num_items))[1],
        "rank, torch": by_rank("torch"),
        "rank, faiss": by_rank("faiss"),
    }
    if torch.cuda.is_available():
        contenders["rank, torch, on the GPU"] = by_rank("torch", "cuda")
    rows: dict[str, dict[str, Any]] = {}
    lists: dict[str, np.ndarray] = {}
    for _ in range(repeats):
        for name, run in contenders.items():
            if name.startswith("FAISS"):
                index.add(gallery_ND)
            row, lists[name] = measured(name, run)
            index.reset()  # the others must not carry its copy of the gallery
            rows[name] = min(row, rows.get(name, row), key=lambda one: one["seconds"])
    for name, row in rows.items():
        row["ratio"] = row["seconds"] / rows["FAISS IndexFlatIP, bare"]["seconds"]
        row["same_order"] = float((lists[name] == lists["rank, torch"]).all(1).mean())
    return list(rows.values())


def _unit_rows(num_rows: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((num_rows, width), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def measured(name: str, run: Callable[[], np.ndarray]) -> tuple[dict[str, Any], np.ndarray]:
    """Run once; wall-clock seconds and the highest resident memory seen, sampled every 5 ms."""
    before_mb, peak_mb, done = _resident_mb(), _resident_mb(), threading.Event()

    def watch() -> None:
        nonlocal peak_mb
        while before_mb is not None and not done.wait(0.005):
            peak_mb = max(peak_mb or 0.0, _resident_mb() or 0.0)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    added_mb = None if peak_mb is None or before_mb is None else peak_mb - before_mb
    return {"name": name, "seconds": seconds, "peak_mb": peak_mb, "added_mb": added_mb}, result


def _resident_mb() -> float | None:
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    import resource

    return pages * resource.getpagesize() / 2**20
