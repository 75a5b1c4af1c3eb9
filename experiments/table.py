"""Runs of several seeds as one Markdown table, made from metrics.json and the per-query scores beside it. No torch.

A table's file (experiments/ablations/<name>.yaml) names rows, and what they have in common:

    title: CAPTURE on real photographs
    experiment: capture
    scale: tiny
    seeds: [0, 1, 2]
    rows:
      - {label: grocery, data: grocery}
      - {label: fashion, data: fashion, set: {model.lr: 5.0e-4}}

With `base: <label>` the rows are also compared with one of them, paired by seed and query. The comparison gets further
columns by `costs: true` (parameters, time to train, time to embed), and per row by `own_feature: <candidate>` (the
paper's own retrieval feature) and `published: {mAP@10: 0.5}`, which wants a `published_source`. `blocks: false` leaves
out the rows' own blocks and shows the base row's floors in the comparison instead. `columns: [mAP@10, same/mAP@10]`
chooses the metrics, also of the identical-product task. Runs whose queries were also read by instance
(`set: {data.instances: [detected, "true"]}`) have a row in their block for each other level.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.runs import git_state
from experiments.scoreboard import LEVELS, ROWS, is_product_itself
from experiments.table_cells import NOTHING, SPLIT, against_own, metric
from experiments.table_comparison import comparison, head
from experiments.table_rows import Row, group_runs, read_plan


def make_table(runs: list[Path], table: str | None, command: str) -> str:
    """The table of the given run folders, or of a table's file, as Markdown.

    Raises:
        UsageError: If nothing is given, or a name, key or folder is unknown.
    """
    if bool(runs) == bool(table):
        raise UsageError("table wants run folders or TABLE=<name>, one of the two")
    plan = read_plan(table) if table else group_runs(runs)
    parts = [f"### {plan.title}\n\n"] if plan.title else []
    if plan.base:
        parts.append(comparison(plan))
    if plan.blocks:
        parts += [_block(row, plan.columns) for row in plan.rows]
    return "\n".join([*parts, _origin(plan.rows, command)])


def _block(row: Row, columns: Sequence[str]) -> str:
    """One configuration beside its floors: mean ± std over seeds and the paired interval over seeds × queries."""
    if not row.records:
        return f"{head(row)}\n"
    lines = [head(row), "", "| | " + " | ".join(f"{column} | product − this [95 %]" for column in columns) + " |"]
    lines.append("|---|" + "---:|---:|" * len(columns))
    levels = {label: f"{name}/" for name, label in LEVELS.items()}
    for label, prefix in {**ROWS, **levels}.items():
        if label in ROWS and all(is_product_itself(record, prefix) for record in row.records):
            continue
        cells = []
        for column in columns:
            cells.append(metric(row, prefix, column))
            cells.append(against_own(row, prefix, column) if prefix else "")
        if any(cell not in (NOTHING, "") for cell in cells):
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _origin(rows: list[Row], command: str) -> str:
    """Where the numbers come from: commands, commits, hardware."""
    records = [record for row in rows for record in row.records]
    lines = [
        f"Fractions, official definition, {SPLIT} split; ± is the standard deviation over seeds; intervals are paired"
    ]
    lines.append(f"bootstraps over seeds × queries. Table made by `{command}` at {_commit(git_state())}.")
    for text in sorted({f"`{record['command']}` at {_commit(record['git'])}" for record in records}):
        lines.append(f"* {text}")
    machines = sorted({_machine(record["hardware"]) for record in records})
    lines += [f"* on {machine}" for machine in machines]
    return "\n".join(lines) + "\n"


def _commit(git: dict[str, Any]) -> str:
    commit = str(git.get("commit") or "no commit")[:10]
    return f"{commit} with uncommitted changes" if git.get("dirty") else commit


def _machine(hardware: dict[str, Any]) -> str:
    gpus = ", ".join(hardware.get("gpus") or [])
    return f"{hardware.get('cpu')}, {hardware.get('cores')} cores" + (f", {gpus}" if gpus else "")
