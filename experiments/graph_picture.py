"""A picture of the entity graph around some entities: names as nodes, similarity as the width and number of a line.

Shape legend: N entities, K neighbours kept of each, M entities shown.
"""

from __future__ import annotations

import functools
import io
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.graph_layout import Size, place
from experiments.output import say
from experiments.runs import atomic

NODES_SHOWN = 36
NEIGHBOURS_SHOWN = 4  # of a chosen entity, the most similar ones
LEAST_SIMILARITY = 0.5  # of a line; below it an entity is a negative of the other (REFERENCE §5)
NAME_LETTERS = 18
FONT_PT, NUMBER_PT, TITLE_PT = 9.0, 6.5, 10.0
EM_INCH = FONT_PT / 72
DPI = 150
PALETTE = ("#cfe2f3", "#fde2c8", "#d5ecd0", "#f7d4d4", "#e4d9f2", "#e8dcd2", "#fadcee", "#f3f0c3", "#cdeef2", "#e6e6e6")
REGULAR = ("400", "normal", "regular")
OTHER = "other"  # tags behind the most frequent ones share the last colour

_told: set[str] = set()  # letters that were said to have no font


class Edge(NamedTuple):
    """Two shown entities and their similarity."""

    first: int
    second: int
    score: float


def draw_graph(
    names: Sequence[str],
    neighbours: Any,
    chosen: Sequence[int] | str = "auto",
    tags: Sequence[str] | None = None,
    kind: str = "png",
) -> bytes:
    """The graph around chosen entities as a picture.

    Args:
        names: Of the N entities.
        neighbours: index_NK (-1 = none) and score_NK, best first.
        chosen: Their rows, outlined; "auto" takes those with the most confident neighbours, and each from another
            part of the graph.
        tags: Of the N entities, for the colours; without them each connected group has its own.
        kind: "png", or "svg", whose text the reader's own fonts show.

    Returns: The picture; equal arguments give equal bytes.

    Raises: ValueError on rows outside the table.
    """
    index_NK, score_NK = (np.asarray(part) for part in neighbours)
    if len(names) != len(index_NK):
        raise ValueError(f"{len(names)} names for a graph of {len(index_NK)} entities")
    chosen_rows = _confident(index_NK, score_NK) if isinstance(chosen, str) else [int(row) for row in chosen]
    outside = [row for row in chosen_rows if not 0 <= row < len(names)]
    if outside:
        raise ValueError(f"entity {outside[0]} is outside the graph of {len(names)} entities")
    rows = _with_neighbours(index_NK, score_NK, chosen_rows, asked_for=not isinstance(chosen, str))
    edges = _edges(index_NK, score_NK, rows)
    labels = {row: _cleaned(names[row]) for row in rows}
    sizes = {row: Size(_width_em(label) * EM_INCH + 0.14, 2.1 * EM_INCH) for row, label in labels.items()}
    groups, centres, page = place(rows, [edge[:2] for edge in edges], sizes)
    colour_of, legend = _by_tag(rows, tags) if tags is not None else _by_group(groups)
    title = (
        f"{len(rows)} of {len(names)} entities; numbers are similarities, from {LEAST_SIMILARITY} on; outlined: chosen"
    )
    return _drawn(labels, edges, centres, sizes, page, colour_of, legend, set(chosen_rows), title, kind)


def write_graph(base: Path, model: Any, data: Any) -> bool:
    """Write `<base>.png` and `<base>.svg` if the model has a graph that is built.

    A picture that fails costs the picture, not the run, and says so.
    """
    graph = getattr(model, "graph", None)
    if graph is None or not graph.is_built:
        return False
    try:
        table = data.entity_table  # only now: shards of a model without a graph need have no entities
        neighbours = [part.detach().cpu().numpy() for part in graph.neighbours]
        num = len(neighbours[0])
        names, tags = list(table.names)[:num], getattr(table, "tags", None)
        for kind in ("png", "svg"):
            picture = draw_graph(names, neighbours, tags=None if tags is None else list(tags)[:num], kind=kind)
            with atomic(base.with_suffix(f".{kind}")) as temporary:
                temporary.write_bytes(picture)
    except Exception as problem:
        say(f"no picture of the entity graph: {type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}")
        return False
    return True


# ---- what is shown -------------------------------------------------------------------------------------------------


def _confident(index_NK: np.ndarray, score_NK: np.ndarray) -> list[int]:
    """Entities by falling sum of their similarities, none a neighbour of an earlier one; as many as may be shown."""
    known_NK = (index_NK >= 0) & (score_NK >= LEAST_SIMILARITY)
    confidence_N = np.where(known_NK, score_NK, 0.0).sum(1)
    found: list[int] = []
    covered = np.zeros(len(index_NK), bool)
    for row in np.argsort(-confidence_N, kind="stable").tolist():
        if confidence_N[row] <= 0 or len(found) == NODES_SHOWN:
            break
        if not covered[row]:
            found.append(row)
            covered[row] = True
            covered[index_NK[row][known_NK[row]]] = True
    return found


def _with_neighbours(index_NK: np.ndarray, score_NK: np.ndarray, chosen: Sequence[int], asked_for: bool) -> list[int]:
    """Each chosen entity with its nearest ones, as long as there is room; all that are asked for are shown."""
    shown: dict[int, None] = dict.fromkeys(chosen) if asked_for else {}
    for row in chosen:
        if len(shown) > NODES_SHOWN - (1 if asked_for else 3):  # nobody asked for an entity without its neighbours
            break
        near_K = index_NK[row][(index_NK[row] >= 0) & (score_NK[row] >= LEAST_SIMILARITY)]
        shown.update(dict.fromkeys([row, *near_K[:NEIGHBOURS_SHOWN].tolist()]))
    return list(shown)[: max(NODES_SHOWN, len(chosen) if asked_for else 0)]


def _edges(index_NK: np.ndarray, score_NK: np.ndarray, rows: Sequence[int]) -> list[Edge]:
    """Pairs of shown entities that either one lists, by falling similarity."""
    shown, found = set(rows), dict[tuple[int, int], float]()
    for row in rows:
        for other, score in zip(index_NK[row].tolist(), score_NK[row].tolist(), strict=True):
            if other in shown and other != row and score >= LEAST_SIMILARITY:
                pair = (min(row, other), max(row, other))
                found[pair] = max(score, found.get(pair, 0.0))
    return sorted((Edge(*pair, score) for pair, score in found.items()), key=lambda edge: (-edge.score, edge[:2]))


def _cleaned(name: str) -> str:
    """One line of a bounded length, whatever the catalogue holds."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    return line if len(line) <= NAME_LETTERS else line[: NAME_LETTERS - 1] + "…"


def _width_em(label: str) -> float:
    """By the kind of letter, not by a font, which may lack it: a picture looks the same wherever it is laid out."""
    return sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.8 if c.isupper() else 0.62 for c in label)


def _by_tag(rows: Sequence[int], tags: Sequence[str]) -> tuple[dict[int, str], dict[str, str]]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[str(tags[row])] = counts.get(str(tags[row]), 0) + 1
    names = sorted(counts, key=lambda tag: (-counts[tag], tag))
    legend = dict(zip(names, PALETTE[:-1], strict=False))
    if len(names) > len(legend):
        legend[OTHER] = PALETTE[-1]
    return {row: legend.get(str(tags[row]), PALETTE[-1]) for row in rows}, legend


def _by_group(groups: Sequence[Sequence[int]]) -> tuple[dict[int, str], dict[str, str]]:
    return {row: PALETTE[number % len(PALETTE)] for number, group in enumerate(groups) for row in group}, {}


# ---- drawing -------------------------------------------------------------------------------------------------------


def _drawn(
    labels: dict[int, str],
    edges: Sequence[Edge],
    centres: dict[int, tuple[float, float]],
    sizes: dict[int, Size],
    page: Size,
    colour_of: dict[int, str],
    legend: dict[str, str],
    outlined: set[int],
    title: str,
    kind: str,
) -> bytes:
    """One unit of the axes is one inch, so that boxes that do not meet in the layout do not meet in the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import FancyBboxPatch, Patch

    letters = "".join(sorted(set("".join([*labels.values(), *legend]))))
    families, missing = fonts_for(letters)
    if missing and kind == "png":
        _tell_missing(missing)
    bottom = 0.35 if legend else 0.0
    width, height = max(page.width, 5.5), page.height + 0.4 + bottom
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "entity graph", "font.family": families}
    with pyplot.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # told once, with the remedy
        figure = pyplot.figure(figsize=(width, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        shift = (width - page.width) / 2
        axes.set(xlim=(-shift, width - shift), ylim=(-bottom, height - bottom))
        axes.axis("off")
        for edge in edges:
            (x0, y0), (x1, y1) = centres[edge.first], centres[edge.second]
            strength = (edge.score - LEAST_SIMILARITY) / (1 - LEAST_SIMILARITY)
            axes.plot([x0, x1], [y0, y1], color="#9a9a9a", linewidth=0.4 + 2.0 * min(strength, 1.0), zorder=1)
        for (x, y), text in _numbers(edges, centres, sizes):
            around = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            about: Any = {"ha": "center", "va": "center_baseline", "color": "#444444", "zorder": 2, "bbox": around}
            axes.text(x, y, text, fontsize=NUMBER_PT, **about)
        for row, (x, y) in centres.items():
            box = sizes[row]
            corner, line = (x - box.width / 2, y - box.height / 2), 1.6 if row in outlined else 0.6
            shape: Any = {"boxstyle": "round,pad=0,rounding_size=0.06", "facecolor": colour_of[row], "zorder": 3}
            axes.add_patch(FancyBboxPatch(corner, *box, edgecolor="#333333", linewidth=line, **shape))
            named: Any = {"ha": "center", "va": "center_baseline", "color": "#111111", "zorder": 4}
            axes.text(x, y, labels[row], fontsize=FONT_PT, parse_math=False, **named)
        above = page.height + 0.2
        axes.text(width / 2 - shift, above, title, fontsize=TITLE_PT, ha="center", va="center", color="#333333")
        if legend:
            patches = [Patch(facecolor=colour, edgecolor="#333333", linewidth=0.6) for colour in legend.values()]
            shown = figure.legend(patches, list(legend), loc="lower center", ncols=len(legend), frameon=False)
            for entry in shown.get_texts():
                entry.set(fontsize=FONT_PT, parse_math=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
        pyplot.close(figure)
    return buffer.getvalue()


def _numbers(
    edges: Sequence[Edge], centres: dict[int, tuple[float, float]], sizes: dict[int, Size]
) -> list[tuple[tuple[float, float], str]]:
    """Where the similarities are written: on the line, clear of all boxes and of each other; left out elsewhere."""
    width, height = 2.4 * NUMBER_PT / 72, 1.5 * NUMBER_PT / 72
    taken = [(*centres[row], *sizes[row]) for row in centres]
    found = []
    for edge in edges:
        (x0, y0), (x1, y1) = centres[edge.first], centres[edge.second]
        for share in (0.5, 0.42, 0.58, 0.34, 0.66):
            x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
            if all(abs(x - cx) > (width + w) / 2 or abs(y - cy) > (height + h) / 2 for cx, cy, w, h in taken):
                taken.append((x, y, width, height))
                found.append(((x, y), f"{edge.score:.2f}"))
                break
    return found


# ---- fonts ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def fonts_for(letters: str) -> tuple[list[str], str]:
    """Families that together have the letters, matplotlib's own first; and the letters that none at hand has."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    missing = _lacks(font_manager.findfont("DejaVu Sans"), letters)
    # One upright file per family, regular before bold; "Last Resort" has a box for every letter and draws none.
    entries = sorted(font_manager.fontManager.ttflist, key=lambda entry: (str(entry.weight) in REGULAR, entry.fname))
    files = {entry.name: entry.fname for entry in entries if missing and entry.style == "normal"}
    files.pop("Last Resort High-Efficiency", None)
    lacks = {name: _lacks(file, missing) for name, file in sorted(files.items())}
    while missing and lacks:
        best = min(lacks, key=lambda name: len(set(lacks[name]) & set(missing)))
        left = "".join(c for c in missing if c in lacks[best])
        if left == missing:
            break
        families.append(best)
        missing = left
    return families, missing


def _lacks(file: str, letters: str) -> str:
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(file)
        return "".join(c for c in letters if not font.get_char_index(ord(c)))
    except (OSError, RuntimeError):  # a broken file has nothing
        return letters


def _tell_missing(letters: str) -> None:
    """Once for a process: each picture would lack the same ones."""
    if not _told:
        _told.update(letters)
        say(
            f"no font at hand has {letters[:8]}{'…' if len(letters) > 8 else ''}: the PNG of the entity graph shows "
            "boxes in their place, the report's drawing the reader's own fonts; install one with these letters (on "
            "Debian and Ubuntu fonts-noto-cjk for Chinese)"
        )
