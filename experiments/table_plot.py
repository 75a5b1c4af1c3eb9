"""A table's rows drawn: bars of their means with 95 % intervals, or a curve where they differ in one number alone.

Black on white and greys, so that it can be printed. The same runs give the same file, byte for byte.
"""

from __future__ import annotations

import io
import statistics
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from experiments.errors import UsageError, nearest
from experiments.graph_picture import fonts_for
from experiments.runs import atomic
from experiments.scoreboard import value_of
from experiments.table_cells import SPLIT, of_feature, over_queries
from experiments.table_document import NOTHING, one_line
from experiments.table_factor import Factor, numeric_factor
from experiments.table_footnotes import footnotes
from experiments.table_markdown import superscript
from experiments.table_rows import Plan, Row

ENDINGS = (".png", ".svg")
DPI = 160
WIDTH, BAR_HEIGHT, AROUND = 6.4, 0.3, 1.3  # inches
PAGE_WIDTH = 5.2
LOG_FROM = 20  # the largest by the smallest value of a factor from which its axis is logarithmic
LABEL_LETTERS, TITLE_LETTERS, NOTE_LETTERS = 36, 92, 118  # in a line
CONFIDENCE = 0.95
STYLE: Any = {"svg.hashsalt": "table", "svg.fonttype": "none", "font.size": 9, "hatch.linewidth": 0.6}


class Mean(NamedTuple):
    """A row's metric over its seeds."""

    label: str
    mean: float | None = None  # None: no run, or one that lacks the metric
    half_width: float | None = None  # of the 95 % interval of the mean; None of a single seed
    over_queries: tuple[float, float] | None = None  # of a single seed: the ends of its interval over queries
    num_seeds: int = 0
    missing: int = 0
    marks: str = ""  # of footnotes

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of the interval that is drawn."""
        if self.mean is None or self.half_width is None:
            return self.over_queries
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def remark(self) -> str:
        """How many seeds, where that has to be said, and footnotes."""
        counted = f"n = {self.num_seeds} of {self.num_seeds + self.missing}" if self.missing else ""
        counted = counted or ("n = 1" if self.num_seeds == 1 else "")
        return f"{counted} {self.marks}".strip() if self.mean is not None else ""


def draw(plan: Plan, file: Path, metric: str | None = None) -> list[Path]:
    """Draw one metric of all rows.

    Args:
        file: .png or .svg; without an ending both are written. metric: default the table's first.

    Returns: The files.

    Raises:
        UsageError: If no run has the metric.
    """
    metric = metric or plan.columns[0]
    _check(plan, metric)
    files = [file] if file.suffix else [file.with_name(file.name + ending) for ending in ENDINGS]
    for path in files:
        with atomic(path) as temporary, temporary.open("wb") as target:
            _save(plan, metric, target, path.suffix[1:])
    return files


def picture(plan: Plan, metric: str) -> bytes:
    """The same as the content of an SVG file for a page, which has the title already and may be narrow."""
    buffer = io.BytesIO()
    _save(plan._replace(title=""), metric, buffer, "svg", PAGE_WIDTH)
    return buffer.getvalue()


def means(plan: Plan, metric: str) -> list[Mean]:
    """What is drawn of each row."""
    marks = footnotes(plan)[1]
    return [mean_of(row, metric, superscript(mark)) for row, mark in zip(plan.rows, marks, strict=True)]


def mean_of(row: Row, metric: str, marks: str = "") -> Mean:
    """Mean over seeds, with Student's interval: of three seeds ± 2.5 standard deviations.

    One seed says nothing of others: its interval is that over queries.

    A row of which one run lacks the metric has no mean: never averaged over what happens to be there.
    """
    found = [value_of(record, SPLIT, of_feature(row), metric) for record in row.records]
    values = [value for value in found if value is not None]
    label = one_line(row.label)
    if not values or len(values) < len(found):
        return Mean(label, missing=row.missing, marks=marks)
    if len(values) == 1:
        queries = over_queries(row.runs[0], of_feature(row) + metric) if row.runs else None
        return Mean(label, values[0], None, queries, 1, row.missing, marks)
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half_width = quantile * statistics.stdev(values) / len(values) ** 0.5
    return Mean(label, statistics.fmean(values), half_width, None, len(values), row.missing, marks)


def _check(plan: Plan, metric: str) -> None:
    """A misspelt metric would be a picture of missing runs."""
    known = {name for row in plan.rows for record in row.records for name in record.get(SPLIT, {})}
    if known and metric not in known:
        raise UsageError(f"--metric {metric}: {nearest(metric, known)}")


def _save(plan: Plan, metric: str, target: BinaryIO, kind: str, width: float = WIDTH) -> None:
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and settings of its own

    drawn, factor, notes = means(plan, metric), numeric_factor(plan.rows), footnotes(plan)[0]
    letters = "".join(sorted(set("".join([plan.title, *(mean.label for mean in drawn)]))))
    with matplotlib.rc_context(STYLE | {"font.family": fonts_for(letters)[0]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # boxes in the PNG; the SVG holds the letters
        height = 3.6 if factor else AROUND + BAR_HEIGHT * len(drawn)
        height += 0.3 * len(notes)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots()
        if plan.title:
            title = textwrap.fill(plan.title, TITLE_LETTERS)
            figure.suptitle(title, x=0.01, ha="left", fontsize=9, parse_math=False)
        single = any(mean.over_queries for mean in drawn)
        shown = f"{metric} ({SPLIT}), mean over seeds and its 95 % interval" + single * " (n = 1: over queries)"
        if factor:
            _curve(axes, drawn, factor)
            axes.set_ylabel(_in_lines(shown))
            axes.set_xlabel(factor.key)
        else:
            base = plan.rows.index(plan.base) if plan.base else None
            _bars(axes, drawn, base)
            axes.set_xlabel(shown if width == WIDTH else _in_lines(shown))
        if notes:
            texts = [f"{superscript([number])} {note.replace('`', '')}" for number, note in enumerate(notes, 1)]
            below = "\n".join(line for text in texts for line in textwrap.wrap(text, NOTE_LETTERS))
            figure.supxlabel(below, x=0.01, ha="left", fontsize=7, parse_math=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.savefig(target, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)


def _in_lines(text: str) -> str:
    return text.replace(", ", ",\n").replace(" (n", "\n(n")


def _bars(axes: Any, means: Sequence[Mean], base: int | None) -> None:
    """The base row dark, single seeds hatched; rows from top to bottom as in the table."""
    for place, mean in enumerate(means):
        if mean.mean is None:
            axes.text(0, place, f" {NOTHING}  no number", va="center", color="0.35")
            continue
        single = mean.half_width is None
        fill = "white" if single else "0.55" if place == base else "0.85"
        look: dict[str, Any] = {"facecolor": fill, "edgecolor": "black", "hatch": "////" if single else ""}
        axes.barh(place, mean.mean, height=0.7, linewidth=0.8, **look)
        if mean.ends is not None:
            axes.errorbar(mean.mean, place, xerr=_around(mean), capsize=3, linewidth=1.1, **_ink(mean))
        end = min(mean.ends[1] if mean.ends else mean.mean, 1.0)
        axes.annotate(
            f"{mean.mean:.3f}" + (f", {mean.remark}" if mean.remark else ""),
            (end, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    wrapped = ["\n".join(textwrap.wrap(mean.label, LABEL_LETTERS, max_lines=2, placeholder="…")) for mean in means]
    axes.set_yticks(range(len(means)), wrapped)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(means) - 0.4, -0.6)
    axes.set_xlim(0, _upper(means))


def _curve(axes: Any, means: Sequence[Mean], factor: Factor) -> None:
    """Points at the factor's values, joined where both neighbours have a number; a gap is a row without."""
    points = sorted(zip(factor.values, means, strict=True), key=lambda point: point[0])
    x = [value for value, _ in points]
    y = [float("nan") if mean.mean is None else mean.mean for _, mean in points]
    axes.plot(x, y, color="black", linewidth=1.2, zorder=1)
    for value, mean in points:
        if mean.mean is None:
            axes.text(
                value, 0.02, f"{NOTHING}\nno number", transform=axes.get_xaxis_transform(), ha="center", color="0.35"
            )
            continue
        single = mean.half_width is None
        point = {"marker": "o", "markeredgecolor": "black", "markerfacecolor": "white" if single else "black"}
        axes.errorbar(value, mean.mean, yerr=_around(mean), capsize=3, zorder=2, **point, **_ink(mean))
        if mean.remark:
            axes.annotate(mean.remark, (value, mean.mean), xytext=(6, 6), textcoords="offset points", fontsize=8)
    if min(x) > 0 and max(x) / min(x) >= LOG_FROM:
        axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()


def _around(mean: Mean) -> list[list[float]] | None:
    """Lengths below and above the mean, as Matplotlib wants them."""
    if mean.mean is None or mean.ends is None:
        return None
    return [[mean.mean - mean.ends[0]], [mean.ends[1] - mean.mean]]


def _ink(mean: Mean) -> dict[str, str]:
    """An interval over queries alone is grey: it knows nothing of other seeds."""
    return {"color": "black"} if mean.over_queries is None else {"color": "0.6", "ecolor": "0.6"}


def _upper(means: Sequence[Mean]) -> float:
    """Metrics are fractions: an interval of two seeds may reach far beyond, and would leave no room for the bars."""
    ends = [mean.ends[1] if mean.ends else mean.mean for mean in means if mean.mean is not None]
    return min(max(ends, default=1.0) * 1.05, 1.0) or 1.0
