"""One static HTML page of a run: what its task shows of it, curves, environment, configuration; pictures embedded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config import HOME
from experiments.runs import RunFolder, open_run, read_metrics, write_text
from experiments.tasks import task_of

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
    task = task_of(record)
    template, contents = task.page(folder, record)
    page = _template(template).render(
        record=record,
        curves=_curves(folder, task.curves),
        environment=_environment(record),
        config=folder.config.read_text(encoding="utf-8"),
        **contents,
    )
    path = Path(out) if out else Path("reports") / f"{folder.run_id}.html"
    write_text(path, page)
    return path


def _template(name: str) -> Any:
    from jinja2 import Environment, FileSystemLoader

    # Captions and labels come from strangers: everything is escaped, only our own drawings are marked as markup.
    environment = Environment(loader=FileSystemLoader(HOME / "templates"), autoescape=True)
    return environment.get_template(name)


def _curves(folder: RunFolder, metrics: Sequence[str]) -> list[Any]:
    """Losses and validation metrics over steps, as inline SVG."""
    from markupsafe import Markup

    from experiments.history import read_history

    rows = read_history(folder.history)
    losses = sorted({key for row in rows for key in row if key.startswith("train/loss")})
    drawings = []
    for title, keys in (("training losses", losses), ("validation", metrics)):
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
