"""The numbers behind the curves: every logged value as a JSON line, readable without torch."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a history file up to the first that is damaged: a last line may be cut off by a crash."""
    return list(takewhile(lambda row: all(map(_is_number, row.values())), read_steps(path)))


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a file that are objects with a number `step`, up to the first that is none."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if not _is_number(row["step"]):
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        rows.append(row)
    return rows


def _is_number(value: object) -> bool:
    return type(value) in (int, float)
