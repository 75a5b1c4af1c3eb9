"""A static HTML page: one template filled in. Nothing is fetched, and whatever comes from outside is escaped."""

from __future__ import annotations

import base64
import re
from typing import Any

from experiments.config import HOME
from experiments.definitions import SYMBOLS, anchor


def render(template: str, **contents: Any) -> str:
    """A template of experiments/templates as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Captions and labels come from strangers: everything is escaped, only our own drawings are marked as markup.
    environment = Environment(
        loader=FileSystemLoader(HOME / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"anchor": anchor, "symbols": SYMBOLS}
    environment.filters["headings"] = headings
    return environment.get_template(template).render(**contents)


def headings(body: str) -> list[tuple[str, str]]:
    """Anchor and text of a page's sections."""
    return re.findall(r'<h2 id="([\w-]+)">([^<]*)</h2>', body)


def data_url(kind: str, content: bytes) -> str:
    """A file as an address that holds it, for `src`: data_url("image/png", …)."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()
