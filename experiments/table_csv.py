"""A table's document as one CSV: a line for each line of its grids, a column for each number."""

from __future__ import annotations

import csv
import io
import itertools

from experiments.table_document import NOTHING, Cell, Column, Document, Line, one_line

FIXED = ("part", "row", "n", "missing", "notes")
SUFFIXES = {"mean": "", "std": " std", "low": " low", "high": " high"}


def as_csv(document: Document) -> str:
    """Numbers unrounded to six digits, deviations and ends of intervals in columns of their own, gaps empty.

    Several grids share the columns they have in common; `part` says which grid a line is of.
    """
    columns = {column.name: column for grid in document.grids for column in grid.columns}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*FIXED, *itertools.chain.from_iterable(_heads(column) for column in columns.values())])
    for grid in document.grids:
        for line in grid.lines:
            cells = {column.name: cell for column, cell in zip(grid.columns, line.cells, strict=True)}
            found = [_fields(cells.get(name, ""), column) for name, column in columns.items()]
            writer.writerow([grid.name, *_about(line, document), *itertools.chain.from_iterable(found)])
    return buffer.getvalue()


def _heads(column: Column) -> list[str]:
    return [column.name + SUFFIXES[part] for part in column.parts] or [column.name]


def _fields(cell: Cell, column: Column) -> list[str]:
    if not column.parts:
        return [one_line(str(cell)) if cell != NOTHING else ""]
    if isinstance(cell, str):
        return [""] * len(column.parts)
    values = [getattr(cell, part) for part in column.parts]
    return ["" if value is None else f"{value:.6g}" for value in values]


def _about(line: Line, document: Document) -> list[str]:
    notes = " ".join(document.footnotes[mark - 1] for mark in line.marks)
    return [one_line(line.label), "" if line.num_runs is None else str(line.num_runs), str(line.missing), notes]
