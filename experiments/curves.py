"""Learning curves as inline SVG, in the text colour of the page that holds them: so they also read in dark mode."""

from __future__ import annotations

import html
import io
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

Points = list[tuple[float, float]]  # (step, value), steps ascending

INK = "#010203"  # drawn in it; becomes the page's own text colour
# Visible on white and on black; neighbours differ in dashes too, for readers who see no difference in colour.
COLOURS = ("#2b7bc8", "#d55e00", "#009e73", "#b85aa5", "#8c7a00", "#7a74e0")
DASHES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)))
LABEL_LETTERS = 34
STYLE: Any = {"svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}
STYLE |= {"xtick.color": INK, "ytick.color": INK, "font.size": 10}


class Curve(NamedTuple):
    """One line of a drawing, and the seeds it is the mean of where there are several."""

    label: str
    points: Points
    seeds: Sequence[Points] = ()


def series(rows: Sequence[Mapping[str, float]], key: str) -> Points:
    """One logged value over steps, from the rows of a history; the later of two at the same step."""
    return sorted({row["step"]: row[key] for row in rows if key in row}.items())


def mean_over_seeds(label: str, seeds: Sequence[Points]) -> Curve:
    """A curve of the steps that every seed has: never the mean of those that happen to be there."""
    if len(seeds) == 1:
        return Curve(label, seeds[0])
    by_step = [dict(points) for points in seeds]
    shared = sorted(set(by_step[0]).intersection(*by_step[1:])) if by_step else []
    return Curve(label, [(step, statistics.fmean(values[step] for values in by_step)) for step in shared], seeds)


def drawing(title: str, curves: Sequence[Curve]) -> Markup:
    """Curves over steps, seeds thin behind their mean, the legend below."""
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and settings of its own

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # letters are the browser's to draw
        rows = -(-len(curves) // 2)
        figure = Figure(figsize=(5, 3 + 0.22 * rows), layout="constrained")
        axes = figure.subplots()
        for number, curve in enumerate(curves):
            look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
            for points in curve.seeds:
                axes.plot(*zip(*points, strict=True), linewidth=0.7, alpha=0.6, **look)
            axes.plot(*zip(*curve.points, strict=True), linewidth=1.8, label=_short(curve.label), **look)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.2)
        legend = figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small", handlelength=3)
        for text in (axes.title, *legend.get_texts()):
            text.set_parse_math(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_inline(buffer.getvalue(), title))  # matplotlib escapes the labels


def _short(label: str) -> str:
    """A label as far as a legend has room for it."""
    return label if len(label) <= LABEL_LETTERS else label[: LABEL_LETTERS - 1] + "…"


def _inline(text: str, title: str) -> str:
    """An SVG file as a part of a page: named for those who do not see it, and without ids that others may have."""
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
