"""The `.npz` files of a run folder: per-query scores and instances. Read whole, bounded, and never unpickled."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.errors import UsageError

MAX_BYTES = 1 << 30  # unpacked; those of 6,547 queries with all floors and features have a few million


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Those of the named arrays that a file holds; None = all.

    Raises:
        UsageError: The file is missing, damaged or too large, or holds objects.
    """
    from datamodules.npz import read_npz

    try:
        data = path.read_bytes()
        return read_npz(data, _names(data) if names is None else list(names), MAX_BYTES)
    except Exception as problem:  # damaged bytes make zipfile and numpy raise whatever they like
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UsageError(f"{path}: cannot be read ({reason}); `make eval` writes it again") from None


def _names(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]
