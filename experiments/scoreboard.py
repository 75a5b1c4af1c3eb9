"""The table a run ends with: the product feature beside everything it must beat, with intervals over queries."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from retrieval.significance import paired_bootstrap

# Row of the table -> prefix of its metrics and per-query scores. The first is what all others are compared with.
ROWS = {
    "product feature": "",
    "re-ranked": "rerank/",  # only where evaluation.rerank asks for it
    "image only": "image/",
    "text only": "text/",
    "untrained model": "untrained/",
    "TF-IDF on captions": "tfidf/",
    "random order": "random/",
}
COLUMNS = ("mAP@10", "mAR@10")
SAME_COLUMNS = ("same/mAP@10", "same/Prec@10")  # of the identical-product task, which has no mAR
SAME_SAMPLES = 2000  # resamples per interval of that task: its queries are the whole gallery
# How a query may be read: its picture as one, or by boxes with a list of hits each. The product feature is of one of
# them, which metrics.json names (`level`); the others stand beside it, by prefix, in a table of their own.
LEVELS = {"whole": "whole picture", "detected": "detected boxes", "true": "true boxes"}
LEVEL_COLUMNS = ("mAP@10", "mAR@10", "coverage@10")  # mAP does not reward finding every product, the others do


def intervals(
    per_query: dict[str, np.ndarray],
    columns: Sequence[str] = COLUMNS,
    samples: int = 10_000,
    prefixes: Iterable[str] = tuple(ROWS.values())[1:],
) -> dict[str, dict[str, list[float]]]:
    """95 % intervals over queries of product minus each rival: {rival: {metric: [mean, low, high]}}.

    Args:
        per_query: Scores of the product feature by metric, and of the rivals by prefix and metric.
        prefixes: The rivals; those without scores are left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for prefix in prefixes:
        for column in columns:
            if column in per_query and prefix + column in per_query:
                low_high = paired_bootstrap(per_query[column], per_query[prefix + column], samples)
                found.setdefault(prefix.rstrip("/"), {})[column] = [float(v) for v in low_high[:3]]
    return found


def value_of(record: dict[str, Any], split: str, prefix: str, column: str) -> float | None:
    """A number of metrics.json by table row: floors stand apart from the model's own metrics."""
    found: Any = record.get(split, {}).get(prefix + column)
    if found is None:
        found = record.get("floors", {}).get(split, {}).get(prefix.rstrip("/"), {}).get(column)
    return None if found is None else float(found)


def render(record: dict[str, Any], split: str = "test") -> str:
    """The tables of one run and split as text, for terminal and log."""
    lines = [_table(record, split, f"{record['run_id']} · {split}{weights(record)}", COLUMNS)]
    unscorable = record.get("unscorable_val" if split == "val" else "unscorable", 0)
    if unscorable:
        lines.append(f"{unscorable} queries have a label without gallery items and count as 0")
    if len(level_rows(record, split)) > 1:
        lines += [_level_table(record, split), level_note(record, split)]
    if record.get("same") and split == "test":
        lines.append(_table(record, split, f"the identical product: {same_queries(record)}", SAME_COLUMNS))
    return "\n".join(lines)


def weights(record: dict[str, Any]) -> str:
    """What has to stand beside the name of a run that nothing was trained or pretrained for."""
    return " · random weights, nothing trained" if record.get("random_weights") else ""


def same_queries(record: dict[str, Any]) -> str:
    """Who the queries of the identical-product task are."""
    about = record["same"]
    left_out = f", {about['left_out']} without one are left out" if about["left_out"] else ""
    return f"{about['queries']} gallery items with another of their label{left_out}"


def level_rows(record: dict[str, Any], split: str) -> dict[str, str]:
    """Rows of the table of levels: name -> prefix, the product's first; one row where queries were read in one way."""
    level = record.get("level", "whole")
    rows = {LEVELS[level]: ""}
    found = record.get(split, {})
    for name, label in LEVELS.items():
        if name != level and f"{name}/{LEVEL_COLUMNS[0]}" in found:
            rows[label] = f"{name}/"
    return rows


def level_note(record: dict[str, Any], split: str) -> str:
    """How many boxes the queries were read by."""
    counts = record.get("instances", {}).get(split, {})
    parts = []
    for name, about in counts.items():
        bare = f", {about['without']} queries without one are read whole" if about["without"] else ""
        parts.append(f"{about['rows'] - about['without']} {LEVELS[name]}, {about['mean']:.1f} rows a query{bare}")
    return "; ".join(parts)


def interval_of(record: dict[str, Any], split: str, prefix: str, column: str) -> list[float] | None:
    """Product minus a rival in metrics.json: mean, low, high."""
    found: Any = record.get("intervals", {}).get(split, {}).get(prefix.rstrip("/"), {}).get(column)
    return found


def is_product_itself(record: dict[str, Any], prefix: str) -> bool:
    """Whether a row repeats the first: a method of one modality, whose product feature is that modality's."""
    features = record.get("features", {})
    return bool(prefix) and features.get(prefix.rstrip("/")) == features.get("product", "")


def _table(record: dict[str, Any], split: str, title: str, columns: Sequence[str]) -> str:
    from rich.table import Table

    features = record.get("features", {})
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
        table.add_column("product − this  [95 %]", justify="right")
    for row, prefix in ROWS.items():
        if is_product_itself(record, prefix):
            continue
        cells = []
        for column in columns:
            value = value_of(record, split, prefix, column)
            cells.append("–" if value is None else f"{value:.4f}")
            low_high = interval_of(record, split, prefix, column)
            cells.append("" if not low_high else "{:+.3f}  [{:+.3f}, {:+.3f}]".format(*low_high))
        feature = features.get(prefix.rstrip("/") or "product")
        label = f"{row} ({feature})" if feature else row
        if any(cell not in ("–", "") for cell in cells):
            table.add_row(label, *cells)
    return _as_text(table)


def _level_table(record: dict[str, Any], split: str) -> str:
    """The interval below its number: side by side, three metrics would not fit a terminal."""
    from rich.table import Table

    features = record.get("features", {})
    table = Table(title="queries read as one and by instance", title_justify="left", show_lines=True)
    table.add_column("")
    for column in LEVEL_COLUMNS:
        table.add_column(f"{column}\nproduct − this  [95 %]", justify="right")
    for row, prefix in level_rows(record, split).items():
        cells = []
        for column in LEVEL_COLUMNS:
            value, low_high = value_of(record, split, prefix, column), interval_of(record, split, prefix, column)
            below = "" if not low_high else "\n{:+.3f}  [{:+.3f}, {:+.3f}]".format(*low_high)
            cells.append("–" if value is None else f"{value:.4f}{below}")
        feature = features.get(prefix.rstrip("/") or "product", "")
        table.add_row(f"{row}{'' if prefix else ' (product)'}\n{feature}", *cells)
    return _as_text(table)


def _as_text(table: Any) -> str:
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=118).print(table)
    return buffer.getvalue().rstrip()
