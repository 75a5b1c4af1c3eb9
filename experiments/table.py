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
(`set: {data.instances: [detected, "true"]}`) have a row in their block for each other level. A row with
`feature: <candidate>` shows the numbers of that retrieval feature, not of the one chosen on val: such rows share a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.detection_table import detection_table
from experiments.errors import UsageError
from experiments.runs import git_state, open_run, read_metrics
from experiments.scoreboard import LEVELS, ROWS, is_product_itself
from experiments.table_cells import NOTHING, SPLIT, against_own, metric
from experiments.table_comparison import comparison, head
from experiments.table_origin import commit, origin
from experiments.table_rows import AS_IN_FILE, RUNS, Choice, Row, group_runs, read_plan
from experiments.tasks import task_of


def make_table(
    runs: list[Path], table: str | None, command: str, choice: Choice = AS_IN_FILE, home: Path = RUNS
) -> str:
    """The table of the given run folders, or of a table's file, as Markdown.

    Args:
        choice: Data, scale and seeds instead of those of the table's file.
        home: Where the run folders of the table's rows are.

    Raises:
        UsageError: If nothing is given, or a name, key or folder is unknown.
    """
    if bool(runs) == bool(table):
        raise UsageError("table wants run folders or TABLE=<name>, one of the two")
    if runs and choice.given():
        raise UsageError(
            f"{choice}: only a table's file has other runs to choose (TABLE=<name>); run folders are what they are"
        )
    if runs and all(task_of(read_metrics(open_run(run))).name == "detection" for run in runs):
        return detection_table(runs, command)
    plan = read_plan(table, choice, home) if table else group_runs(runs)
    parts = [f"### {plan.title}\n\n"] if plan.title else []
    if plan.base:
        parts.append(comparison(plan))
    if plan.blocks:
        parts += [_block(row, plan.columns) for row in plan.rows]
    lines = [
        f"Fractions, official definition, {SPLIT} split; ± is the standard deviation over seeds; intervals are paired",
        f"bootstraps over seeds × queries. Table made by `{command}` at {commit(git_state())}.",
    ]
    return "\n".join([*parts, *lines, origin([record for row in plan.rows for record in row.records])])


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
