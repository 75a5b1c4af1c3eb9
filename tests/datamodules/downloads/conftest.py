"""A shop to download from, and the two that fetch: img2dataset itself, and a stand-in that leaves the same files."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from datamodules.downloads.fetcher import (
    BATCH,
    VERSION,
    Img2Dataset,
    Limits,
    body_path,
    failures_path,
    installed,
    stats_path,
)
from tests.datamodules.downloads.shop_server import Shop, open_shop

LIMITS = Limits(threads=4, retries=1, timeout_s=3, max_seconds=4, max_bytes=1_000_000, max_wait_s=0)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as one:
        yield one


class StandIn:
    """Leaves the files that img2dataset leaves. `stop_after`: urls after which it is killed, once."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.fetched = stop_after, []

    def __call__(self, url_list: Path, folder: Path, told: Callable[[int], None]) -> None:
        failures = []
        for row, line in enumerate(url_list.read_text().splitlines()):
            body = body_path(folder, row)
            body.parent.mkdir(parents=True, exist_ok=True)
            if stats_path(folder, row).is_file():
                continue
            if self.stop_after == len(self.fetched):
                self.stop_after = None
                raise KeyboardInterrupt
            url = json.loads(line)["url"]
            self.fetched.append(url)
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    body.write_bytes(answer.read())
            except OSError as error:
                failures.append([row, str(error)])
        with failures_path(folder).open("a") as file:
            file.writelines(json.dumps(one) + "\n" for one in failures)
        for first in range(0, row + 1, BATCH):
            stats_path(folder, first).touch()
        told(row + 1)


@cache
def _img2dataset() -> tuple[Path | None, str]:
    """An interpreter that has img2dataset, and why there is none."""
    python = Path(os.environ["IMG2DATASET_PYTHON"]) if "IMG2DATASET_PYTHON" in os.environ else installed()
    if python is None:  # tests run offline, so they install nothing
        return None, "no download installed it yet, and IMG2DATASET_PYTHON names none"
    code = "import img2dataset, importlib.metadata as m; print(m.version('img2dataset'))"
    found = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return (python, "") if found.stdout.strip() == VERSION else (None, found.stderr[-300:])


@pytest.fixture
def img2dataset() -> Img2Dataset:
    """The real one, bounded tightly."""
    python, reason = _img2dataset()
    if python is None:
        pytest.skip(f"img2dataset {VERSION} is not to be had here: {reason}")
    return Img2Dataset(python, LIMITS)
