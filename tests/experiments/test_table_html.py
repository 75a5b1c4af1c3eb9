"""HTML says what Markdown says: the same rows and cells, footnotes and notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import table
from experiments.table_document import Column, Document, Grid, Line, Number, Sentence
from experiments.table_html import html
from experiments.table_markdown import SUPERSCRIPTS, markdown
from tests.experiments.page_reader import PageReader
from tests.experiments.test_table import plan
from tests.experiments.test_table_formats import with_records

ATTACK = '<script>alert("x")</script>'
DIGITS = {number: chr(digit) for digit, number in SUPERSCRIPTS.items()}


def rows_of(text: str) -> list[list[str]]:
    """Cells of all rows of all grids in Markdown, without blanks."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    plain = [line.translate(DIGITS).replace(" ", "").replace("\\|", "¦") for line in lines]
    return [[cell.replace("¦", "|") for cell in line[1:-1].split("|")] for line in plain]


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": False, "costs": True, "title": "Three methods"},
        {"columns": ("mAP@10", "same/mAP@10"), "title": "In blocks"},
    ],
)
def test_the_same_cells_as_in_markdown(tmp_path: Path, changes: dict[str, Any]) -> None:
    shown = with_records(plan(tmp_path, **changes), 1, lambda record: {**record, "metric_version": "older"})
    found = table.document(shown, "x", "make table")
    page = PageReader(html(found))
    cells = [["".join(cell.split()) for cell in row] for grid in page.tables for row in grid]
    assert cells == rows_of(markdown(found))
    assert len(cells) > 4
    assert "–" in {cell for row in cells for cell in row}


def test_notes_and_footnotes_are_there(tmp_path: Path) -> None:
    shown = plan(tmp_path, blocks=False, costs=True)
    shown = with_records(shown, 1, lambda record: {**record, "metric_version": "older"})
    found = table.document(shown, "x", "x")
    page = PageReader(html(found))
    for text in (*found.footnotes, *found.grids[0].notes, *found.explanation):
        assert " ".join(text.replace("`", "").split()) in page.text
    assert "a file, 2022" in page.text
    assert {"id": "note-1"} in page.attributes("li")
    assert {"href": "#note-1"} in page.attributes("a")


def test_heads_are_heads_and_lead_to_definitions(tmp_path: Path) -> None:
    page = PageReader(html(table.document(plan(tmp_path, blocks=False), "x", "x")))
    scopes = [attributes.get("scope") for attributes in page.attributes("th")]
    assert set(scopes) == {"col", "row"}
    assert scopes.count("row") == len(page.tables[0]) - 1
    assert {"href": "#def-mAP-N"} in page.attributes("a")
    assert {"href": "#def-product-this"} in page.attributes("a")


def test_what_comes_from_outside_is_escaped() -> None:
    line = Line(ATTACK, [Number(0.5), ATTACK], marks=(1,))
    grid = Grid(
        "g", [Column(ATTACK, "a"), Column("b", "b", (), right=False)], [line], label_head=ATTACK, notes=[ATTACK]
    )
    head = Grid("h", [], [line], head=Sentence(ATTACK, f": `{ATTACK}`"), items=[Sentence(ATTACK, ATTACK)])
    text = html(Document("x", ATTACK, [grid, head], [ATTACK], [ATTACK], ATTACK, [ATTACK]))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") >= 10
