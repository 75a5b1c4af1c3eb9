"""Runs of several seeds as one table, made from metrics.json and the per-query scores beside it. No torch.

A table's file (experiments/ablations/<name>.yaml) names rows, and what they have in common:

    title: CAPTURE beside its floors
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

What the table says is made once, as a `Document`; `table_forms` writes it as Markdown, LaTeX or CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.detection_table import detection_table
from experiments.errors import UsageError
from experiments.runs import git_state, open_run, read_metrics
from experiments.scoreboard import LEVELS, ROWS, is_product_itself
from experiments.table_cells import SPLIT, against_own, metric
from experiments.table_comparison import comparison, head
from experiments.table_document import NOTHING, WITH_INTERVAL, WITH_STD, Cell, Column, Document, Grid, Line
from experiments.table_footnotes import footnotes
from experiments.table_forms import FORMS
from experiments.table_origin import commit, origin
from experiments.table_rows import AS_IN_FILE, RUNS, Choice, Plan, Row, group_runs, read_plan
from experiments.tasks import task_of


def make_table(
    runs: list[Path],
    table: str | None,
    command: str,
    choice: Choice = AS_IN_FILE,
    homes: Sequence[Path] = (RUNS,),
    form: str = "md",
    plot: Path | None = None,
    plot_metric: str | None = None,
) -> str:
    """The table of the given run folders, or of a table's file, as text.

    Args:
        choice: Data, scale and seeds instead of those of the table's file.
        homes: Where the run folders of the table's rows are.
        form: md, latex or csv.
        plot: Where to draw the rows' means, too (`table_plot`).
        plot_metric: What of, if not of the table's first metric.

    Raises:
        UsageError: If nothing is given, or a name, key or folder is unknown.
    """
    if bool(runs) == bool(table):
        raise UsageError("table wants run folders or TABLE=<name>, one of the two")
    if runs and choice.words():
        raise UsageError(
            f"{choice}: only a table's file has other runs to choose (TABLE=<name>); run folders are what they are"
        )
    if runs and all(task_of(read_metrics(open_run(run))).name == "detection" for run in runs):
        if plot:
            raise UsageError("--plot draws metrics of retrieval; these are runs of a detector")
        return FORMS[form](detection_table(runs, command))
    plan = read_plan(table, choice, homes) if table else group_runs(runs)
    if plot:
        from experiments.table_plot import draw

        draw(plan, plot, plot_metric)
    return FORMS[form](document(plan, table or "runs", command))


def document(plan: Plan, name: str, command: str, made_at: str | None = None) -> Document:
    """All that a table says of retrieval runs: rows side by side, and each row's block beside its floors.

    Args:
        command, made_at: What makes the table, and the commit of the code that does (default: the present one).
    """
    notes, marks = footnotes(plan)
    grids = [comparison(plan, marks)] if plan.base else []
    if plan.blocks:
        grids += [_block(row, plan.columns, mark) for row, mark in zip(plan.rows, marks, strict=True)]
    explanation = (
        f"Fractions, official definition, {SPLIT} split; ± is the standard deviation over seeds; intervals are paired",
        "bootstraps over seeds × queries.",
    )
    made_by = f"Table made by `{command}` at {made_at or commit(git_state())}."
    sources = origin([record for row in plan.rows for record in row.records])
    return Document(name, plan.title, grids, notes, explanation, made_by, sources)


def _block(row: Row, columns: Sequence[str], marks: Sequence[int] = ()) -> Grid:
    """One configuration beside its floors: mean ± std over seeds and the paired interval over seeds × queries."""
    line = partial(Line, num_runs=len(row.records), missing=row.missing, marks=marks)
    if not row.records:
        return Grid(row.label, [], [line("product feature", [])], head=head(row, marks))
    shown = []
    for column in columns:
        shown.append(Column(column, column, WITH_STD))
        shown.append(Column("product − this [95 %]", f"{column}: product - this", WITH_INTERVAL))
    lines = []
    levels = {label: f"{name}/" for name, label in LEVELS.items()}
    for label, prefix in {**ROWS, **levels}.items():
        if label in ROWS and all(is_product_itself(record, prefix) for record in row.records):
            continue
        cells: list[Cell] = []
        for column in columns:
            cells.append(metric(row, prefix, column))
            cells.append(against_own(row, prefix, column) if prefix else "")
        if any(cell not in (NOTHING, "") for cell in cells):
            lines.append(line(label, cells))
    return Grid(row.label, shown, lines, head=head(row, marks))
