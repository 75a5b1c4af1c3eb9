"""One static HTML page of a run: numbers beside their floors, curves, and what the model finds, pictures embedded."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config import HOME
from experiments.report_queries import shown_queries
from experiments.runs import RunFolder, open_run, read_metrics, write_text
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
INK = "#808080"  # readable on white and on black


def write_report(run: str | Path, out: str | None = None) -> Path:
    """Write the page of a finished run.

    Args:
        out: The page's path; default reports/<run_id>.html.

    Returns:
        Where it was written.

    Raises:
        UsageError: If there is no such run, or it has not finished.
    """
    folder = open_run(run)
    record = read_metrics(folder)
    queries, problem = shown_queries(folder, record)
    levels = level_rows(record, "test")
    page = _template().render(
        record=record,
        columns=COLUMNS,
        floors=_floor_rows(record, COLUMNS),
        level=LEVELS[record.get("level", "whole")],
        level_columns=LEVEL_COLUMNS,
        levels=_rows(record, LEVEL_COLUMNS, levels) if len(levels) > 1 else [],
        level_note=level_note(record, "test"),
        same_columns=SAME_COLUMNS,
        same_floors=_floor_rows(record, SAME_COLUMNS),
        same_queries=same_queries(record) if record.get("same") else "",
        cutoffs=_cutoffs(record),
        curves=_curves(folder),
        graph=_graph(folder),
        queries=queries,
        problem=problem,
        environment=_environment(record),
        config=folder.config.read_text(encoding="utf-8"),
    )
    path = Path(out) if out else Path("reports") / f"{folder.run_id}.html"
    write_text(path, page)
    return path


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    # Captions and labels come from strangers: everything is escaped, only our own drawings are marked as markup.
    environment = Environment(loader=FileSystemLoader(HOME / "templates"), autoescape=True)
    return environment.get_template("report.html.j2")


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


def _curves(folder: RunFolder) -> list[Any]:
    """Losses and validation metrics over steps, as inline SVG."""
    from markupsafe import Markup

    from experiments.history import read_history

    rows = read_history(folder.history)
    losses = sorted({key for row in rows for key in row if key.startswith("train/loss")})
    drawings = []
    for title, keys in (("training losses", losses), ("validation", [f"val/{column}" for column in COLUMNS])):
        series = {key: [(row["step"], row[key]) for row in rows if key in row] for key in keys}
        series = {key: points for key, points in series.items() if len(points) > 1}
        if series:
            drawings.append(Markup(_drawing(title, series)))
    return drawings


def _drawing(title: str, series: dict[str, list[tuple[float, float]]]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "text.color": INK, "axes.labelcolor": INK}
    style |= {"axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "font.family": "sans-serif"}
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        for name, points in series.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name, linewidth=1.5)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize="small")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _graph(folder: RunFolder) -> str:
    """The picture of the entity graph as a data url, "" where there is none.

    As a picture, not as markup of the page: the names in it come from strangers.
    """
    file = folder.graph.with_suffix(".svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""


def _environment(record: dict[str, Any]) -> list[tuple[str, str]]:
    git = record["git"]
    commit = f"{git.get('commit') or 'no repository'}{' with uncommitted changes' if git.get('dirty') else ''}"
    rows = [("command", record["command"]), ("commit", commit)]
    rows += [("data", f"{record['data']}, hash {record['data_hash']}"), ("metrics", record["metric_version"])]
    rows += [("training", f"{record['train_seconds']} s, {record.get('samples_per_second') or '–'} samples/s")]
    rows += [(key.replace("_", " "), str(value)) for key, value in record.get("throughput", {}).items()]
    return rows + [
        (key, ", ".join(value) if isinstance(value, list) else str(value)) for key, value in record["hardware"].items()
    ]
