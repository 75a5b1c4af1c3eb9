"""A block of urls: fetched, judged picture by picture, filed under `images/<id>.jpg` or counted as a failure.

A block that was interrupted is on disk with its list, so it goes on with the same urls, wherever it was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from datamodules.catalogues.picture_files import UnusablePictureError, read_picture
from datamodules.downloads.failures import Failure, Failures, cause_of
from datamodules.downloads.fetcher import body_path, failures_path, stats_path
from datamodules.errors import DataError
from datamodules.manifest import write_atomically

_ITEMS, _URLS, _FETCHED = "items.jsonl", "urls.jsonl", "fetched"


class Fetch(Protocol):
    """What `fetcher.Img2Dataset` does."""

    def __call__(self, url_list: Path, folder: Path, told: Callable[[int], None]) -> None: ...


class Wanted(NamedTuple):
    """A url and the items whose picture it is."""

    url: str
    ids: list[str]


class Bounds(NamedTuple):
    """Of a picture that is kept."""

    max_megapixels: int
    max_bytes: int


def write_block(folder: Path, wanted: list[Wanted]) -> None:
    """Write down what is to be fetched; the block exists once `items.jsonl` does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Escaped to ASCII, so no character of a url ends a line.
    write_atomically(folder / _URLS, "".join(json.dumps({"url": one.url}) + "\n" for one in wanted).encode())
    write_atomically(folder / _ITEMS, "".join(json.dumps(one.ids) + "\n" for one in wanted).encode())


def is_begun(folder: Path) -> bool:
    """Whether a block waits to be fetched or filed."""
    return (folder / _ITEMS).is_file()


def num_items(folder: Path) -> int:
    """Items of a block."""
    return sum(len(ids) for _, ids in _rows(folder))


def finish_block(
    folder: Path, raw: Path, column: int, fetch: Fetch, bounds: Bounds, failures: Failures, told: Callable[[int], None]
) -> None:
    """Fetch what is missing of a block, file it, and remove the block.

    Args:
        folder: of the block.
        raw: the folder with `images/`.
        column: of the urls, for the failures.
        told: called with the number of urls done so far.

    Raises:
        DataError: the downloader stopped before its end.
    """
    fetched = folder / _FETCHED
    fetch(folder / _URLS, fetched, told)
    messages = _messages(fetched)
    (raw / "images").mkdir(exist_ok=True)
    failed: list[Failure] = []
    arrived: list[str] = []
    for row, ids in _rows(folder):
        if not stats_path(fetched, row).is_file():
            raise DataError(
                f"The download stopped before its end; what it said is in {fetched}. Run the command again to go on."
            )
        body = body_path(fetched, row)
        cause, detail = _judge(body, messages.get(row), bounds)
        if not cause:
            _file(body, [raw / "images" / f"{one}.jpg" for one in ids])
            arrived += ids
        elif all((raw / "images" / f"{one}.jpg").is_file() for one in ids):  # filed before a kill
            arrived += ids
        else:
            failed += [Failure(one, column, cause, detail) for one in ids]
    failures.record(failed)
    failures.forget(arrived)
    shutil.rmtree(folder)


def _rows(folder: Path) -> Iterator[tuple[int, list[str]]]:
    with (folder / _ITEMS).open(encoding="utf-8") as file:
        for row, line in enumerate(file):
            yield row, json.loads(line)


def _messages(fetched: Path) -> dict[int, str]:
    with failures_path(fetched).open(encoding="utf-8") as file:
        return {int(row): str(message) for row, message in map(json.loads, file)}


def _judge(body: Path, message: str | None, bounds: Bounds) -> tuple[str, str]:
    """(cause, detail) of a body that is no picture; both empty for one that is."""
    if message is not None:
        return cause_of(message), " ".join(message.split())[:200]
    try:
        read_picture(body, bounds.max_megapixels, bounds.max_bytes)
    except UnusablePictureError as error:
        # The downloader had nothing to say of a body that is not there: it failed to write it.
        return ("url_failed", "") if error.reason == "missing_picture" else (error.reason, "")
    return "", ""


def _file(body: Path, targets: list[Path]) -> None:
    for target in targets[1:]:
        target.unlink(missing_ok=True)
        os.link(body, target)
    os.replace(body, targets[0])
