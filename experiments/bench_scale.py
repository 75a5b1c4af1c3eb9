"""A million pairs: built, verified, and streamed for one pass, with every sample counted and memory watched."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.errors import UsageError
from experiments.process_usage import Usage, cpu_seconds, proportional_mb, run_cli

if TYPE_CHECKING:
    from datamodules.batch import ProductBatch
    from datamodules.loaders import TrainLoader

NUM_WORKERS = 2
BATCH_SIZE = 64
IMAGE_SIZE_PX = 64
_LOOKS = 90  # at memory, in a pass
_MOST_PASS_SECONDS, _MOST_FIRST_SECONDS = 900, 10

Rows = list[dict[str, Any]]


def bench_scale(folder: Path | None = None, pairs: int | None = None) -> Rows:
    """Build a folder of source "million" where there is none, verify it, stream one pass of its training pairs.

    Args:
        folder: A shard folder of any source with pictures, or where to build one; None = below data/.
        pairs: Of a folder to be built; None = as many as Product1M has.

    Returns:
        Rows {"what", "value", "unit", "aim"}; figures of a process are of the largest one.

    Raises:
        UsageError: The folder holds another number of pairs, or is not in order.
    """
    from datamodules.catalogues.million import Million

    catalogue = Million() if pairs is None else Million(num_pairs=pairs)
    if folder is None:
        folder = Path("data") / (catalogue.name if pairs is None else f"{catalogue.name}-{pairs}")
    rows: Rows = []
    if not (folder / "manifest.json").is_file():
        setting = ["--set", f"num_pairs={catalogue.num_pairs}", "--no-entities"]
        rows += _usage_rows("building", run_cli(["data", "build", catalogue.name, "--out", str(folder), *setting]))
    elif pairs is not None and _num_pairs(folder) != pairs:
        raise UsageError(f"{folder} holds {_num_pairs(folder)} pairs, not {pairs}: leave out --pairs, or --folder")
    rows += _usage_rows("verifying", run_cli(["data", "verify", str(folder)]))
    return [_row("pairs", _num_pairs(folder)), *rows, *stream_one_pass(folder)]


def stream_one_pass(folder: Path, num_workers: int = NUM_WORKERS) -> Rows:
    """Rows about one pass of the training stream with decoding, augmentation and tokenisation."""
    from datamodules.batch import InputSpec
    from datamodules.product1m import Product1M

    data = Product1M(str(folder), batch_size=BATCH_SIZE, num_workers=num_workers)
    data.use_input_spec(InputSpec(visual_input="grid", image_size_px=IMAGE_SIZE_PX))
    began = time.perf_counter()
    data.setup("fit")
    set_up = time.perf_counter()
    batches = _endless(data.train_dataloader())
    first_batch = next(batches)
    first = time.perf_counter()
    count = PassCount(
        [shard["samples"] for shard in data.manifest["splits"]["train"]["shards"]], data.seed, num_workers
    )
    every = max(1, data.steps_per_epoch // _LOOKS)
    memory: dict[int, list[float]] = defaultdict(list)
    batch, number, mine = first_batch, 0, time.process_time()
    while count.add(number, batch.index_B.numpy()):
        if number % every == 0:
            for pid in _processes():
                memory[pid].append(proportional_mb(pid))
        batch, number = next(batches), number + 1
    seconds = time.perf_counter() - first
    cpu = time.process_time() - mine + sum(map(cpu_seconds, _processes()[1:]))
    data.teardown("fit")
    return [
        _row("setup()", set_up - began, "s"),
        _row("first batch after setup()", first - set_up, "s", _MOST_FIRST_SECONDS),
        _row("training pairs", len(count.seen_N)),
        _row(f"one pass, {num_workers} workers", seconds, "s", _MOST_PASS_SECONDS),
        _row("pace", len(count.seen_N) / seconds, "pairs/s"),
        _row("processor time of it, all processes", cpu, "s"),
        _row("pairs never seen in the pass", int((count.seen_N == 0).sum()), aim=0),
        _row("pairs seen more than once", int((count.seen_N > 1).sum()), aim=0),
        _row("pairs skipped", data.skipped.total(), aim=0),
        *_memory_rows(list(memory.values())),
    ]


class PassCount:
    """How often each row came up in the first pass. Batches of several workers come in turn, and each worker goes on
    with the second pass where its share of the first one ends.

    Args:
        shard_samples: Samples in each shard.
        seed: Of the stream.
        num_workers: Of the only rank.
    """

    def __init__(self, shard_samples: list[int], seed: int, num_workers: int) -> None:
        from datamodules.shard_order import samples_of_pass

        consumers = max(1, num_workers)
        self.seen_N = np.zeros(sum(shard_samples), np.int64)
        self._left = [samples_of_pass(seed, shard_samples, one, consumers) for one in range(consumers)]

    def add(self, number: int, index_B: np.ndarray) -> bool:
        """Count batch `number`; False when the pass is over."""
        worker = number % len(self._left)
        rows = index_B[: self._left[worker]]
        np.add.at(self.seen_N, rows, 1)
        self._left[worker] -= len(rows)
        return any(self._left)


def _endless(loader: TrainLoader[ProductBatch]) -> Iterator[ProductBatch]:
    while True:
        yield from loader


def _processes() -> list[int]:
    """This process and its workers."""
    return [os.getpid(), *sorted(child.pid for child in multiprocessing.active_children() if child.pid)]


def _num_pairs(folder: Path) -> int:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return sum(split["samples"] for split in manifest["splits"].values())


def _usage_rows(what: str, usage: Usage) -> Rows:
    return [
        _row(what, usage.seconds, "s"),
        _row(f"{what}, processor time", usage.cpu_seconds, "s"),
        _row(f"{what}, peak memory of a process", usage.peak_mb, "MB"),
    ]


def _memory_rows(of_processes: list[list[float]]) -> Rows:
    """Mean memory in the first and in the last third of the pass."""
    rows = []
    for number, looks in enumerate(of_processes):
        who, third = f"worker {number}" if number else "main process", -(-len(looks) // 3)
        rows.append(_row(f"memory of {who}, first third", float(np.mean(looks[:third])), "MB"))
        rows.append(_row(f"memory of {who}, last third", float(np.mean(looks[-third:])), "MB"))
    return rows


def _row(what: str, value: float, unit: str = "", aim: float | None = None) -> dict[str, Any]:
    return {"what": what, "value": round(value, 2) if isinstance(value, float) else value, "unit": unit, "aim": aim}
