"""The forms a table can have, chosen by `--format` or the ending of `--out`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from experiments.errors import UsageError
from experiments.table_csv import as_csv
from experiments.table_document import Document
from experiments.table_latex import latex
from experiments.table_markdown import markdown

FORMS: dict[str, Callable[[Document], str]] = {"md": markdown, "latex": latex, "csv": as_csv}
ENDINGS = {".md": "md", ".markdown": "md", ".txt": "md", "": "md", ".tex": "latex", ".csv": "csv"}
PICTURES = (".png", ".svg")


def add_form_arguments(parser: ArgumentParser) -> None:
    """What `table` can be asked for beside its rows."""
    parser.add_argument("--out", metavar="F", help="also write it here; the form follows the ending: .md, .tex, .csv")
    parser.add_argument("--format", metavar="FORM", help="md (default), latex or csv")
    parser.add_argument("--plot", metavar="F", help="also draw the rows here: .png or .svg, without an ending both")
    parser.add_argument("--wandb", action="store_true", help="also log it to W&B, as a run of its own")
    parser.add_argument("--metric", metavar="NAME", help="what --plot draws (default: the table's first metric)")


def chosen_form(form: str | None, out: str | None) -> str:
    """The form that is asked for; Markdown where nothing is said.

    Raises:
        UsageError: If it is unknown, or the file's ending is of another.
    """
    if form is not None and form not in FORMS:
        raise UsageError(f"--format {form}: expected one of {', '.join(FORMS)}")
    ending = Path(out).suffix.lower() if out else ""
    by_ending = ENDINGS.get(ending)
    if form is None and by_ending is None:
        raise UsageError(f"--out {out}: no form has the ending {ending}; .md, .tex and .csv have, or say --format")
    if form is not None and ending in (".md", ".tex", ".csv") and by_ending != form:
        raise UsageError(f"--out {out} has the ending of {by_ending}, but --format says {form}: drop one of the two")
    return form or by_ending or "md"


def chosen_plot(plot: str | None, metric: str | None) -> Path | None:
    """Where to draw.

    Raises:
        UsageError: If it is no kind of picture, or only a metric is given.
    """
    if plot is None:
        if metric:
            raise UsageError("--metric says what --plot draws, and wants it: --plot file.png")
        return None
    ending = Path(plot).suffix.lower()
    if ending and ending not in PICTURES:
        raise UsageError(f"--plot {plot}: expected the ending {' or '.join(PICTURES)}, or none for both")
    return Path(plot)
