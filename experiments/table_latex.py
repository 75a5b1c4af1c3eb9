"""A table's document as LaTeX: a `table` with booktabs' rules for each grid, commands and commits in comments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from experiments.table_document import NOTHING, Cell, Difference, Document, Grid, Number, Sentence, one_line

SPECIAL = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "`": "\\textasciigrave{}"},
    **{"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", '"': "\\textquotedbl{}"},
    **{"–": "--", "—": "---", "“": "``", "”": "''", "…": "\\ldots{}", "\u00a0": "~"},
    **{"−": "$-$", "±": "$\\pm$", "×": "$\\times$", "·": "$\\cdot$", "→": "$\\rightarrow$"},
    **{"≤": "$\\leq$", "≥": "$\\geq$", "≈": "$\\approx$"},
}
SPECIAL_IN_CODE = {**SPECIAL, "-": "{-}"}  # else -- would become a dash
ABREAST = 4  # columns: two metrics, each beside its difference; the others follow below
CODE = re.compile(r"`([^`]*)`")


def latex(document: Document) -> str:
    """Needs `booktabs`; the last lines of each table explain it."""
    lines = [f"% {_comment(text)}" for text in (document.made_by, *document.origin)]
    lines.append("% In the preamble: \\usepackage{booktabs} and, for signs in texts, \\usepackage[T1]{fontenc}")
    explained = False
    for number, grid in enumerate(document.grids, 1):
        lines.append("")
        if not grid.columns:
            lines += [f"\\par\\noindent {_sentence(grid.head)}\\par"] if grid.head else []
            continue
        lines += _grid(document, grid, number, () if explained else document.explanation)
        explained = True
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """A plain text with LaTeX's own signs, and some that its fonts lack, written out."""
    return "".join(SPECIAL.get(sign, sign) for sign in one_line(text))


def _grid(document: Document, grid: Grid, number: int, explanation: Sequence[str]) -> Iterator[str]:
    label = re.sub(r"[^A-Za-z0-9-]+", "-", document.name).strip("-") or "runs"
    caption = [escape(document.title)] if document.title else []
    caption += [escape(grid.head.strong)] if grid.head else []
    yield "\\begin{table}"
    yield "\\centering"
    yield f"\\caption{{{': '.join(caption) or 'Runs'}}}"
    yield f"\\label{{tab:{label}{'' if number == 1 else f'-{number}'}}}"
    yield "\\footnotesize"
    for first in range(0, len(grid.columns), ABREAST):
        yield from ["\\par\\smallskip"] if first else []
        yield from _columns(grid, slice(first, first + ABREAST))
    yield from _below(document, grid, explanation)
    yield "\\end{table}"


def _columns(grid: Grid, shown: slice) -> Iterator[str]:
    """Some of a grid's columns, beside its labels."""
    columns = grid.columns[shown]
    counts = ["n"] if grid.shows_count else []
    alignment = "r" * len(counts) + "".join("r" if column.right else "l" for column in columns)
    yield f"\\begin{{tabular}}{{l{alignment}}}"
    yield "\\toprule"
    yield _line(escape(grid.label_head), [*counts, *(_head(column.head) for column in columns)])
    yield "\\midrule"
    for line in grid.lines:
        cells = [escape(line.counted)] if grid.shows_count else []
        yield _line(escape(line.label) + _marks(grid.marks(line)), [*cells, *map(_cell, line.cells[shown])])
    yield "\\bottomrule"
    yield "\\end{tabular}"


def _head(text: str) -> str:
    """A difference's in two lines, as the base row's label may be long."""
    base, difference, rest = text.partition(" − ")
    return f"\\shortstack[r]{{{escape(base)}\\\\{escape('− ' + rest)}}}" if difference else escape(text)


def _below(document: Document, grid: Grid, explanation: Sequence[str]) -> Iterator[str]:
    texts = [_text(note) for note in grid.notes]
    texts += [_sentence(item) for item in ([grid.head] if grid.head else [])]
    texts += [_sentence(item) for item in grid.items]
    marks = sorted({mark for line in grid.lines for mark in line.marks} | set(grid.head.marks if grid.head else ()))
    texts += [f"\\textsuperscript{{{mark}}} {_text(document.footnotes[mark - 1])}" for mark in marks]
    texts += [_text(" ".join(explanation))] if explanation else []
    if texts:
        yield "\\par\\smallskip"
        yield "\\begin{minipage}{\\linewidth}\\footnotesize"
        yield from (f"{text}\\par" for text in texts)
        yield "\\end{minipage}"


def _line(label: str, cells: Sequence[str]) -> str:
    # After \\ of the line before, [ or * would be read as its argument.
    return f"{'{}' if label[:1] in ('[', '*') else ''}{' & '.join([label, *cells])} \\\\"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return "--" if cell == NOTHING else _text(cell)
    text = str(cell)
    if isinstance(cell, Number):
        return text if cell.std is None else f"${text.replace('±', chr(92) + 'pm')}$"
    assert isinstance(cell, Difference)
    mean, _, interval = text.partition(" ")
    return f"${mean}$ ${interval}$" if interval else f"${mean}$"


def _text(text: str) -> str:
    """Code, and what stands between."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(_code(part) if number % 2 else escape(part) for number, part in enumerate(parts))


def _code(text: str) -> str:
    return f"\\texttt{{{''.join(SPECIAL_IN_CODE.get(sign, sign) for sign in text)}}}"


def _sentence(sentence: Sentence) -> str:
    strong = f"\\textbf{{{escape(sentence.strong)}}}{_marks(sentence.marks)}" if sentence.strong else ""
    space = "" if not sentence.rest.startswith(" ") or not strong else " "
    return strong + space + _text(sentence.rest)


def _marks(marks: Sequence[int]) -> str:
    return f"\\textsuperscript{{{','.join(map(str, marks))}}}" if marks else ""


def _comment(text: str) -> str:
    return " ".join(text.split())
