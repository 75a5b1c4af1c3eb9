"""A table as data: grids of cells and what has to be known to read them. Made once, written in several forms.

A cell keeps its numbers; how they look is a matter of the form (`table_markdown`, `table_latex`, `table_csv`). Texts
may hold `code` between backticks, as in Markdown; labels and heads are plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

NOTHING = "–"


class Number(NamedTuple):
    """A mean, over seeds where there is a deviation."""

    mean: float
    std: float | None = None
    digits: int = 4

    def __str__(self) -> str:
        mean = f"{self.mean:.{self.digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{self.digits}f}"


class Difference(NamedTuple):
    """A difference, with its 95 % interval where there is one."""

    mean: float
    low: float | None = None
    high: float | None = None
    digits: int = 3

    def __str__(self) -> str:
        mean = f"{self.mean:+.{self.digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low:+.{self.digits}f}, {self.high:+.{self.digits}f}]"


Cell = Number | Difference | str  # a text, `NOTHING` where something is missing, "" where nothing is to be said


class Column(NamedTuple):
    """What stands below one head."""

    head: str  # as shown; several columns may share it
    name: str  # its own, for files that programs read
    parts: tuple[str, ...] = ("mean",)  # attributes of its cells, Number or Difference; () for texts
    right: bool = True  # aligned


WITH_STD = ("mean", "std")
WITH_INTERVAL = ("mean", "low", "high")


class Line(NamedTuple):
    """A line of a grid."""

    label: str
    cells: Sequence[Cell]
    num_runs: int | None = None  # it was made of, one per seed
    missing: int = 0  # runs asked for and not finished
    marks: Sequence[int] = ()  # footnotes, from 1

    @property
    def counted(self) -> str:
        """How many runs, and of how many where some are missing beside others that are not."""
        return (
            f"{self.num_runs} of {self.num_runs + self.missing}"
            if self.num_runs and self.missing
            else str(self.num_runs)
        )


class Sentence(NamedTuple):
    """A text, with what it speaks of in front."""

    strong: str
    rest: str
    marks: Sequence[int] = ()


class Grid(NamedTuple):
    """Columns and lines. Without columns only its head is shown: that there is nothing to show."""

    name: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    label_head: str = ""
    shows_count: bool = False
    head: Sentence | None = None  # above it
    notes: Sequence[str] = ()  # below it
    items: Sequence[Sentence] = ()  # below the notes, one per row

    def marks(self, line: Line) -> Sequence[int]:
        """Footnotes to show beside a line: the head carries them for all lines where there is one."""
        return () if self.head else line.marks


class Document(NamedTuple):
    """All that a table says."""

    name: str
    title: str
    grids: Sequence[Grid]
    footnotes: Sequence[str]
    explanation: Sequence[str]  # how the numbers are to be read, in lines
    made_by: str
    origin: Sequence[str]  # commands, commits, machines


def one_line(text: str) -> str:
    """A label or head without breaks, which would end a line of the table."""
    return " ".join(text.split()) if "\n" in text or "\r" in text else text
