"""A table's document as HTML, a part of a page: what Markdown, LaTeX and CSV say, said again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.definitions import anchor
from experiments.table_document import Document

if TYPE_CHECKING:
    from markupsafe import Markup


def html(document: Document) -> Markup:
    """Grids one below the other, then footnotes and how to read the numbers.

    Where they come from (`made_by`, `origin`) the page says in a section of its own.
    """
    from markupsafe import Markup

    from experiments.page import render

    tools = {"prose": prose, "marked": superscript, "definition": definition}
    return Markup(render("document.html.j2", document=document, **tools))  # the template escapes


def prose(text: str) -> Markup:
    """A text with `code` between backticks."""
    from markupsafe import Markup, escape

    pieces = re.split(r"`([^`]*)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if number % 2 else escape(piece) for number, piece in enumerate(pieces)
    )


def superscript(marks: Sequence[int]) -> Markup:
    """Numbers of footnotes, small and leading to them."""
    from markupsafe import Markup

    return Markup(" ").join(Markup('<sup><a href="#note-{0}">{0}</a></sup>').format(mark) for mark in marks)


def definition(head: str) -> str:
    """Where on the page a column is defined: of its metric, or of a paired difference; "" nowhere."""
    if head.endswith("− this [95 %]"):
        return anchor("product - this")
    return anchor(head.split()[-1]) if head.split() else ""
