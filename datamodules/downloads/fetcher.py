"""img2dataset in an environment and a Python of its own.

It pins an old webdataset and does not run on Python 3.13, so it is no dependency of this project: uv makes an
environment of `img2dataset.lock` on first use, and `driver.py` runs in it as a process.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import DataError
from datamodules.redaction import without_secrets

log = logging.getLogger(__name__)

VERSION = "1.47.0"
BATCH = 1000  # urls that img2dataset counts as one piece of work; a power of ten, so that a body's key is its row
_PYTHON = ">=3.10,<3.13"
_HERE = Path(__file__).parent
_LOCK = _HERE / "img2dataset.lock"
_BODIES = "bodies"  # img2dataset's own folder: it takes any .json there for a sign of finished work
_DONE = ".installed"  # in the environment, once it is whole
_POLL_S = 1.0


class Limits(NamedTuple):
    """How urls are fetched."""

    threads: int = 32  # connections at a time; the only limit of the rate
    retries: int = 2  # of one url, beside the first attempt
    timeout_s: float = 10  # without a byte
    max_seconds: float = 60  # for a whole body
    max_bytes: int = 20_000_000  # of a body
    max_wait_s: float = 30  # where a server says when to come again


class Img2Dataset(NamedTuple):
    """Fetches a list of urls.

    Args:
        python: interpreter of an environment that has img2dataset; None = one is made, see `environment`.
        limits: how.
    """

    python: Path | None = None
    limits: Limits = Limits()

    def __call__(self, url_list: Path, folder: Path, told: Callable[[int], None]) -> None:
        """Fetch each url; bodies are left in `body_path`, failures in `failures_path`. Goes on where it was killed.

        Args:
            url_list: a line `{"url": …}` for each.
            folder: of the results.
            told: called with the number of urls done so far.

        Raises:
            DataError: img2dataset could not be installed, or stopped with an error.
        """
        python = self.python or environment()
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        settings.write_text(json.dumps(self._settings(url_list, folder)), encoding="utf-8")
        output = folder / "output.txt"
        with output.open("ab") as file:
            command = [str(python), "-I", str(_HERE / "driver.py"), str(settings)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=_environment())
            try:
                while True:
                    try:
                        code = process.wait(_POLL_S)
                        break
                    except subprocess.TimeoutExpired:
                        told(BATCH * num_finished(folder))
            except BaseException:
                process.terminate()
                process.wait()
                raise
        told(BATCH * num_finished(folder))
        if code:
            last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise DataError(
                f"img2dataset stopped with exit code {code} ({' '.join(last)}); all it said is in {output}. Run the "
                "same command again to go on, or add ARGS=--no-download to build from the pictures that are there."
            )

    def _settings(self, url_list: Path, folder: Path) -> dict[str, object]:
        limits = self.limits
        arguments = {
            "url_list": str(url_list),
            "input_format": "jsonl",
            "output_folder": str(folder / _BODIES),
            "output_format": "files",
            "disable_all_reencoding": True,  # bytes as they came: whether they are a picture is ours to say
            "extract_exif": False,
            "compute_hash": None,
            "processes_count": 1,  # else the limit would be threads times processes
            "thread_count": limits.threads,
            "retries": limits.retries,
            "timeout": limits.timeout_s,
            "number_sample_per_shard": BATCH,
            "incremental_mode": "incremental",
        }
        return {
            "arguments": arguments,
            "max_bytes": limits.max_bytes,
            "max_seconds": limits.max_seconds,
            "max_wait_seconds": limits.max_wait_s,
            "failures": str(failures_path(folder)),
        }


def body_path(folder: Path, row: int) -> Path:
    """Where the body of a url is, if it came; `row` counts the list's lines from 0."""
    return folder / _BODIES / f"{row // BATCH:05d}" / f"{row:08d}.jpg"


def failures_path(folder: Path) -> Path:
    """A line `[row, message]` for each url that failed."""
    return folder / "failures.jsonl"


def stats_path(folder: Path, row: int) -> Path:
    """Written when the piece of work that a row belongs to was done to its end."""
    return folder / _BODIES / f"{row // BATCH:05d}_stats.json"


def num_finished(folder: Path) -> int:
    """Pieces of work done to their end."""
    return sum(1 for _ in (folder / _BODIES).glob("*_stats.json"))


def environment() -> Path:
    """The interpreter of img2dataset's environment in `<environment of the project>/tools`, made if it is not there.

    Raises:
        DataError: uv is missing, or the packages cannot be had.
    """
    if (there := installed()) is not None:
        return there
    home = _home()
    python = home / "bin" / "python"
    ways_out = (
        f"Install img2dataset=={VERSION} yourself and name its interpreter with --img2dataset PYTHON, or leave the "
        "download out with --no-download."
    )
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.prefix) / "tools" / "bin"))
    if uv is None:
        raise DataError(f"uv, which installs img2dataset, is not found. Run `make setup`. {ways_out}")
    log.info("Installing img2dataset %s into %s, apart from the project.", VERSION, home)
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", _PYTHON, str(home)],
        [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(_LOCK)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = " ".join(result.stderr.split())[:500]
            raise DataError(f"img2dataset {VERSION} cannot be installed into {home} ({reason}). {ways_out}")
    (home / _DONE).touch()
    return python


def installed() -> Path | None:
    """The interpreter of the environment, if it was made before."""
    python = _home() / "bin" / "python"
    return python if (_home() / _DONE).is_file() and python.exists() else None


def _home() -> Path:
    return Path(sys.prefix) / "tools" / f"img2dataset-{VERSION}"


def _environment() -> dict[str, str]:
    return without_secrets() | {
        "NO_ALBUMENTATIONS_UPDATE": "1"
    }  # it would ask the network for a newer version of itself
