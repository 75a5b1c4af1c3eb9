"""The table a run ends with: the product feature beside everything it must beat, with intervals over queries."""

from __future__ import annotations

import io
from collections.abc import Sequence
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


def intervals(
    per_query: dict[str, np.ndarray], columns: Sequence[str] = COLUMNS, samples: int = 10_000
) -> dict[str, dict[str, list[float]]]:
    """95 % intervals over queries of product minus each rival: {rival: {metric: [mean, low, high]}}."""
    found: dict[str, dict[str, list[float]]] = {}
    for prefix in list(ROWS.values())[1:]:
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


def is_product_itself(record: dict[str, Any], prefix: str) -> bool:
    """Whether a row repeats the first: a method of one modality, whose product feature is that modality's."""
    features = record.get("features", {})
    return bool(prefix) and features.get(prefix.rstrip("/")) == features.get("product", "")


def _table(record: dict[str, Any], split: str, title: str, columns: Sequence[str]) -> str:
    from rich.console import Console
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
            low_high = record.get("intervals", {}).get(split, {}).get(prefix.rstrip("/"), {}).get(column)
            cells.append("" if not low_high else "{:+.3f}  [{:+.3f}, {:+.3f}]".format(*low_high))
        feature = features.get(prefix.rstrip("/") or "product")
        label = f"{row} ({feature})" if feature else row
        if any(cell not in ("–", "") for cell in cells):
            table.add_row(label, *cells)
    buffer = io.StringIO()
    Console(file=buffer, width=118).print(table)
    return buffer.getvalue().rstrip()
