"""The rows of a table side by side, each with its paired difference from the base row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from experiments.scoreboard import LEVELS, ROWS, value_of, weights
from experiments.table_cells import SPLIT, against_base, against_own, mean_std, metric
from experiments.table_document import (
    NOTHING,
    WITH_INTERVAL,
    WITH_STD,
    Cell,
    Column,
    Difference,
    Grid,
    Line,
    Number,
    Sentence,
)
from experiments.table_footnotes import Marks
from experiments.table_rows import Plan, Row

COMPARED = {"": "", "image only": "image/", "text only": "text/"}  # what rows are compared in: name -> prefix
WHERE_PRESENT = {"re-ranked": "rerank/"}  # the same, where some row has it
PUBLISHED_DATA = "product1m"  # what the papers' numbers are of
FLOORS = ("untrained model", "TF-IDF on captions", "random order")


class Quantity(NamedTuple):
    """A column, and its cell of a row and of one of the base row's floors (by prefix)."""

    column: Column
    of_row: Callable[[Row], Cell]
    of_floor: Callable[[str], Cell] = lambda prefix: NOTHING


def comparison(plan: Plan, marks: Marks) -> Grid:
    """The rows, and below them what has to be known to read them."""
    base = plan.base
    assert base is not None
    quantities = _measures(plan, base) + _published(plan.rows)
    if plan.costs:
        quantities += _costs()
    lines = [
        Line(row.label, [quantity.of_row(row) for quantity in quantities], len(row.records), row.missing, mark)
        for row, mark in zip(plan.rows, marks, strict=True)
    ]
    if not plan.blocks:
        for label in FLOORS:
            cells = [quantity.of_floor(ROWS[label]) for quantity in quantities]
            of_base = marks[plan.rows.index(base)]
            lines.append(Line(label.replace("model", base.label), cells, len(base.records), base.missing, of_base))
    items = [] if plan.blocks else [head(row, mark) for row, mark in zip(plan.rows, marks, strict=True)]
    columns = [quantity.column for quantity in quantities]
    return Grid("comparison", columns, lines, shows_count=True, notes=_notes(plan), items=items)


def _measures(plan: Plan, base: Row) -> list[Quantity]:
    """Each metric by each kind of feature, beside its difference from the base row."""
    if any(row.feature for row in plan.rows):  # candidates have no scores by query, and are tried in one task only
        one_task = [column for column in plan.columns if "/" not in column]
        return [Quantity(Column(column, column, WITH_STD), *_values(base, column)) for column in one_task]
    kinds = dict(COMPARED)
    for name, prefix in WHERE_PRESENT.items():
        if any(
            value_of(record, SPLIT, prefix, plan.columns[0]) is not None for row in plan.rows for record in row.records
        ):
            kinds[name] = prefix
    found = []
    for name, prefix in kinds.items():
        for column in plan.columns:
            shown = f"{name} {column}".strip()
            found.append(Quantity(Column(shown, shown, WITH_STD), *_values(base, prefix + column)))
            paired = Column(f"{base.label} − this [95 %]", f"{shown}: {base.label} - this", WITH_INTERVAL)
            found.append(Quantity(paired, *_differences(base, prefix, column)))
        if not name and any(row.own_feature for row in plan.rows):
            one_task = [column for column in plan.columns if "/" not in column]  # candidates are not tried in others
            heads = [(column, f"own feature {column}") for column in one_task]
            found += [Quantity(Column(own, own, WITH_STD), *_by_own_feature(base, column)) for column, own in heads]
    return found


def _values(base: Row, measure: str) -> tuple[Callable[[Row], Cell], Callable[[str], Cell]]:
    prefix, _, column = measure.rpartition("/")
    of_row = partial(metric, prefix=f"{prefix}/" if prefix else "", column=column)
    return of_row, lambda floor: metric(base, floor, measure)


def _differences(base: Row, prefix: str, column: str) -> tuple[Callable[[Row], Cell], Callable[[str], Cell]]:
    return (
        lambda row: "" if row is base else against_base(base, row, prefix + column),
        lambda floor: NOTHING if prefix else against_own(base, floor, column),
    )


def _by_own_feature(base: Row, column: str) -> tuple[Callable[[Row], Cell], Callable[[str], Cell]]:
    """By the paper's own retrieval feature, whatever was chosen on val."""
    return (
        lambda row: metric(row, f"feature/{row.own_feature}/", column) if row.own_feature else NOTHING,
        lambda floor: metric(base, floor, f"feature/{base.own_feature}/{column}") if base.own_feature else NOTHING,
    )


def _published(rows: list[Row]) -> list[Quantity]:
    """The papers' numbers and, where a row was run on their data, its difference from them."""
    found = []
    for name in dict.fromkeys(name for row in rows for name in row.published or {}):
        shown = f"published on Product1M: {name}"
        found.append(Quantity(Column(shown, shown), partial(_published_number, name=name)))
        if any(row.published and name in row.published and _on_published_data(row) for row in rows):
            column = Column("this − published", f"{name}: this - published")
            found.append(Quantity(column, partial(_from_published, name=name)))
    return found


def _published_number(row: Row, name: str) -> Cell:
    value = (row.published or {}).get(name)
    return NOTHING if value is None else Number(value)


def _from_published(row: Row, name: str) -> Cell:
    ours, theirs = metric(row, "", name), _published_number(row, name)
    if not (isinstance(ours, Number) and isinstance(theirs, Number) and _on_published_data(row)):
        return NOTHING
    return Difference(ours.mean - theirs.mean, digits=4)


def _on_published_data(row: Row) -> bool:
    return bool(row.records) and all(record["data"] == PUBLISHED_DATA for record in row.records)


def _costs() -> list[Quantity]:
    def cost(row: Row, key: str, unit: float, digits: int) -> Cell:
        found = [record.get(key) for record in row.records]
        return mean_std([None if value is None else value / unit for value in found], digits)

    def parameters(row: Row) -> Cell:
        found = sorted({record.get("parameters", 0) for record in row.records})
        return Number(found[0] / 1e6, digits=2) if len(found) == 1 and found[0] else NOTHING

    def column(name: str) -> Column:
        return Column(name, name, WITH_STD)

    return [
        Quantity(Column("trained parameters (M)", "trained parameters (M)"), parameters),
        Quantity(column("training (min)"), partial(cost, key="train_seconds", unit=60, digits=1)),
        Quantity(column("embedding (ms per item)"), partial(cost, key="embedding_ms_per_item", unit=1, digits=2)),
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
    single = [row.label for row in plan.rows if len(row.records) == 1]
    if single:
        notes.append(
            f"n = 1 ({', '.join(single)}): one seed, so no deviation over seeds, and intervals over queries alone."
        )
    return notes


def head(row: Row, marks: Sequence[int] = ()) -> Sentence:
    """What stands behind a row: its seeds, the chosen features, and what is missing."""
    if not row.records:
        return Sentence(row.label, ": no finished run", marks)
    features = sorted({row.feature or str(record.get("feature")) for record in row.records})
    seeds = ", ".join(str(record["seed"]) for record in row.records)
    by_instance = [record["level"] for record in row.records if record.get("instances")]
    level = f"; product feature of: {', '.join(sorted({LEVELS[name] for name in by_instance}))}" if by_instance else ""
    chosen = "" if row.feature else " chosen on val"
    about = f" (n = {len(row.records)}, seed {seeds}; feature{chosen}: {', '.join(features)}{level})"
    missing = f"; {row.missing} run(s) missing" if row.missing else ""
    return Sentence(row.label + weights(row.records[0]), about + missing, marks)
