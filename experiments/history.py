"""The numbers behind the curves: every logged value as a JSON line, readable without torch."""

from __future__ import annotations

import json
from pathlib import Path


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a history file; a last line cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
