"""The numbers behind the curves: every logged value as a JSON line, readable without torch."""

from __future__ import annotations

import json
from pathlib import Path


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a history file up to the first that is damaged: a last line may be cut off by a crash."""
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            if not all(type(value) in (int, float) for value in (row["step"], *row.values())):
                break
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
        rows.append(row)
    return rows
