"""`report`: one static HTML page of a run, or of a table, with everything in it that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.definitions import definitions
from experiments.page import render
from experiments.runs import RunFolder, open_run, read_metrics, write_text
from experiments.tasks import task_of

if TYPE_CHECKING:
    from markupsafe import Markup

REPORTS = Path("reports")


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
    task = task_of(record)
    template, contents = task.page(folder, record)
    curves, drawn = _curves(folder, task.curves)
    keys = [*contents.pop("keys"), *drawn, *_speed(record)]
    page = render(
        template,
        record=record,
        curves=curves,
        definitions=definitions(keys),
        environment=_environment(record),
        config=folder.config.read_text(encoding="utf-8"),
        **contents,
    )
    path = Path(out) if out else REPORTS / f"{folder.run_id}.html"
    write_text(path, page)
    return path


def _curves(folder: RunFolder, metrics: Sequence[str]) -> tuple[list[Markup], list[str]]:
    """Losses and validation metrics over steps, and which of them are drawn."""
    from experiments.curves import Curve, drawing, series
    from experiments.history import read_history

    rows = read_history(folder.history)
    losses = sorted({key for row in rows for key in row if key.startswith("train/loss")})
    drawings, drawn = [], []
    for title, keys in (("training losses", losses), ("validation", metrics)):
        found = [Curve(key, points) for key in keys if len(points := series(rows, key)) > 1]
        if found:
            drawings.append(drawing(title, found))
            drawn += [curve.label for curve in found]
    return drawings, drawn


def _environment(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and, of a number that has a definition, its key."""
    git = record["git"]
    commit = f"{git.get('commit') or 'no repository'}{' with uncommitted changes' if git.get('dirty') else ''}"
    rows = [("command", record["command"], ""), ("commit", commit, "")]
    rows += [("data", f"{record['data']}, hash {record['data_hash']}", ""), ("metrics", record["metric_version"], "")]
    rows += [("training", f"{record['train_seconds']} s", "")]
    rows += [(key.replace("_", " "), str(value), key) for key, value in _speed(record).items()]
    return rows + [
        (key.replace("_", " "), (", ".join(value) or "none") if isinstance(value, list) else str(value), "")
        for key, value in record["hardware"].items()
    ]


def _speed(record: dict[str, Any]) -> dict[str, Any]:
    """What was measured while training; older records have the samples per second alone."""
    known = {key: record[key] for key in ("samples_per_second",) if record.get(key)}
    return dict(record.get("throughput") or known)
