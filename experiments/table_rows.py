"""The rows of a table: which configurations, read from a table's file or from run folders, and their finished runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from datamodules.errors import DataError
from experiments.config import HOME, Composition, Loader, compose
from experiments.errors import UsageError, nearest
from experiments.runs import RunFolder, open_run, read_metrics, run_folder
from experiments.scoreboard import COLUMNS
from experiments.tasks import DEFAULT_TASK, task_of

KEYS = (
    "title",
    "experiment",
    "data",
    "scale",
    "seeds",
    "base",
    "rows",
    "published_source",
    "costs",
    "blocks",
    "columns",
)
# In the identical-product task, which has cut-offs of its own, a query has one product: no mAR, no coverage.
COLUMN = re.compile(r"(mAP|mAR|Prec|coverage)@[1-9]\d*|same/(mAP|Prec)@(1|5|10)")
ROW_KEYS = ("label", "experiment", "data", "scale", "seeds", "set", "published", "own_feature", "feature")


class Row(NamedTuple):
    """One configuration: its label and its runs, one per seed."""

    label: str
    runs: list[RunFolder]
    records: list[dict[str, Any]]
    missing: int = 0  # seeds asked for and not run to the end
    published: dict[str, float] | None = None  # metric -> the paper's number
    own_feature: str | None = None  # the candidate that is the paper's own retrieval feature
    feature: str | None = None  # the candidate whose numbers the row shows; None = the feature chosen on val


class Plan(NamedTuple):
    """What a table shows."""

    rows: list[Row]
    title: str = ""
    base: Row | None = None  # the others are compared with it
    published_source: str | None = None
    costs: bool = False
    blocks: bool = True  # each row also beside its own floors
    columns: tuple[str, ...] = COLUMNS  # metrics shown


def group_runs(paths: list[Path]) -> Plan:
    """Runs that differ in their seed only are one row."""
    groups: dict[tuple[str, ...], Row] = {}
    for path in paths:
        run = open_run(path)
        record = read_metrics(run)
        _check_task(record, path)
        key = tuple(str(record.get(name)) for name in ("experiment", "data", "scale", "config_hash"))
        row = groups.setdefault(key, Row(f"{key[0]} on {key[1]}, scale {key[2]}", [], []))
        if record["seed"] in [other["seed"] for other in row.records]:
            raise UsageError(f"{path}: seed {record['seed']} of {row.label} is given twice")
        row.runs.append(run)
        row.records.append(record)
    return Plan(list(groups.values()))


def read_plan(name: str) -> Plan:
    """A table's file and the finished runs of its rows.

    Raises:
        UsageError: If there is no such table, or a key, base row, number or feature is wrong.
    """
    files = {file.stem: file for file in sorted((HOME / "ablations").glob("*.yaml"))}
    if name not in files:
        raise UsageError(f"unknown table {name!r}: {nearest(name, files)}")
    content = read_file(files[name])
    defaults = {"experiment": "capture", "scale": "tiny", "seeds": [0], **content}
    rows = [_find_runs({**defaults, **entry}, files[name]) for entry in content["rows"]]
    labels, base = [row.label for row in rows], content.get("base")
    return Plan(
        rows,
        str(content.get("title", name)),
        None if base is None else rows[labels.index(str(base))],
        content.get("published_source"),
        bool(content.get("costs", False)),
        bool(content.get("blocks", True)),
        tuple(content.get("columns", COLUMNS)),
    )


def read_file(file: Path) -> dict[str, Any]:
    """The content of a table's file, checked as far as it can be without its runs."""
    content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    _check_keys(content, KEYS, file)
    for entry in content.get("rows") or []:
        _check_keys(entry, ROW_KEYS, file)
        if "label" not in entry:
            raise UsageError(f"{file}: a row has no label: {entry}")
        _check_published(entry, content, file)
    _check_columns(content.get("columns", list(COLUMNS)), file)
    labels, base = [str(entry["label"]) for entry in content.get("rows") or []], content.get("base")
    if not labels:
        raise UsageError(f"{file}: rows: wants at least one row")
    if base is not None and str(base) not in labels:
        raise UsageError(f"{file}: base {base!r} is no row: {nearest(str(base), labels)}")
    compared = [key for key in ("costs", "published_source") if content.get(key)]
    compared += [] if content.get("blocks", True) else ["blocks: false"]
    for key in ("own_feature", "feature"):
        compared += [key] if any(entry.get(key) for entry in content["rows"]) else []
    if base is None and compared:
        raise UsageError(f"{file}: {compared[0]} wants a base row, with which the rows are compared: base: {labels[0]}")
    if content.get("blocks", True) and any(entry.get("feature") for entry in content["rows"]):
        raise UsageError(f"{file}: rows with a feature share the floors of their run: blocks: false")
    return dict(content)


def _check_keys(content: Any, known: tuple[str, ...], file: Path) -> None:
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected a mapping with {', '.join(known)}")
    for key in content:
        if key not in known:
            raise UsageError(f"{file}: unknown key {key}: {nearest(str(key), known)}")


def _check_columns(columns: Any, file: Path) -> None:
    """A misspelt metric would be a column of dashes, which reads as missing runs."""
    wanted = "a list of metrics such as mAP@10, mAR@10, coverage@10 or same/mAP@10"
    if not isinstance(columns, list) or not columns or len(set(map(str, columns))) < len(columns):
        raise UsageError(f"{file}: columns: expected {wanted}, each once; got {columns!r}")
    for column in columns:
        if not COLUMN.fullmatch(str(column)):
            raise UsageError(f"{file}: columns: {column!r} is no metric: expected {wanted}")


def _check_published(entry: dict[str, Any], content: dict[str, Any], file: Path) -> None:
    published = entry.get("published", {})
    for key, value in published.items() if isinstance(published, dict) else [("published", published)]:
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"{file}: {entry['label']}: published {key} must be a fraction, got {value!r}")
    if published and not content.get("published_source"):
        raise UsageError(f"{file}: published numbers want a published_source that says where they stand")


def compose_row(entry: dict[str, Any], seed: int, file: Path, more: Sequence[str] = ()) -> Composition:
    """The configuration of a row, completed by what the table's file says for all.

    Args:
        entry: With experiment, data, scale and, if need be, set.
        more: Further settings, as on the command line; they lie over the row's own.

    Raises:
        UsageError: On whatever `compose` finds wrong, with file and row.
    """
    settings = [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in (entry.get("set") or {}).items()
    ]
    settings = [setting.removesuffix("\n").removesuffix("\n...") for setting in settings]
    try:
        return compose(entry["experiment"], entry["data"], entry["scale"], seed, [*settings, *more])
    except (UsageError, DataError) as problem:
        raise UsageError(f"{file}: {entry['label']}: {problem}") from problem


def _find_runs(entry: dict[str, Any], file: Path) -> Row:
    row = Row(str(entry["label"]), [], [], 0, *(entry.get(key) for key in ("published", "own_feature", "feature")))
    missing = 0
    for seed in entry["seeds"]:
        run = run_folder(compose_row(entry, int(seed), file), Path("runs"))
        record = run.finished()
        if record is None:
            missing += 1
            continue
        _check_task(record, run.root)
        row.runs.append(run)
        row.records.append(record)
    _check_features(row, file)
    return row._replace(missing=missing)


def _check_task(record: dict[str, Any], where: Path) -> None:
    if task_of(record).name != DEFAULT_TASK:
        raise UsageError(
            f"{where}: {record['task']} runs have no retrieval metrics, so they stand in no table with runs that have"
        )


def _check_features(row: Row, file: Path) -> None:
    """A misspelt candidate would be an empty cell, which reads as a missing run."""
    for record in row.records:
        known = {key.split("/")[1] for key in record["test"] if key.startswith("feature/")}
        for key, name in (("own_feature", row.own_feature), ("feature", row.feature)):
            if name and known and name not in known:
                raise UsageError(f"{file}: {row.label}: {key} {name}: {nearest(name, known)}")
