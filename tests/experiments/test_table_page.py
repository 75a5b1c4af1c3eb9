"""The page of a table: its numbers, curves, settings and runs, and nothing that a label could smuggle in."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from experiments.cli import main
from experiments.curves import Curve, drawing, mean_over_seeds, series
from experiments.table_page import write_table_report
from experiments.table_rows import Choice
from tests.experiments.conftest import SMALL
from tests.experiments.page_reader import PageReader

ATTACK = '<script>alert("x")</script> $x_1'
SET = {key[2:]: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in SMALL)}


@pytest.fixture
def runs(run: Path, tmp_path: Path) -> Path:
    """The finished run, and a second seed of it."""
    for seed in (0, 1):
        copy = tmp_path / "runs" / run.name.replace("-0-", f"-{seed}-")
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "wandb"))
        record = json.loads((copy / "metrics.json").read_text())
        (copy / "metrics.json").write_text(json.dumps(record | {"seed": seed, "run_id": copy.name}))
    return tmp_path / "runs"


@pytest.fixture
def mine(write: Callable[..., None]) -> None:
    """A table with a row that has been run, one that has not, and labels of a stranger."""
    rows = [{"label": ATTACK, "set": SET}, {"label": "later", "set": {**SET, "model.lr": 0.5}}]
    write(" " + json.dumps(rows), base=ATTACK, blocks=False)


@pytest.mark.usefixtures("mine")
def test_it_shows_the_table_its_curves_and_what_each_row_sets(runs: Path, tmp_path: Path) -> None:
    text = write_table_report("mine", "make report", homes=(runs,), out=str(tmp_path / "page.html")).read_text()
    page = PageReader(text)
    assert "2 of 4 runs are finished" in page.text
    numbers = page.tables[0]
    ours, later = numbers[1], numbers[2]
    assert (ours[0], ours[1], later[1]) == (ATTACK, "2", "0")
    mean = json.loads((next(runs.iterdir()) / "metrics.json").read_text())["test"]["mAP@10"]
    assert ours[2] == f"{mean:.4f} ± 0.0000"
    assert set(later[2:]) == {"–"}
    sets = {row[0]: row[-1] for row in page.tables[1]}
    assert "--model.width=32" in sets[ATTACK]
    assert "--model.lr=0.5" in sets["later"]
    assert "--model.lr" not in sets[ATTACK]
    assert "make report" in page.text
    assert "2 missing" in page.text
    assert [a for a in page.attributes("svg") if a.get("role") == "img"]
    plots = [str(a["src"]) for a in page.attributes("img")]
    assert len(plots) == 2
    drawn = base64.b64decode(plots[0].removeprefix("data:image/svg+xml;base64,")).decode()
    assert "later" in drawn
    assert all(f"{mean:.3f}" in str(a["alt"]) for a in page.attributes("img")[:1])


@pytest.mark.usefixtures("mine")
def test_labels_are_escaped(runs: Path, tmp_path: Path) -> None:
    text = write_table_report("mine", ATTACK, homes=(runs,), out=str(tmp_path / "page.html")).read_text()
    assert "<script" not in text
    assert "&lt;script" in text


@pytest.mark.usefixtures("mine")
def test_runs_are_linked_where_their_pages_exist(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "table.html"
    (first, second) = sorted(path.name for path in runs.iterdir())
    page = PageReader(write_table_report("mine", "x", homes=(runs,), out=str(out)).read_text())
    assert [a for a in page.attributes("a") if not str(a["href"]).startswith("#")] == []
    assert first in page.text
    (out.parent / f"{first}.html").write_text("")
    page = PageReader(write_table_report("mine", "x", homes=(runs,), out=str(out)).read_text())
    assert [a["href"] for a in page.attributes("a") if not str(a["href"]).startswith("#")] == [f"{first}.html"]
    assert second in page.text


@pytest.mark.usefixtures("mine")
def test_with_nothing_run_yet_the_page_says_so(tmp_path: Path) -> None:
    text = write_table_report("mine", "x", homes=(tmp_path,), out=str(tmp_path / "page.html")).read_text()
    assert "0 of 4 runs are finished" in text
    assert "No run has finished" in text
    assert "No run has curves" in text


def test_published_numbers_stand_beside_their_source(write: Callable[..., None], runs: Path, tmp_path: Path) -> None:
    rows = [{"label": "ours", "set": SET, "published": {"mAP@10": 0.7936}}]
    write(" " + json.dumps(rows), base="ours", published_source="a file, 2022", blocks=False)
    page = PageReader(write_table_report("mine", "x", homes=(runs,), out=str(tmp_path / "page.html")).read_text())
    heads, ours, *_ = page.tables[0]
    assert ours[heads.index("published on Product1M: mAP@10")] == "0.7936"
    assert "a file, 2022" in page.text


@pytest.mark.usefixtures("mine")
def test_the_command_names_the_page_by_what_was_chosen(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--table", "mine", "--runs", str(runs), "--seeds", "0,1"]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == Path("reports") / "table-mine-seeds-0-1.html"
    assert "[seeds 0, 1]" in printed.read_text()
    choice = Choice(scale="tiny")
    assert write_table_report("mine", "x", choice, (runs,)).name == "table-mine-tiny.html"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "report wants a run folder (RUN=runs/<run_id>) or TABLE=<name>"),
        (["--run", "a", "--table", "b"], "one of the two"),
        (["--run", "a", "--data", "grocery"], "data grocery: a run is what it is"),
        (["--table", "nameless"], "unknown table 'nameless'"),
        (["--table", "mine", "--seeds", "x"], "'x' is no seed"),
    ],
)
def test_wrong_words_are_answered(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_mean_is_of_the_steps_that_all_seeds_have() -> None:
    curve = mean_over_seeds("ours", [[(0, 1.0), (5, 2.0), (9, 9.0)], [(0, 3.0), (5, 6.0)]])
    assert curve.points == [(0, 2.0), (5, 4.0)]
    assert len(curve.seeds) == 2
    assert mean_over_seeds("ours", [[(0, 1.0)]]) == Curve("ours", [(0, 1.0)])


def test_a_step_logged_twice_after_a_resume_counts_as_it_was_last() -> None:
    rows = [{"step": 4, "a": 1.0}, {"step": 2, "a": 3.0}, {"step": 4, "a": 2.0}, {"step": 5, "b": 0.0}]
    assert series(rows, "a") == [(2, 3.0), (4, 2.0)]


def test_a_drawing_has_the_pages_colour_a_name_and_no_ids_of_its_own() -> None:
    seeds = [[(0, 0.1), (5, 0.5)], [(0, 0.2), (5, 0.4)]]
    text = drawing("a & b", [mean_over_seeds(ATTACK, seeds), Curve("one", seeds[0])])
    assert text.startswith('<svg role="img" aria-label="a &amp; b" ')
    assert "currentColor" in text
    assert "<script" not in text
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert set(re.findall(r' id="([^"]*)"', text)) <= used
    thin, thick = (text.count(f"stroke-width: {width}") for width in ("0.7", "1.8"))
    assert thin == 2
    assert thick == 4  # two curves, and each once more in the legend
