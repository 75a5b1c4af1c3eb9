"""Footnotes of a table: rows whose numbers were not made as the others' were, by older metrics or on other data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.table_rows import Plan, Row
from experiments.tasks import task_of

Marks = Sequence[Sequence[int]]  # per row the numbers of its footnotes, from 1


def footnotes(plan: Plan) -> tuple[list[str], Marks]:
    """The footnotes' texts, and which of them each row carries. Rows that share a reason share its footnote."""
    texts: list[str] = []
    marks = []
    for row in plan.rows:
        of_row = [*_older_metrics(row), *_other_data(row, plan)]
        texts += [text for text in of_row if text not in texts]
        marks.append([texts.index(text) + 1 for text in of_row])
    return texts, marks


def _older_metrics(row: Row) -> list[str]:
    """A run keeps the definition it was measured by until it is evaluated again."""
    found: dict[str, list[int]] = {}
    for record in row.records:
        version, current = record.get("metric_version"), task_of(record).metric_version
        if version is not None and version != current:
            about = f"measured by the metric definition `{version}`, not by today's `{current}`"
            found.setdefault(about, []).append(record["seed"])
    return [f"{about}{_of_seeds(row, seeds)}: `make eval RUN=…` measures again." for about, seeds in found.items()]


def _other_data(row: Row, plan: Plan) -> list[str]:
    """Data are compared with the base row's, or without one with those of the rows of the same name."""
    found: dict[str, list[int]] = {}
    for record in row.records:
        usual = _usual_hash(plan, str(record.get("data")))
        if None in (usual, record.get("data_hash")) or record["data_hash"] == usual:
            continue
        whose = f"{plan.base.label} (`{usual}`)" if plan.base else f"most runs on {record['data']} (`{usual}`)"
        about = f"run on other data, {record['data']} `{record['data_hash']}`, than {whose}"
        found.setdefault(about, []).append(record["seed"])
    return [f"{about}{_of_seeds(row, seeds)}." for about, seeds in found.items()]


def _usual_hash(plan: Plan, data: str) -> str | None:
    """The most frequent hash among the runs to compare with; the first on a tie."""
    if plan.base and plan.base.records:
        records: list[dict[str, Any]] = plan.base.records
    else:
        records = [record for row in plan.rows for record in row.records if str(record.get("data")) == data]
    hashes = Counter(record["data_hash"] for record in records if record.get("data_hash"))
    return hashes.most_common(1)[0][0] if hashes else None


def _of_seeds(row: Row, seeds: list[int]) -> str:
    return "" if len(seeds) == len(row.records) else f" (seed {', '.join(map(str, seeds))})"
