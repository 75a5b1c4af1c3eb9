"""What the last `ablate` of a table chose in a runs folder: where no choice is given, that is what is shown there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.run_pool import OUTPUT_FOLDER
from experiments.runs import write_json
from experiments.table_rows import AS_IN_FILE, Choice


def remember(table: str, choice: Choice, runs: Path) -> None:
    """Keep what was chosen, beside what the table's processes said."""
    write_json(_file(table, runs), choice._asdict())


def shown_choice(table: str | None, choice: Choice, runs: Path, words: Sequence[str]) -> tuple[Choice, list[str]]:
    """The choice of a command that shows a table, and the command's words with it.

    Args:
        choice: What the command's words choose; where they do, that is all that counts.
        words: Of the command, for its record: it must mean the same tomorrow.
    """
    last = _recall(table, runs) if table and not choice.words() else AS_IN_FILE
    if not last.words():
        return choice, list(words)
    print(f"{table} as last run in {runs}: {last}; choose with DATA=, SCALE=, SEEDS= or ROWS=", file=sys.stderr)
    return last, [*words, *(word for key, value in last.words().items() for word in (f"--{key}", value))]


def _recall(table: str, runs: Path) -> Choice:
    """As in the file where nothing, or nothing readable, is kept."""
    try:
        found: dict[str, Any] = json.loads(_file(table, runs).read_text(encoding="utf-8"))
        seeds = found.get("seeds")
        seeds = None if seeds is None else tuple(map(int, seeds))
        words = [found.get(key) for key in ("data", "scale", "rows")]
        if any(word is not None and not isinstance(word, str) for word in words):
            return AS_IN_FILE
        data, scale, rows = words
        return Choice(data, scale, seeds, rows)
    except (OSError, ValueError, TypeError, AttributeError):
        return AS_IN_FILE


def _file(table: str, runs: Path) -> Path:
    return runs / OUTPUT_FOLDER / f"{table}.choice.json"
