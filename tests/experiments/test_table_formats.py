"""One document, three forms: Markdown as it always was, LaTeX that compiles by its rules, CSV that programs read."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import table
from experiments.cli import main
from experiments.errors import UsageError
from experiments.table_csv import as_csv
from experiments.table_document import Column, Difference, Document, Grid, Line, Number, Sentence
from experiments.table_forms import chosen_form, chosen_plot
from experiments.table_latex import escape, latex
from experiments.table_markdown import markdown
from experiments.table_rows import Plan
from tests.experiments.test_table import by_head, plan, write_run

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).parent / "tables"


def with_records(shown: Plan, row: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Plan:
    """The plan with other records in one row."""
    rows = list(shown.rows)
    rows[row] = rows[row]._replace(records=[change(record) for record in rows[row].records])
    return shown._replace(rows=rows, base=rows[0])


def read(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(line["part"], line["row"]): line for line in csv.DictReader(io.StringIO(text))}


# ---- Markdown ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("compared", {"blocks": False, "costs": True, "title": "Three methods"}),
        ("blocks", {"columns": ("mAP@10", "same/mAP@10"), "title": "In blocks"}),
    ],
)
def test_markdown_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(table, "git_state", lambda: {"commit": "d" * 40, "dirty": False})
    monkeypatch.setattr(table, "read_plan", lambda name, *choice: plan(tmp_path, **changes))
    assert table.make_table([], "x", "make table") == (EXPECTED / f"table_{name}.md").read_text()


def test_markdown_of_run_folders_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "git_state", lambda: {"commit": "d" * 40, "dirty": False})
    runs = [write_run(tmp_path, seed) for seed in (0, 1, 2)]
    runs.append(write_run(tmp_path / "b", 3, config_hash="1", scale="small"))
    assert table.make_table(runs, None, "make table") == (EXPECTED / "table_runs.md").read_text()


def test_a_bar_in_a_label_ends_no_cell() -> None:
    grid = Grid("g", [Column("a|b", "a")], [Line("self|cross", [Number(0.5)])])
    text = markdown(Document("x", "", [grid], (), ["How."], "By me.", ()))
    assert "| self\\|cross | 0.5000 |" in text
    assert "| | a\\|b |" in text


# ---- what stands in every form -------------------------------------------------------------------------------------


def test_the_difference_from_a_published_number_is_of_the_published_data_only(tmp_path: Path) -> None:
    shown = plan(tmp_path, blocks=False)
    assert "this − published" not in markdown(table.document(shown, "x", "x"))
    shown = with_records(shown, 0, lambda record: {**record, "data": "product1m"})
    text = markdown(table.document(shown, "x", "x"))
    mean = np.mean([record["test"]["mAP@10"] for record in shown.rows[0].records])
    found = by_head(text, "ours")
    assert found["this − published"] == "–"  # of mAP@50, which no run has; the last of its name
    assert f"| 0.7936 | {mean - 0.7936:+.4f} |" in text
    assert by_head(text, "theirs")["this − published"] == by_head(text, "later")["this − published"] == "–"
    line = read(as_csv(table.document(shown, "x", "x")))["comparison", "ours"]
    assert float(line["mAP@10: this - published"]) == pytest.approx(mean - 0.7936, abs=1e-5)
    assert line["mAP@50: this - published"] == ""


def test_an_older_definition_and_other_data_are_footnotes(tmp_path: Path) -> None:
    shown = with_records(plan(tmp_path, blocks=False), 0, lambda r: {**r, "data_hash": "a" * 16})
    shown = with_records(shown, 1, lambda r: {**r, "data_hash": "b" * 16, "metric_version": "official"})
    rows = list(shown.rows)
    rows[1].records[1]["metric_version"] = "official-2021"
    found = table.document(shown._replace(rows=rows), "x", "x")
    older, other = found.footnotes
    assert "`official-2021`, not by today's `official` (seed 1)" in older
    assert other == f"run on other data, tiny `{'b' * 16}`, than ours (`{'a' * 16}`)."
    text = markdown(found)
    assert "| theirs ¹ ² | 2 |" in text
    assert "| ours | 2 |" in text
    assert f"* ¹ {older}\n* ² {other}\n" in text
    assert "theirs\\textsuperscript{1,2} & 2 &" in latex(found)
    assert read(as_csv(found))["comparison", "theirs"]["notes"] == f"{older} {other}"
    assert read(as_csv(found))["comparison", "ours"]["notes"] == ""


def test_floors_share_the_footnotes_of_the_row_they_are_of(tmp_path: Path) -> None:
    shown = with_records(plan(tmp_path, blocks=False), 0, lambda r: {**r, "metric_version": "older"})
    text = markdown(table.document(shown, "x", "x"))
    assert "| TF-IDF on captions ¹ |" in text


def test_without_a_base_data_of_the_same_name_are_compared(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, seed, data_hash="a" * 16) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "b", 2, config_hash="1", data_hash="b" * 16))
    runs.append(write_run(tmp_path / "c", 3, config_hash="2", data_hash="c" * 16, data="fashion"))
    text = table.make_table(runs, None, "x")
    assert text.count("¹") == 2  # the head of one block, and the note
    assert f"tiny `{'b' * 16}`, than most runs on tiny (`{'a' * 16}`)" in text


def test_missing_and_single_seeds_are_told(tmp_path: Path) -> None:
    shown = plan(tmp_path, blocks=False)
    rows = list(shown.rows)
    rows[1] = rows[1]._replace(runs=rows[1].runs[:1], records=rows[1].records[:1], missing=1)
    found = table.document(shown._replace(rows=rows), "x", "x")
    text = markdown(found)
    assert by_head(text, "theirs")["n"] == "1 of 2"
    assert "n = 1 (theirs): one seed, so no deviation" in text
    line = read(as_csv(found))["comparison", "theirs"]
    assert (line["n"], line["missing"], line["mAP@10 std"]) == ("1", "1", "")
    later = read(as_csv(found))["comparison", "later"]
    assert (later.pop("n"), later.pop("missing"), later.pop("published on Product1M: mAP@10")) == ("0", "2", "0.5")
    assert set(list(later.values())[3:]) == {""}
    assert re.search(r"^later & 0 & -- & ", latex(found), re.MULTILINE)


# ---- CSV -----------------------------------------------------------------------------------------------------------


def test_csv_has_a_column_for_each_number(tmp_path: Path) -> None:
    shown = plan(tmp_path, costs=True)
    found = read(as_csv(table.document(shown, "x", "x")))
    means = [record["test"]["mAP@10"] for record in shown.rows[1].records]
    line = found["comparison", "theirs"]
    assert float(line["mAP@10"]) == pytest.approx(np.mean(means), rel=1e-5)
    assert float(line["mAP@10 std"]) == pytest.approx(np.std(means, ddof=1), rel=1e-5)
    assert float(line["mAP@10: ours - this low"]) < float(line["mAP@10: ours - this high"])
    assert (line["n"], line["trained parameters (M)"], line["training (min)"]) == ("2", "2.5", "1.5")
    block = found["theirs", "product feature"]  # the same columns, in another part
    assert block["mAP@10"] == line["mAP@10"]
    assert found["theirs", "image only"]["mAP@10: product - this low"] != ""
    assert found["later", "product feature"]["n"] == "0"


def test_csv_quotes_what_has_to_be() -> None:
    grid = Grid("g", [Column("a", "a", ())], [Line('one, "two"\nthree', ["–"]), Line("x", ["a,b"])])
    text = as_csv(Document("x", "", [grid], (), (), "", ()))
    assert text.splitlines()[1:] == ['g,"one, ""two"" three",,0,,', 'g,x,,0,,"a,b"']


# ---- LaTeX ---------------------------------------------------------------------------------------------------------


def check_latex(text: str) -> None:
    """What would stop LaTeX: braces and environments that do not close, signs of its own, cells of no column."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\(\\|[&%$#_{}])", "", code)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not re.search(r"[#_%~^]", bare)
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", code):
        assert what == "begin" or opened.pop() == name
        opened += [name] if what == "begin" else []
    assert not opened
    for alignment, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", code, re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith("\\\\")]
        assert lines
        for line in lines:
            assert len(re.findall(r"(?<!\\)&", line)) == len(alignment) - 1


@pytest.mark.parametrize("blocks", [True, False])
def test_latex_of_a_whole_table(tmp_path: Path, blocks: bool) -> None:
    shown = plan(tmp_path, costs=True, blocks=blocks, title="All_methods & 50 %")
    text = latex(table.document(shown, "my_table", "make table ARGS='--x_y 1'"))
    check_latex(text)
    assert text.count("\\begin{table}") == (3 if blocks else 1)  # `later` has nothing to show
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule")
    assert text.count("\\bottomrule") == text.count("\\begin{tabular}") == text.count("\\end{tabular}")
    assert "\\caption{All\\_methods \\& 50 \\%" in text
    assert "\\label{tab:my-table}" in text
    means = [record["test"]["mAP@10"] for record in shown.rows[0].records]
    assert f"ours & 2 & ${np.mean(means):.4f} \\pm {np.std(means, ddof=1):.4f}$ & " in text
    assert re.search(r"theirs & 2 & \$[^$]*\$ & \$[+-]0\.\d{3}\$ \$\[[+-]0\.\d{3}, [+-]0\.\d{3}\]\$ &", text)
    assert "\\textbf{later}: no finished run" in text
    assert "\\texttt{make bench ARGS=methods}" in text
    assert text.startswith("% Table made by `make table ARGS='--x_y 1'` at ")
    assert text.count("is the standard deviation over seeds") == 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the PATH")
def test_latex_compiles(tmp_path: Path) -> None:
    shown = plan(tmp_path, costs=True, blocks=True, title="All_methods & 50 % <of> “x”")
    text = latex(table.document(shown, "my_table", "make table ARGS='--x_y 1'"))
    head = "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage[T1]{fontenc}\n"
    (tmp_path / "all.tex").write_text(f"{head}\\begin{{document}}\n{text}\\end{{document}}\n", encoding="utf-8")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "all.pdf").stat().st_size > 1000


def test_latex_writes_its_own_signs_out() -> None:
    assert escape("a_b & 50 % of $x #1 {y}") == "a\\_b \\& 50 \\% of \\$x \\#1 \\{y\\}"
    assert escape("\\ ~ ^ ` <|>") == (
        "\\textbackslash{} \\textasciitilde{} \\textasciicircum{} \\textasciigrave{} "
        "\\textless{}\\textbar{}\\textgreater{}"
    )
    assert escape("– − × “x”") == "-- $-$ $\\times$ ``x''"
    grid = Grid("g", [Column("[95 %]", "a")], [Line("[4-4-6]", [Difference(0.1, digits=4)]), Line("* x", ["a\n\nb"])])
    text = latex(Document("x", "", [grid], (), ["See `a--b_c`."], "two\nlines", ("three\n\nlines",)))
    check_latex(text)
    assert "{}[4-4-6] & $+0.1000$ \\\\" in text
    assert "{}* x & a b \\\\" in text
    assert "\\texttt{a{-}{-}b\\_c}" in text
    assert "% two lines\n% three lines\n" in text


def test_a_head_without_a_table_is_a_paragraph() -> None:
    grid = Grid("g", [], [Line("x", [])], head=Sentence("a_b", ": no finished run", [1]))
    text = latex(Document("x", "", [grid], ["Why."], (), "", ()))
    check_latex(text)
    assert "\\textbf{a\\_b}\\textsuperscript{1}: no finished run" in text
    assert "tabular" not in text


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "out", "expected"),
    [(None, None, "md"), (None, "a.md", "md"), (None, "a", "md"), (None, "b.TEX", "latex"), (None, "b.csv", "csv")]
    + [("latex", None, "latex"), ("csv", "a.csv", "csv"), ("latex", "a.inc", "latex"), ("csv", "a", "csv")],
)
def test_the_ending_or_a_word_chooses_the_form(form: str | None, out: str | None, expected: str) -> None:
    assert chosen_form(form, out) == expected


@pytest.mark.parametrize(
    ("form", "out", "message"),
    [("html", None, "expected one of md, latex, csv"), (None, "a.html", "no form has the ending .html")]
    + [("latex", "a.csv", "has the ending of csv, but --format says latex")],
)
def test_a_form_that_is_none_is_answered(form: str | None, out: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen_form(form, out)


def test_what_is_no_picture_is_answered() -> None:
    assert chosen_plot(None, None) is None
    assert chosen_plot("a/b.SVG", "mAP@10") == Path("a/b.SVG")
    with pytest.raises(UsageError, match=r"expected the ending \.png or \.svg"):
        chosen_plot("a.jpg", None)
    with pytest.raises(UsageError, match="--metric says what --plot draws"):
        chosen_plot(None, "mAP@10")


def test_the_command_writes_and_prints_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path, seed)) for seed in (0, 1)]
    for name, sign in (("t.tex", "\\toprule"), ("t.csv", "part,row,n,"), ("t.md", "| product feature |")):
        assert main(["table", *runs, "--out", str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out
        assert sign in shown
        assert (tmp_path / name).read_text() == shown


def test_every_form_is_light(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path, seed)) for seed in (0, 1)]
    code = (
        "import sys\nfrom experiments.cli import main\n"
        "for form in ('md', 'latex', 'csv'):\n    assert main(['table', '--format', form, *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'lightning', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *runs], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
