"""Which one number a table's rows differ in, if they do: then their metrics are a curve over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments import schema
from experiments.config import compose
from experiments.table_rows import Row

LEAST_VALUES = 3  # two make no curve
NAMES = ("experiment", "data", "scale")


class Factor(NamedTuple):
    """A setting by its dotted key, and its value in each row."""

    key: str
    values: list[float]


def numeric_factor(rows: Sequence[Row]) -> Factor | None:
    """The only setting that differs among all rows of a table's file, if it is a number; None where there is none.

    A row that leaves it out has the value that its experiment and overlays give it.
    """
    entries = [row.entry for row in rows if row.entry is not None]
    if len(entries) < len(rows) or any(len({str(entry.get(name)) for entry in entries}) > 1 for name in NAMES):
        return None
    settings = [entry.get("set") or {} for entry in entries]
    keys = sorted({key for one in settings for key in one})
    differing = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    if len(differing) != 1:
        return None
    (key,) = differing
    values = [one[key] if key in one else _usual(entries[0], key) for one in settings]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return None
    return Factor(key, [float(value) for value in values]) if len(set(values)) >= LEAST_VALUES else None


def _usual(entry: dict[str, Any], key: str) -> Any:
    """A setting where a row does not name it: of the layers, else the constructor's default."""
    composed = compose(str(entry["experiment"]), str(entry["data"]), str(entry["scale"]), 0, [])
    section, _, name = key.partition(".")
    part = composed.config.get(section, {})
    if "class_path" not in part:
        return part.get(name)
    known = schema.signature(part["class_path"])
    return part.get("init_args", {}).get(name, known[name].default if name in known else None)
