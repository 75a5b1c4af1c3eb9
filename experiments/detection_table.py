"""Detectors' runs as one Markdown table: how many of the true boxes their proposals find. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runs import git_state, open_run, read_metrics
from experiments.table_origin import commit, origin

# Rows of the table; only the last chooses a checkpoint.
SPLITS = {
    "test": "test queries, true boxes",
    "val": "val queries, true boxes",
    "pasted": "pasted, held-out cut-outs",
}
RECALLS = {f"recall@{k}/IoU{iou}": f"recall@{k}\nIoU 0.{iou}" for iou in (50, 75) for k in (1, 10, 36)}
COLUMNS = {**RECALLS, "proposals": "proposals\nper picture"}


def detection_table(runs: Sequence[Path], command: str) -> str:
    """Markdown of finished detection runs, a block of rows each, with commands, commits and hardware."""
    records = [read_metrics(open_run(run)) for run in runs]
    heads = [name.replace("\n", ", ") for name in COLUMNS.values()]
    lines = [
        "| data (seed) | boxes | " + " | ".join(heads) + " | training |",
        "|---|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for record in records:
        for row in rows(record):
            cells = [f"{record['data']} ({record['seed']})", row["label"], *row["cells"], _minutes(record)]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"* {record['data']}: {cut_outs(record)}" for record in records), ""]
    lines.append(
        "Shares of the true boxes that one of the first proposals overlaps by the IoU or more; no true box takes part "
        f"in training or chooses a checkpoint. Table made by `{command}` at {commit(git_state())}."
    )
    return "\n".join(lines) + "\n" + origin(records)


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A label and its cells for each split that has numbers."""
    return [
        {"label": label, "cells": [_cell(column, record[split].get(column)) for column in COLUMNS]}
        for split, label in SPLITS.items()
        if record.get(split)
    ]


def cut_outs(record: dict[str, Any]) -> str:
    """Where the products came from that the detector was trained on, as a sentence; "" where nothing is known."""
    about = record.get("cut_outs") or {}
    if "source" not in about:
        return ""
    ways = {"outline": "cut by outline", "tile": "taken as a tile", "held_out": "held out"}
    ways |= {"unclear": "left out for an unclear outline", "unreadable": "unreadable"}
    counts = ", ".join(f"{about[key]} {way}" for key, way in ways.items() if key in about)
    return f"Single products of the {about['source']} split: {counts or 'none counted'}."


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if column == "proposals" else f"{value:.4f}"


def _minutes(record: dict[str, Any]) -> str:
    return f"{record['steps']} steps, {record['train_seconds'] / 60:.1f} min"
