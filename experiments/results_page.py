"""The README's section of results, generated from the recorded tables, so that no figure there is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UsageError
from experiments.recorded import RESULTS, Record, records
from experiments.runs import write_text
from experiments.table import document
from experiments.table_comparison import COMPARED
from experiments.table_document import Document, Grid, Line
from experiments.table_markdown import grid_markdown, superscript

BEGIN, END = "<!-- results: begin, written by `make results` -->", "<!-- results: end -->"
FIRST = ("methods", "pretext", "ege_graph", "instances")  # the tables a reader looks for, in this order
READING = "reading.md"  # beside a table: what its numbers say, in words; by hand
ONE_MODALITY = tuple(filter(None, COMPARED))  # names of their columns begin so
SHOWN_OF_BLOCK = ("product feature", "text only", "whole picture", "true boxes", "TF-IDF on captions")


def write_section(readme: Path, results: Path = RESULTS) -> None:
    """Put the section between its marks.

    Raises:
        UsageError: If the marks are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UsageError(f"{readme}: wants the lines {BEGIN} and {END}, once each, around the section of results")
    before, rest = text.split(BEGIN)
    write_text(readme, f"{before}{BEGIN}\n\n{section(readme.parent, results)}\n{END}{rest.split(END)[1]}")


def section(root: Path, results: Path = RESULTS) -> str:
    """All recorded tables in short: those of several seeds in full view, those of one behind a line to click on.

    Args:
        root: What the links to whole tables start from.
    """
    found = sorted(records(results), key=lambda record: (_place(record), record.folder.name))
    several = [record for record in found if _seeds(record) > 1]
    single = [record for record in found if _seeds(record) <= 1]
    parts = [f"### {record.plan.title}\n\n{_in_short(record, root)}" for record in several]
    if single:
        parts.append("### One seed each (n = 1)\n\nIntervals are over queries alone: another seed may say otherwise.\n")
    parts += [
        f"<details><summary>{_plain(record.plan.title)}</summary>\n\n{_in_short(record, root)}\n</details>\n"
        for record in single
    ]
    return "\n".join(parts)


def _in_short(record: Record, root: Path) -> str:
    whole = document(record.plan, record.table, record.command, record.commit)
    parts = [grid_markdown(_brief(grid)) for grid in whole.grids]
    parts += [f"{superscript([number])} {text}  " for number, text in enumerate(whole.footnotes, 1)]
    reading = record.folder / READING
    parts += [reading.read_text(encoding="utf-8")] if reading.is_file() else []
    return "\n".join([*parts, _source(record, whole, root)])


def _brief(grid: Grid) -> Grid:
    """Without what the whole table has besides: one modality alone, and what stands behind each row."""
    if grid.head:
        return grid._replace(lines=[line for line in grid.lines if line.label in SHOWN_OF_BLOCK])
    kept = [number for number, column in enumerate(grid.columns) if not column.name.startswith(ONE_MODALITY)]
    columns = [grid.columns[number] for number in kept]
    lines = [_chosen(line, kept) for line in grid.lines]
    return grid._replace(columns=columns, lines=lines, items=[], notes=_without_single(grid.notes))


def _chosen(line: Line, kept: Sequence[int]) -> Line:
    return line._replace(cells=[line.cells[number] for number in kept])


def _without_single(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if not note.startswith("n = 1")]  # said once, above them all


def _source(record: Record, whole: Document, root: Path) -> str:
    table = (record.folder / "table.md").relative_to(root).as_posix()
    commits = sorted({str(run["git"].get("commit"))[:10] for row in record.plan.rows for run in row.records})
    machines = [line.removeprefix("on ") for line in whole.origin if line.startswith("on ")]
    about = f"at {', '.join(commits)} on {'; '.join(machines)}"
    return f"[Whole table, with commands and seeds]({table}); `make ablation TABLE={record.table}` {about}.\n"


def _place(record: Record) -> int:
    return FIRST.index(record.table) if record.table in FIRST else len(FIRST)


def _seeds(record: Record) -> int:
    return max(len(row.runs) for row in record.plan.rows)


def _plain(title: str) -> str:
    return title.replace("&", "&amp;").replace("<", "&lt;")
