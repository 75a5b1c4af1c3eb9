"""What the page of a retrieval run shows: numbers beside their floors, labels, and what the model finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datamodules.errors import DataError
from experiments.definitions import rankings
from experiments.errors import UsageError
from experiments.label_breakdown import breakdown
from experiments.page import data_url
from experiments.report_queries import shown_queries
from experiments.run_shards import open_shards
from experiments.runs import RunFolder
from experiments.scoreboard import (
    COLUMNS,
    LEVEL_COLUMNS,
    LEVELS,
    ROWS,
    SAME_COLUMNS,
    interval_of,
    is_product_itself,
    level_note,
    level_rows,
    same_queries,
    value_of,
)
from retrieval.errors import RetrievalError

CUTOFFS = (10, 50, 100)


def contents(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """What templates/retrieval.html.j2 wants beside the parts common to all pages."""
    levels = level_rows(record, "test")
    cutoffs = _cutoffs(record)
    by_level = _rows(record, LEVEL_COLUMNS, levels) if len(levels) > 1 else []
    shown = _floor_rows(record, COLUMNS)
    about_same = same_queries(record) if record.get("same") else ""
    keys = [*COLUMNS, *cutoffs["keys"], "product - this", "recall@10", "found@10"]
    return {
        "columns": COLUMNS,
        "floors": shown,
        "level": LEVELS[record.get("level", "whole")],
        "level_columns": LEVEL_COLUMNS,
        "levels": by_level,
        "level_note": level_note(record, "test"),
        "same_columns": SAME_COLUMNS,
        "same_floors": _floor_rows(record, SAME_COLUMNS),
        "same_queries": about_same,
        "cutoffs": cutoffs,
        "graph": _graph(folder),
        "rankings": rankings([row["label"] for row in (*shown, *by_level, *cutoffs["rows"])]),
        "keys": [*keys, *(SAME_COLUMNS if about_same else ())],
        **_looked_up(folder, record),
    }


def _looked_up(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """What wants the run's shards and lists beside its numbers; and why it is missing, if it is."""
    try:
        shards = open_shards(folder, record)
        return {"labels": breakdown(folder, shards), "queries": shown_queries(folder, shards), "problem": ""}
    except (DataError, RetrievalError, UsageError, OSError) as problem:
        return {"labels": None, "queries": [], "problem": str(problem)}


def _floor_rows(record: dict[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    return _rows(record, columns, {k: prefix for k, prefix in ROWS.items() if not is_product_itself(record, prefix)})


def _rows(record: dict[str, Any], columns: Sequence[str], prefixes: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of a table, by label and prefix, as far as they have a number."""
    rows = []
    for label, prefix in prefixes.items():
        cells = []
        for column in columns:
            value = value_of(record, "test", prefix, column)
            interval = interval_of(record, "test", prefix, column)
            cells += ["–" if value is None else f"{value:.4f}"]
            cells += ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval) if interval else ""]
        if any(cell not in ("–", "") for cell in cells):
            rows.append({"label": label, "cells": cells})
    return rows


def _cutoffs(record: dict[str, Any]) -> dict[str, Any]:
    columns = [f"{name}@{k}" for k in CUTOFFS for name in ("mAP", "mAR", "Prec")]
    kinds = {"official": "", "textbook": "textbook/", "image only": "image/", "text only": "text/"}
    kinds |= {"image → text": "image->text/", "text → image": "text->image/"}
    there = {k: prefix for k, prefix in kinds.items() if all(prefix + column in record["test"] for column in columns)}
    rows = [
        {"label": label, "cells": [f"{record['test'][prefix + column]:.4f}" for column in columns]}
        for label, prefix in there.items()
    ]
    keys = [prefix + column for prefix in there.values() for column in columns]
    return {"columns": columns, "rows": rows, "keys": keys}


def _graph(folder: RunFolder) -> str:
    """The picture of the entity graph as a data url, "" where there is none.

    As a picture, not as markup of the page: the names in it come from strangers.
    """
    file = folder.graph.with_suffix(".svg")
    return data_url("image/svg+xml", file.read_bytes()) if file.is_file() else ""
