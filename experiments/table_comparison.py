"""The rows of a table side by side, each with its paired difference from the base row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from experiments.scoreboard import LEVELS, ROWS, value_of, weights
from experiments.table_cells import NOTHING, SPLIT, against_base, against_own, mean_std, metric
from experiments.table_rows import Plan, Row

COMPARED = {"": "", "image only": "image/", "text only": "text/"}  # what rows are compared in: name -> prefix
WHERE_PRESENT = {"re-ranked": "rerank/"}  # the same, where some row has it
FLOORS = ("untrained model", "TF-IDF on captions", "random order")


class Column(NamedTuple):
    """A column: its head, and its cell of a row and of one of the base row's floors (by prefix)."""

    head: str
    of_row: Callable[[Row], str]
    of_floor: Callable[[str], str] = lambda prefix: NOTHING


def comparison(plan: Plan) -> str:
    """The table, and below it what has to be known to read it."""
    base = plan.base
    assert base is not None
    columns = [Column("n", lambda row: str(len(row.records)), lambda prefix: str(len(base.records)))]
    columns += _measures(plan, base) + _published(plan.rows)
    if plan.costs:
        columns += _costs()
    lines = ["| | " + " | ".join(column.head for column in columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| {row.label} | " + " | ".join(column.of_row(row) for column in columns) + " |" for row in plan.rows]
    if not plan.blocks:
        for label in FLOORS:
            cells = " | ".join(column.of_floor(ROWS[label]) for column in columns)
            lines.append(f"| {label.replace('model', base.label)} | {cells} |")
    return "\n".join(lines + _notes(plan)) + "\n"


def _measures(plan: Plan, base: Row) -> list[Column]:
    """Each metric by each kind of feature, beside its difference from the base row."""
    if any(row.feature for row in plan.rows):  # candidates have no scores by query, and are tried in one task only
        return [Column(column, *_values(base, column)) for column in plan.columns if "/" not in column]
    kinds = dict(COMPARED)
    for name, prefix in WHERE_PRESENT.items():
        if any(
            value_of(record, SPLIT, prefix, plan.columns[0]) is not None for row in plan.rows for record in row.records
        ):
            kinds[name] = prefix
    columns = []
    for name, prefix in kinds.items():
        for column in plan.columns:
            columns.append(Column(f"{name} {column}".strip(), *_values(base, prefix + column)))
            columns.append(Column(f"{base.label} − this [95 %]", *_differences(base, prefix, column)))
        if not name and any(row.own_feature for row in plan.rows):
            one_task = [column for column in plan.columns if "/" not in column]  # candidates are not tried in others
            columns += [Column(f"own feature {column}", *_by_own_feature(base, column)) for column in one_task]
    return columns


def _values(base: Row, measure: str) -> tuple[Callable[[Row], str], Callable[[str], str]]:
    prefix, _, column = measure.rpartition("/")
    of_row = partial(metric, prefix=f"{prefix}/" if prefix else "", column=column)
    return of_row, lambda floor: metric(base, floor, measure)


def _differences(base: Row, prefix: str, column: str) -> tuple[Callable[[Row], str], Callable[[str], str]]:
    return (
        lambda row: "" if row is base else against_base(base, row, prefix + column),
        lambda floor: NOTHING if prefix else against_own(base, floor, column),
    )


def _by_own_feature(base: Row, column: str) -> tuple[Callable[[Row], str], Callable[[str], str]]:
    """By the paper's own retrieval feature, whatever was chosen on val."""
    return (
        lambda row: metric(row, f"feature/{row.own_feature}/", column) if row.own_feature else NOTHING,
        lambda floor: metric(base, floor, f"feature/{base.own_feature}/{column}") if base.own_feature else NOTHING,
    )


def _published(rows: list[Row]) -> list[Column]:
    names = dict.fromkeys(name for row in rows for name in row.published or {})

    def number(row: Row, name: str) -> str:
        value = (row.published or {}).get(name)
        return NOTHING if value is None else f"{value:.4f}"

    return [Column(f"published on Product1M: {name}", partial(number, name=name)) for name in names]


def _costs() -> list[Column]:
    def cost(row: Row, key: str, unit: float, digits: int) -> str:
        found = [record.get(key) for record in row.records]
        return mean_std([None if value is None else value / unit for value in found], digits)

    def parameters(row: Row) -> str:
        found = sorted({record.get("parameters", 0) for record in row.records})
        return f"{found[0] / 1e6:.2f}" if len(found) == 1 and found[0] else NOTHING

    return [
        Column("trained parameters (M)", parameters),
        Column("training (min)", partial(cost, key="train_seconds", unit=60, digits=1)),
        Column("embedding (ms per item)", partial(cost, key="embedding_ms_per_item", unit=1, digits=2)),
    ]


def _notes(plan: Plan) -> list[str]:
    notes = []
    own = [f"{row.own_feature} ({row.label})" for row in plan.rows if row.own_feature]
    if own:
        notes.append(
            f"“Own feature” is the paper's own retrieval feature: {', '.join(own)}; all other columns are by the "
            "feature chosen on val."
        )
    if plan.published_source:
        notes.append(f"Published numbers, of the papers' own settings: {plan.published_source}. – = not known.")
    if plan.costs:
        notes.append(
            "Times are those of the runs, on a machine that other work may have slowed down; `make bench ARGS=methods` "
            "measures the methods side by side."
        )
    lines = ["", "\n".join(notes)] if notes else []
    if not plan.blocks:  # else the head of each row's block says so
        lines += ["", *(f"* {head(row)}" for row in plan.rows)]
    return lines


def head(row: Row) -> str:
    """What stands behind a row: its seeds, the chosen features, and what is missing."""
    if not row.records:
        return f"**{row.label}**: no finished run"
    features = sorted({row.feature or str(record.get("feature")) for record in row.records})
    seeds = ", ".join(str(record["seed"]) for record in row.records)
    random = weights(row.records[0])
    by_instance = [record["level"] for record in row.records if record.get("instances")]
    level = f"; product feature of: {', '.join(sorted({LEVELS[name] for name in by_instance}))}" if by_instance else ""
    text = (
        f"**{row.label}{random}** (n = {len(row.records)}, seed {seeds}; "
        f"feature{'' if row.feature else ' chosen on val'}: {', '.join(features)}{level})"
    )
    return text + (f"; {row.missing} run(s) missing" if row.missing else "")
