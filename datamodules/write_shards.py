"""Catalogue -> shard folder: equal tars written in parallel, then annotations, tokenizer and manifest.

Idempotent and resumable: a finished folder with the same settings is left alone, finished shards of a killed build are
kept, and the manifest is written last, so that a folder with a manifest is whole. A finished folder that is built again
is set aside first (`earlier_build`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.catalogues.record import SPLITS, Catalogue, Split
from datamodules.earlier_build import keep_beside, put_back, set_aside, up_to_date
from datamodules.errors import DataError
from datamodules.folder_summary import plain, receipt_of, summarise
from datamodules.manifest import SCHEMA_VERSION, Manifest, read_manifest, write_manifest
from datamodules.region_sources.store import RegionStore
from datamodules.remote import remote_of
from datamodules.shard_writer import RECEIPTS, Options, RegionSource, ShardJob, read_receipt, write_shard

log = logging.getLogger(__name__)


def build(
    catalogue: Catalogue,
    out: Path | str,
    *,
    shard_size: int = 1000,
    workers: int = 1,
    seed: int = 0,
    vocab_size: int = 8000,
    progress: bool = True,
    name: str | None = None,
    pictures: bool = True,
    regions: RegionSource | None = None,
    again: bool = False,
) -> Manifest:
    """Write a shard folder; the same catalogue, settings and seed give the same bytes.

    Args:
        catalogue: the raw source; pickled to the worker processes.
        out: the folder; created. One that holds another source is refused.
        shard_size: most samples in a shard. A worker of the loader holds one shard in memory.
        workers: processes that make and write samples.
        seed: of the order of the training samples. The catalogue has its own.
        vocab_size: of the WordPiece trained on the training captions.
        progress: show a bar.
        name: of the data set; None = the folder's name.
        pictures: store the pictures; False for regions only.
        regions: precomputed regions of a record (None = it has none and is skipped); pickled to the workers. Those of
            `region_sources.open_region_store` are told from others, and a change of them builds again. The results of
            any other function are not compared with those of an earlier build: give new regions a new folder.
        again: build a finished folder again that looks up to date (pictures or tars were changed in place), or from
            much less than it holds.

    Returns:
        The manifest.

    Raises:
        DataError: duplicate or malformed ids, nothing to train on, a folder that holds another source, region features
            of two widths, `pictures` from a catalogue that was told to read none, or much less to build from than a
            finished folder holds.
    """
    if pictures and not getattr(catalogue, "pictures", True):  # a source that can do without has this option
        raise DataError(
            f"source '{catalogue.name}' was told to read no pictures, so none can be stored; build without them "
            "(pictures=False, --no-pictures)."
        )
    if shard_size < 1 or workers < 1 or vocab_size < 6 or seed < 0:
        raise DataError("data build: shard_size and workers should be at least 1, vocab_size 6, seed 0.")
    folder = Path(out)
    if remote_of(folder) is not None:
        raise DataError(
            f"{folder} is linked to shards elsewhere, which are built there. Choose another OUT, or delete it."
        )
    region_settings = plain(regions.settings()) if isinstance(regions, RegionStore) else None
    content = {"pictures": pictures, "regions": region_settings or regions is not None}
    jobs = list(_plan(catalogue, folder, shard_size, seed, content))
    plan = hashlib.sha256("".join(job.digest for job in jobs).encode()).hexdigest()[:16]
    settings = plain(catalogue.settings())
    wanted: dict[str, Any] = {"seed": seed, "shard_size": shard_size, "vocab_size": vocab_size, "plan": plan}
    if region_settings is not None:
        wanted["regions"] = region_settings
    put_back(folder)  # where a build was killed before it wrote anything
    num_present = partial(_num_present, catalogue, jobs)
    finished = up_to_date(folder, catalogue.name, settings, wanted, pictures, num_present, again)
    if finished is not None:
        log.info("%s is up to date (%s).", folder, finished["data_hash"])
        return finished
    set_aside(folder)
    try:
        _write_all(catalogue, jobs, Options(pictures, regions), workers, progress)
        manifest = summarise(folder, jobs, catalogue, name or folder.resolve().name, wanted, pictures)
    except BaseException:
        put_back(folder)
        raise
    _drop_strangers(folder, jobs)
    write_manifest(folder, keep_beside(folder, manifest))
    shutil.rmtree(folder / RECEIPTS)
    return read_manifest(folder)


def _num_present(catalogue: Catalogue, jobs: Sequence[ShardJob], split: Split) -> int:
    """Items of a split that are not known to give no sample."""
    count = getattr(catalogue, "num_present", None)
    return count(split) if count else sum(job.present for job in jobs if job.split == split)


def _plan(
    catalogue: Catalogue, folder: Path, shard_size: int, seed: int, content: dict[str, Any]
) -> Iterator[ShardJob]:
    """Cut each split into shards of equal size (± 1); training samples shuffled, so that a shard is a random subset.

    Items known to give no sample go along, spread evenly, to be counted.
    """
    settings = [catalogue.name, catalogue.settings(), content, seed, shard_size, SCHEMA_VERSION]
    common = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for split_number, split in enumerate(SPLITS):
        items = catalogue.plan(split)
        order = np.arange(len(items))
        if split == "train":
            order = np.random.default_rng((seed, split_number)).permutation(len(items))
        if not len(items):
            continue
        absent = getattr(items, "absent_N", np.zeros(len(items), dtype=bool))[order]
        num_shards = max(1, -(-int((~absent).sum()) // shard_size))
        first = 0
        parts = [np.array_split(part, num_shards) for part in (order[~absent], order[absent])]
        for number, (present, missing) in enumerate(zip(*parts, strict=True)):
            rows = np.concatenate([present, missing])
            # A plan that can be cut keeps its compact form: a million items as objects take a gigabyte.
            chosen: Any = items.take(rows) if hasattr(items, "take") else [items[int(row)] for row in rows]
            digest = common.copy()
            planned = (split, number, first, list(chosen), *([len(present)] if len(missing) else []))
            digest.update(repr(planned).encode("utf-8", "replace"))
            yield ShardJob(folder, split, number, first, chosen, digest.hexdigest(), len(present))
            first += len(chosen)


def _write_all(catalogue: Catalogue, jobs: Sequence[ShardJob], options: Options, workers: int, progress: bool) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    open_jobs = [job for job in jobs if read_receipt(job) is None]
    if len(open_jobs) < len(jobs):
        log.info("%d of %d shards are finished already.", len(jobs) - len(open_jobs), len(jobs))
    if open_jobs and isinstance(options.regions, RegionStore):
        log.info("%d pictures have region features.", options.regions.prepare())
    with Progress(*columns, TextColumn("samples"), disable=not progress) as bar:
        done = sum(len(job.items) for job in jobs) - sum(len(job.items) for job in open_jobs)
        task = bar.add_task(f"{catalogue.name}: shards", total=sum(len(job.items) for job in jobs), completed=done)
        for job in _run(catalogue, open_jobs, options, workers):
            bar.advance(task, len(job.items))


def _run(catalogue: Catalogue, jobs: Sequence[ShardJob], options: Options, workers: int) -> Iterator[ShardJob]:
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            write_shard(catalogue, job, options)
            yield job
        return
    # Spawned, not forked: the caller may hold threads (torch, progress bar) that a fork would copy in mid-air.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(write_shard, catalogue, job, options): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _drop_strangers(folder: Path, jobs: Sequence[ShardJob]) -> None:
    """Remove shards of an earlier build that this one does not have."""
    current = {job.file for job in jobs if receipt_of(job)["shard"]["samples"]}
    for path in folder.glob("*.tar"):
        if path.name.rpartition("-")[0] in SPLITS and path.name not in current:
            path.unlink()
    for kind in (*(f"{split}-[0-9]*.tar" for split in SPLITS), "*.json"):
        for path in folder.glob(f".{kind}.*.tmp"):  # of a killed build
            path.unlink()
