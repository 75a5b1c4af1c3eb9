"""One static HTML page of a table: its numbers, drawings, curves, settings and runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from experiments.definitions import definitions, rankings
from experiments.history import read_history
from experiments.page import data_url, render
from experiments.report import REPORTS
from experiments.runs import RunFolder, write_text
from experiments.table import document
from experiments.table_cells import of_feature
from experiments.table_document import NOTHING
from experiments.table_html import html, prose
from experiments.table_rows import AS_IN_FILE, RUNS, Choice, Plan, Row, read_plan, row_settings

if TYPE_CHECKING:
    from markupsafe import Markup


def write_table_report(
    name: str, command: str, choice: Choice = AS_IN_FILE, homes: Sequence[Path] = (RUNS,), out: str | None = None
) -> Path:
    """Write the page of a table's file, also while runs are missing.

    Args:
        command: What was typed, for the page.
        choice: Data, scale and seeds instead of those of the table's file.
        homes: Where the run folders of its rows are.
        out: The page's path; default reports/table-<name>.html, with what was chosen in its name.

    Returns:
        Where it was written.

    Raises:
        UsageError: If there is no such table, or a key, name or folder in it is unknown.
    """
    plan = read_plan(name, choice, homes)
    path = Path(out) if out else REPORTS / f"table-{_file_name(name, choice)}.html"
    found = document(plan, name, command)
    curves, drawn = _curves(plan)
    heads = [column.head for grid in found.grids for column in grid.columns if column.head.strip()]
    labels = [line.label for grid in found.grids for line in grid.lines]
    keys = [*plan.columns, *(head.split()[-1] for head in heads), "product - this", *drawn]
    text = render(
        "table.html.j2",
        title=plan.title,
        name=name,
        num_finished=sum(len(row.records) for row in plan.rows),
        num_runs=sum(len(row.records) + row.missing for row in plan.rows),
        table=html(found),
        plots=list(_plots(plan)),
        curves=curves,
        settings=[_settings(row) for row in plan.rows],
        runs=(runs := [_runs(row, path.parent) for row in plan.rows]),
        linked=any(run["page"] for row in runs for run in row["runs"]),
        definitions=definitions(keys),
        rankings=rankings([*labels, *heads]),
        made_by=prose(found.made_by),
        origin=[prose(line) for line in found.origin],
    )
    write_text(path, text)
    return path


def _file_name(name: str, choice: Choice) -> str:
    """What tells this page from those of other data, scales and seeds."""
    seeds = "seeds-" + "-".join(map(str, choice.seeds)) if choice.seeds else ""
    rows = "rows-" + re.sub(r"[^A-Za-z0-9_.]+", "_", choice.rows) if choice.rows else ""
    return "-".join(filter(None, [name, Path(choice.data or "").name, choice.scale, seeds, rows]))


def _plots(plan: Plan) -> Iterator[dict[str, str]]:
    """A drawing for each metric that a run has."""
    from experiments.table_plot import means, picture

    for metric in plan.columns:
        drawn = means(plan, metric)
        if any(mean.mean is not None for mean in drawn):
            values = [f"{mean.label} {NOTHING if mean.mean is None else format(mean.mean, '.3f')}" for mean in drawn]
            alt = f"{metric} by row: {'; '.join(values)}"
            yield {"metric": metric, "alt": alt, "picture": data_url("image/svg+xml", picture(plan, metric))}


def _curves(plan: Plan) -> tuple[list[Markup], list[str]]:
    """The table's metrics on val over steps, a curve for each row, and the metrics that are drawn.

    A row of which a finished run has no curve is left out, never the mean of the others.
    """
    from experiments.curves import drawing, mean_over_seeds, series

    @cache
    def history(run: RunFolder) -> Sequence[dict[str, float]]:
        return read_history(run.history)

    drawings, drawn = [], []
    for metric in plan.columns:
        found = []
        for row in plan.rows:
            seeds = [series(history(run), f"val/{of_feature(row)}{metric}") for run in row.runs]
            if seeds and all(seeds):
                found.append(mean_over_seeds(row.label, seeds))
        found = [curve for curve in found if len(curve.points) > 1]
        if found:
            drawings.append(drawing(f"{metric} on val", found))
            drawn.append(metric)
    return drawings, drawn


def _settings(row: Row) -> dict[str, Any]:
    entry = row.entry or {}
    known = {key: str(entry.get(key, "")) for key in ("experiment", "data", "scale")}
    feature = [f"feature shown: {row.feature}"] if row.feature else []
    return {"label": row.label, "words": [*row_settings(entry), *feature], **known}


def _runs(row: Row, beside: Path) -> dict[str, Any]:
    """A row's runs, each with its own page where that lies in the same folder."""
    runs = [
        {"id": run.run_id, "page": quote(page) if (beside / (page := f"{run.run_id}.html")).is_file() else ""}
        for run in row.runs
    ]
    return {"label": row.label, "missing": row.missing, "runs": runs}
