"""The pictures of the official lists, from their first url, or from the second where the first one fails."""

from __future__ import annotations

import json
import logging
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.catalogues.official_lines import OfficialLine
from datamodules.catalogues.picture_files import MAX_BYTES, has_picture
from datamodules.catalogues.product1m import Product1MFiles
from datamodules.catalogues.record import Split
from datamodules.downloads.block import Bounds, Fetch, Wanted, finish_block, is_begun, num_items, write_block
from datamodules.downloads.failures import NO_URL, Failure, Failures
from datamodules.manifest import write_atomically

log = logging.getLogger(__name__)

REPORT_FILE = "download.json"
FAILURES_LIST = "download-failures.tsv"
_BLOCKS = ".download"
_BLOCK_SIZE = 50_000  # items; img2dataset takes some seconds to start, and its list is held in memory
# Queries and gallery first: without them there is nothing to measure on.
_ORDER: tuple[Split, ...] = ("val", "test", "gallery", "train")


class Report(NamedTuple):
    """What a download came to, in items."""

    listed: int  # lines, an id that stands twice counted twice
    there: int  # had their picture before
    fetched: int
    failed: dict[str, int]  # by cause
    without_url: int  # neither url begins with http
    shared_urls: int  # items whose first url is also another's


def download(
    catalogue: Product1MFiles,
    fetch: Fetch,
    *,
    max_bytes: int = MAX_BYTES,
    retry_failed: bool = False,
    block_size: int = _BLOCK_SIZE,
    progress: bool = True,
) -> Report:
    """Fetch every picture that is not on disk; again: go on. What failed before is left alone.

    Leaves `images/<id>.jpg` (the bytes as they came, whatever the codec), `download.json` with the counts, and
    `download-failures.tsv` with cause, id, number of the url and what was said, in the catalogue's folder.

    Args:
        catalogue: whose lists name the pictures.
        fetch: the downloader.
        max_bytes: of a picture that is kept.
        retry_failed: try those again that failed in an earlier call.
        block_size: urls that are fetched and filed at a time; what is held in memory and twice on disk.
        progress: show a bar.

    Raises:
        DataError: a malformed line, or the downloader cannot go on.
    """
    raw = Path(catalogue.raw)
    failures = Failures(raw)
    try:
        if retry_failed:
            failures.forget()
        survey = _survey(catalogue)
        bounds = Bounds(catalogue.max_megapixels, max_bytes)
        for column in (0, 1):
            _fetch_column(catalogue, column, fetch, bounds, failures, block_size, progress)
        missing = survey.listed - sum(has_picture(raw, line.id, line.urls) for line in _all_lines(catalogue))
        report = survey._replace(fetched=survey.listed - survey.there - missing, failed=failures.counts())
        _write_report(raw, report, failures)
    finally:
        failures.close()
    shutil.rmtree(raw / _BLOCKS, ignore_errors=True)
    return report


def wants_download(catalogue: Product1MFiles) -> bool:
    """Whether any listed picture is missing that has a url; reads the lists up to the first."""
    raw = Path(catalogue.raw)
    return any(
        not has_picture(raw, line.id, line.urls) and any(map(_is_url, line.urls)) for line in _all_lines(catalogue)
    )


def _all_lines(catalogue: Product1MFiles) -> Iterator[OfficialLine]:
    for split in _ORDER:
        for _, line in catalogue.lines(split):
            yield line


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _survey(catalogue: Product1MFiles) -> Report:
    there = without_url = 0
    url_hashes = array("q")
    raw = Path(catalogue.raw)
    for line in _all_lines(catalogue):
        there += has_picture(raw, line.id, line.urls)
        without_url += not any(map(_is_url, line.urls))
        url_hashes.append(hash(line.urls[0]) if _is_url(line.urls[0]) else 0)
    hash_N = np.asarray(url_hashes)
    _, counts = np.unique(hash_N[hash_N != 0], return_counts=True)
    return Report(len(hash_N), there, 0, {}, without_url, int(counts[counts > 1].sum()))


def _fetch_column(
    catalogue: Product1MFiles,
    column: int,
    fetch: Fetch,
    bounds: Bounds,
    failures: Failures,
    block_size: int,
    progress: bool,
) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    raw, folder = Path(catalogue.raw), Path(catalogue.raw) / _BLOCKS / f"column-{column}"
    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    total = sum(_is_url(line.urls[column]) for line in _wanted_lines(catalogue, column, failures))
    if not total and column == 1:
        return
    with Progress(*columns, TextColumn("pictures"), disable=not progress) as bar:
        task = bar.add_task(f"url {column + 1}", total=total)
        done = 0

        def finish() -> None:
            nonlocal done
            size = num_items(folder)
            finish_block(folder, raw, column, fetch, bounds, failures, tell(done, size))
            done += size
            bar.update(task, completed=done)
            log.info("url %d: %d of %d pictures tried.", column + 1, done, total)

        def tell(before: int, size: int) -> Callable[[int], None]:
            return lambda urls: bar.update(task, completed=before + min(urls, size))

        if is_begun(folder):
            finish()
        block: dict[str, Wanted] = {}
        without: list[Failure] = []
        for line in _wanted_lines(catalogue, column, failures):
            url = line.urls[column]
            if not _is_url(url):
                # On the second pass the first url's failure says more.
                without += [Failure(line.id, column, NO_URL, url[:200])] if column == 0 else []
            elif line.id not in (ids := block.setdefault(url, Wanted(url, [])).ids):
                ids.append(line.id)
            if len(block) == block_size or len(without) == block_size:
                failures.record(without)
                without.clear()
                if block:
                    write_block(folder, list(block.values()))
                    block.clear()
                    finish()
        failures.record(without)
        if block:
            write_block(folder, list(block.values()))
            finish()


def _wanted_lines(catalogue: Product1MFiles, column: int, failures: Failures) -> Iterator[OfficialLine]:
    """Lines whose picture is neither there nor known to fail at this url."""
    raw = Path(catalogue.raw)
    for line in _all_lines(catalogue):
        if has_picture(raw, line.id, line.urls):
            continue
        failure = failures.of(line.id)
        if column == 0 and failure is None:
            yield line
        if column == 1 and failure is not None and failure.column == 0 and line.urls[1] != line.urls[0]:
            yield line


def _write_report(raw: Path, report: Report, failures: Failures) -> None:
    write_atomically(raw / REPORT_FILE, json.dumps(report._asdict(), indent=1).encode() + b"\n")
    temporary = raw / f".{FAILURES_LIST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write("cause\tid\turl\tdetail\n")
        for failure in failures:
            detail = failure.detail.replace("\t", " ")
            file.write(f"{failure.cause}\t{failure.id}\t{failure.column + 1}\t{detail}\n")
    temporary.replace(raw / FAILURES_LIST)
