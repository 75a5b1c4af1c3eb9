"""Finished runs of a table, kept in the repository: what tables need of each run, and which run stands in which row.

    experiments/results/runs/<run_id>/            metrics.json, config.yaml and the per-query scores; no checkpoint
    experiments/results/<table>-<data>/table.json the rows, by the ids of their runs; <table>-<data>-<scale> where the
                                                  scale was chosen, and is not the file's own
                                       table.md   the same as text, beside its plot

A record is read without shards and without torch, so a table can be shown, checked and extended where its data are not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.config import HOME
from experiments.errors import UsageError
from experiments.runs import SAME_FILE, RunFolder, atomic, git_state, open_run, read_metrics, write_json, write_text
from experiments.scoreboard import COLUMNS, LEVEL_COLUMNS, SAME_COLUMNS
from experiments.stored_scores import read_arrays
from experiments.table import document
from experiments.table_markdown import markdown
from experiments.table_origin import commit
from experiments.table_rows import Plan, Row

RESULTS = HOME / "results"
SCORES = ("test", SAME_FILE)  # of rankings/: what paired intervals are made from
ALWAYS_KEPT = {*COLUMNS, *LEVEL_COLUMNS, *SAME_COLUMNS}  # metrics whose per-query scores any table may want
QUERY_IDS = "query_ids"


class Record(NamedTuple):
    """A recorded table."""

    folder: Path
    table: str
    plan: Plan
    command: str  # that made it
    commit: str

    def text(self) -> str:
        """The whole table as Markdown."""
        return markdown(document(self.plan, self.table, self.command, self.commit))


def runs_of(results: Path = RESULTS) -> Path:
    """Where recorded runs are."""
    return results / "runs"


def homes(runs: Path, recorded: bool) -> tuple[Path, ...]:
    """Where a table's runs are looked for: their own folder, then, if asked for, what is kept here."""
    return (runs, runs_of()) if recorded else (runs,)


def record_table(plan: Plan, table: str, command: str, results: Path = RESULTS, scale: str | None = None) -> Record:
    """Keep the finished runs of a table's rows, and the table.

    Args:
        scale: Where it is another than the table's file has: the table is then kept beside that of the file's own.

    Raises:
        UsageError: If no run of the table has finished.
    """
    runs = [run for row in plan.rows for run in row.runs]
    if not runs:
        raise UsageError(f"{table}: no run has finished, so there is nothing to record; `make ablation TABLE={table}`")
    made_at = commit(git_state())  # before the copies count as uncommitted changes
    for run in runs:
        keep_run(run, plan.columns, results)
    data = {record["data"] for row in plan.rows for record in row.records}
    name = f"{table}-{data.pop()}" if len(data) == 1 else table
    folder = results / (f"{name}-{scale}" if scale else name)
    rows = [{**_stored(row), "runs": [run.run_id for run in row.runs]} for row in plan.rows]
    about: dict[str, Any] = {"table": table, "command": command, "commit": made_at}
    about |= {"title": plan.title, "base": plan.base.label if plan.base else None}
    about |= {key: getattr(plan, key) for key in ("published_source", "costs", "blocks", "columns")}
    write_json(folder / "table.json", {**about, "rows": rows})
    record = read_record(folder)
    write_text(folder / "table.md", record.text())
    return record


def read_record(folder: Path) -> Record:
    """A recorded table with the runs of its rows.

    Raises:
        UsageError: If the folder holds none, or one of its runs is missing.
    """
    file = folder / "table.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file}: missing; `make results TABLE=…` writes it") from None
    rows = [_row(stored, runs_of(folder.parent)) for stored in content["rows"]]
    base = next((row for row in rows if row.label == content["base"]), None)
    plan = Plan(rows, content["title"], base, content["published_source"], content["costs"], content["blocks"])
    plan = plan._replace(columns=tuple(content["columns"]))
    return Record(folder, content["table"], plan, content["command"], content["commit"])


def records(results: Path = RESULTS) -> list[Record]:
    """All recorded tables, by name."""
    return [read_record(file.parent) for file in sorted(results.glob("*/table.json"))]


def keep_run(run: RunFolder, columns: Iterable[str] = (), results: Path = RESULTS) -> None:
    """Copy of a run what a table needs; scores that are there already stay if the run is still the same."""
    kept = RunFolder(runs_of(results) / run.run_id)
    if kept.root.resolve() == run.root.resolve():
        return
    same = kept.metrics.is_file() and kept.metrics.read_bytes() == run.metrics.read_bytes()
    kept.root.mkdir(parents=True, exist_ok=True)
    for source, target in ((run.metrics, kept.metrics), (run.config, kept.config)):
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
    for name in SCORES:
        source, target = run.rankings / f"{name}.npz", kept.rankings / f"{name}.npz"
        if not source.is_file():
            continue
        wanted = {*ALWAYS_KEPT, *columns, *(_measures(target) if same else ())}
        stored = read_arrays(source)
        scores = {key: values for key, values in stored.items() if key == QUERY_IDS or _measure(key) in wanted}
        with atomic(target) as temporary:
            np.savez_compressed(temporary, **scores)  # type: ignore[arg-type]


def _measures(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    return {_measure(key) for key in read_arrays(file)}


def _measure(key: str) -> str:
    """`image/mAP@10` -> `mAP@10`, `image/same/mAP@10` -> `same/mAP@10`."""
    words = key.split("/")
    return "/".join(words[-2:] if "same" in words else words[-1:])


STORED = ("label", "missing", "published", "own_feature", "feature", "entry")  # of a row, beside its runs


def _stored(row: Row) -> dict[str, Any]:
    return {key: getattr(row, key) for key in STORED}


def _row(stored: dict[str, Any], home: Path) -> Row:
    runs = [open_run(home / run_id) for run_id in stored["runs"]]
    return Row(runs=runs, records=[read_metrics(run) for run in runs], **{key: stored[key] for key in STORED})
