"""A table's document as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from experiments.table_document import Document, Grid, Sentence, one_line

_MARKUP = re.compile(r"<(?=[a-zA-Z/!?])|(?<=\])\(")  # begins a tag, or the address of a link
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def markdown(document: Document) -> str:
    """Grids one below the other, then footnotes and where the numbers come from."""
    parts = [f"### {document.title}\n\n"] if document.title else []
    parts += [grid_markdown(grid) for grid in document.grids]
    if document.footnotes:
        numbered = enumerate(document.footnotes, 1)
        parts.append("\n".join(f"* {superscript([number])} {text}" for number, text in numbered) + "\n")
    parts.append("\n".join(document.explanation) + f" {document.made_by}")
    return "\n".join([*parts, *(f"* {line}" for line in document.origin)]) + "\n"


def superscript(marks: Sequence[int]) -> str:
    """Numbers of footnotes in small, above the line."""
    return " ".join(str(mark).translate(SUPERSCRIPTS) for mark in marks)


def grid_markdown(grid: Grid) -> str:
    """One grid, its head above and its notes below it."""
    lines = [_sentence(grid.head)] if grid.head else []
    if grid.columns:
        lines += [""] if lines else []
        heads = [*(["n"] if grid.shows_count else []), *(column.head for column in grid.columns)]
        lines.append(_line(grid.label_head, heads))
        numbers = [*([True] if grid.shows_count else []), *(column.right for column in grid.columns)]
        lines.append("|---|" + "".join("---:|" if number else "---|" for number in numbers))
        for line in grid.lines:
            count = [line.counted] if grid.shows_count else []
            lines.append(_line(_marked(line.label, grid.marks(line)), [*count, *map(str, line.cells)]))
    if grid.notes:
        lines += ["", "\n".join(grid.notes)]
    if grid.items:
        lines += ["", *(f"* {_sentence(item)}" for item in grid.items)]
    return "\n".join(lines) + "\n"


def _line(label: str, cells: Sequence[str]) -> str:
    return f"| {_plain(label)} | ".replace("|  |", "| |") + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", one_line(text).replace("|", "\\|"))


def _sentence(sentence: Sentence) -> str:
    strong = _marked(f"**{sentence.strong}**", sentence.marks) if sentence.strong else ""
    return strong + sentence.rest


def _marked(text: str, marks: Sequence[int]) -> str:
    return f"{text} {superscript(marks)}" if marks else text
