"""What the page of a retrieval run shows: numbers beside their floors, and what the model finds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from experiments.report_queries import shown_queries
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

CUTOFFS = (10, 50, 100)


def contents(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """What templates/report.html.j2 wants beside the parts common to all pages."""
    queries, problem = shown_queries(folder, record)
    levels = level_rows(record, "test")
    return {
        "columns": COLUMNS,
        "floors": _floor_rows(record, COLUMNS),
        "level": LEVELS[record.get("level", "whole")],
        "level_columns": LEVEL_COLUMNS,
        "levels": _rows(record, LEVEL_COLUMNS, levels) if len(levels) > 1 else [],
        "level_note": level_note(record, "test"),
        "same_columns": SAME_COLUMNS,
        "same_floors": _floor_rows(record, SAME_COLUMNS),
        "same_queries": same_queries(record) if record.get("same") else "",
        "cutoffs": _cutoffs(record),
        "graph": _graph(folder),
        "queries": queries,
        "problem": problem,
    }


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
    rows = [
        {"label": label, "cells": [f"{record['test'][prefix + c]:.4f}" for c in columns]}
        for label, prefix in kinds.items()
        if all(prefix + column in record["test"] for column in columns)
    ]
    return {"columns": columns, "rows": rows}


def _graph(folder: RunFolder) -> str:
    """The picture of the entity graph as a data url, "" where there is none.

    As a picture, not as markup of the page: the names in it come from strangers.
    """
    file = folder.graph.with_suffix(".svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
