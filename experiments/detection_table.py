"""Detectors' runs as one table: how many of the true boxes their proposals find. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.runs import git_state, open_run, read_metrics
from experiments.table_document import NOTHING, Cell, Column, Document, Grid, Line, Number, Sentence
from experiments.table_origin import commit, origin

# Rows of the table; only the last chooses a checkpoint.
SPLITS = {
    "test": "test queries, true boxes",
    "val": "val queries, true boxes",
    "pasted": "pasted, held-out cut-outs",
}
RECALLS = {f"recall@{k}/IoU{iou}": f"recall@{k}\nIoU 0.{iou}" for iou in (50, 75) for k in (1, 10, 36)}
COLUMNS = {**RECALLS, "proposals": "proposals\nper picture"}


def detection_table(runs: Sequence[Path], command: str) -> Document:
    """The table of finished detection runs, a block of lines each, with commands, commits and hardware."""
    records = [read_metrics(open_run(run)) for run in runs]
    columns = [Column("boxes", "boxes", parts=(), right=False)]
    columns += [Column(head, head) for head in (name.replace("\n", ", ") for name in COLUMNS.values())]
    columns.append(Column("training", "training", parts=()))
    lines = [
        Line(f"{record['data']} ({record['seed']})", [row["label"], *row["cells"], _minutes(record)], num_runs=1)
        for record in records
        for row in rows(record)
    ]
    items = [Sentence("", f"{record['data']}: {cut_outs(record)}") for record in records]
    explanation = (
        "Shares of the true boxes that one of the first proposals overlaps by the IoU or more; no true box takes part "
        "in training or chooses a checkpoint."
    )
    made_by = f"Table made by `{command}` at {commit(git_state())}."
    grid = Grid("detection", columns, lines, label_head="data (seed)", items=items)
    return Document("detection", "", [grid], (), [explanation], made_by, origin(records))


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


def _cell(column: str, value: float | None) -> Cell:
    return NOTHING if value is None else Number(value, digits=2 if column == "proposals" else 4)


def _minutes(record: dict[str, Any]) -> str:
    return f"{record['steps']} steps, {record['train_seconds'] / 60:.1f} min"
