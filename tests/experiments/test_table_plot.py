"""A table drawn: bars or a curve, their intervals, and what is said of missing and single runs."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.cli import main
from experiments.errors import UsageError
from experiments.runs import open_run, read_metrics
from experiments.table_factor import numeric_factor
from experiments.table_plot import draw, mean_of
from experiments.table_rows import Plan, Row
from tests.experiments.test_table import write_run

ROOT = Path(__file__).parents[2]
T_OF_3 = 4.302653  # Student's 97.5 % quantile, 2 degrees of freedom


def row(label: str, values: list[float | None], missing: int = 0, **about: Any) -> Row:
    """As far as a plot looks: the values of its seeds."""
    numbers = [{} if value is None else {"mAP@10": value} for value in values]
    records = [{"seed": seed, "data": "shop", "test": number} for seed, number in enumerate(numbers)]
    records = [{**record, **about} for record in records]
    return Row(label, [], records, missing)


def bars() -> Plan:
    rows = [row("A & <b> $c$", [0.79, 0.8, 0.81]), row("one", [0.498]), row("two", [0.4, 0.42], 1), row("none", [], 3)]
    return Plan(rows, "Title with $x$ & <y>", rows[0])


def with_factor(shards: Path, key: str, values: list[Any]) -> list[Row]:
    """A row for each value of a setting; None: not set."""
    base = {"experiment": "capture", "data": str(shards), "scale": "tiny", "seeds": [0]}
    entries = [{**base, "set": {} if value is None else {key: value}} for value in values]
    return [row(str(entry["set"]), [0.5, 0.6])._replace(entry=entry) for entry in entries]


def texts(file: Path) -> str:
    """What is written in an SVG."""
    found = ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(element.itertext()) for element in found)


def test_the_interval_is_students_of_the_mean() -> None:
    found = mean_of(row("x", [0.79, 0.8, 0.84]), "mAP@10")
    assert found.mean == pytest.approx(0.81)
    assert found.half_width == pytest.approx(T_OF_3 * np.std([0.79, 0.8, 0.84], ddof=1) / 3**0.5, rel=1e-5)
    assert mean_of(row("x", [0.5]), "mAP@10")[1:3] == (0.5, None)


def test_a_single_seed_has_its_interval_over_queries_and_says_so(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, 0))
    single = Row("x", [run], [read_metrics(run)], 0)
    with np.load(run.rankings / "test.npz") as stored:
        score_Q = stored["mAP@10"]
    found = mean_of(single, "mAP@10")
    assert found.ends is not None
    half = 1.96 * score_Q.std() / len(score_Q) ** 0.5
    assert found.ends == pytest.approx((score_Q.mean() - half, score_Q.mean() + half), abs=0.1 * half)
    draw(Plan([single], "One"), tmp_path / "plot.svg")
    assert "(n = 1: over queries)" in texts(tmp_path / "plot.svg")
    draw(Plan([row("x", [0.5, 0.6])], "Two"), tmp_path / "two.svg")
    assert "n = 1" not in texts(tmp_path / "two.svg")


def test_a_number_one_seed_lacks_is_not_averaged() -> None:
    assert mean_of(row("x", [0.5, None]), "mAP@10").mean is None
    assert mean_of(row("x", []), "mAP@10").mean is None


def test_a_row_of_one_feature_is_drawn_by_its_numbers() -> None:
    shown = row("x", [0.5])
    shown.records[0]["test"]["feature/concat/mAP@10"] = 0.25
    assert mean_of(shown._replace(feature="concat"), "mAP@10").mean == 0.25
    assert mean_of(shown._replace(feature="other"), "mAP@10").mean is None


def test_long_labels_leave_room_for_the_bars(tmp_path: Path) -> None:
    long = Plan([row("an-unbroken-label-" * 12, [0.5, 0.6]), row("word " * 40, [0.4])], "Long")
    (file,) = draw(long, tmp_path / "plot.svg")
    assert "0.550" in texts(file)
    lines = texts(file).splitlines()
    assert max(len(line) for line in lines if "label" in line or "word" in line) <= 36
    assert [line[-1] for line in lines].count("…") == 2


def test_bars_say_what_is_missing_and_what_is_single(tmp_path: Path) -> None:
    assert draw(bars(), tmp_path / "plot.svg") == [tmp_path / "plot.svg"]
    shown = texts(tmp_path / "plot.svg").splitlines()
    for text in ("A & <b> $c$", "Title with $x$ & <y>", "0.800", "0.498, n = 1", "0.410, n = 2 of 3"):
        assert text in shown
    assert any("– " in text and "no number" in text for text in shown)
    assert any(text.startswith("mAP@10 (test), mean over seeds and its 95 % interval") for text in shown)


def test_without_an_ending_both_are_drawn(tmp_path: Path) -> None:
    files = draw(bars(), tmp_path / "new" / "v1")
    assert [file.name for file in files] == ["v1.png", "v1.svg"]
    with Image.open(files[0]) as picture:
        assert picture.width > 800
        grey = np.asarray(picture.convert("RGB")).astype(int)
    assert np.ptp(grey, axis=2).max() == 0  # black, white and greys
    assert 0.01 < (grey < 128).mean() < 0.3


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    for ending in (".svg", ".png"):
        first, second = (draw(bars(), tmp_path / f"{name}{ending}")[0].read_bytes() for name in ("a", "b"))
        assert first == second
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


def test_no_setting_of_matplotlib_is_left_behind(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(bars(), tmp_path / "plot")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.experiments.test_table_plot import bars\n"
        "from experiments.table_plot import draw\ndraw(bars(), Path(sys.argv[1]))\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "again.svg")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "plot.svg").read_bytes()


def test_footnotes_stand_below(tmp_path: Path) -> None:
    rows = [row("new", [0.5, 0.6]), row("old", [0.5, 0.6], metric_version="official-2021")]
    draw(Plan(rows), tmp_path / "plot.svg")
    shown = texts(tmp_path / "plot.svg")
    assert "0.550, ¹" in shown
    assert "¹ measured by the metric definition official-2021" in shown


def test_one_number_that_differs_is_a_factor(shards: Path) -> None:
    found = numeric_factor(with_factor(shards, "model.temperature", [0.2, None, 0.5]))
    assert found is not None
    assert (found.key, found.values) == ("model.temperature", [0.2, 0.07, 0.5])
    found = numeric_factor(with_factor(shards, "trainer.max_steps", [10, 20, None]))
    assert found is not None
    assert found.values[:2] == [10, 20]
    assert found.values[2] > 20  # of the scale


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("model.temperature", [0.2, 0.5]),  # two make no curve
        ("model.temperature", [0.2, 0.5, 0.2]),
        ("model.objectives", [["mlm"], ["clr"], ["mrm"]]),
        ("model.region_norm", [True, False, None]),
        ("model.text_weights", ["a", "b", None]),
    ],
)
def test_anything_else_is_none(shards: Path, key: str, values: list[Any]) -> None:
    assert numeric_factor(with_factor(shards, key, values)) is None


def test_rows_that_differ_in_more_have_no_factor(shards: Path) -> None:
    rows = with_factor(shards, "model.temperature", [0.2, 0.3, 0.5])
    rows[0].entry["set"]["model.lr"] = 0.1  # type: ignore[index]
    assert numeric_factor(rows) is None
    rows = with_factor(shards, "model.temperature", [0.2, 0.3, 0.5])
    rows[0].entry["experiment"] = "ege_cmp"  # type: ignore[index]
    assert numeric_factor(rows) is None
    assert numeric_factor([row("a", [0.5])]) is None  # of run folders, not of a table's file


def test_a_curve_leaves_a_gap_where_a_run_is_missing(shards: Path, tmp_path: Path) -> None:
    rows = with_factor(shards, "model.temperature", [0.01, 0.1, None, 1.0])
    rows[1] = rows[1]._replace(records=[], missing=3)
    rows[3] = rows[3]._replace(records=rows[3].records[:1])
    draw(Plan(rows), tmp_path / "curve.svg")
    shown = texts(tmp_path / "curve.svg").splitlines()
    assert {"0.01", "0.07", "0.1", "1", "model.temperature", "n = 1", "no number"} <= set(shown)


def test_a_metric_nobody_has_is_answered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--metric mAP@1: did you mean 'mAP@10'"):
        draw(bars(), tmp_path / "plot.svg", "mAP@1")
    assert not list(tmp_path.iterdir())


def test_nothing_run_yet_is_drawn_as_such(tmp_path: Path) -> None:
    draw(Plan([row("a", [], 2), row("b", [], 2)]), tmp_path / "plot.svg")
    assert texts(tmp_path / "plot.svg").count("no number") == 2


def test_the_command_draws_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path, seed)) for seed in (0, 1)]
    words = ["table", *runs, "--plot", str(tmp_path / "p.png"), "--metric", "mAR@10"]
    assert main(words) == 0
    assert "| product feature |" in capsys.readouterr().out
    with Image.open(tmp_path / "p.png") as picture:
        picture.verify()
