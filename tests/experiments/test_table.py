"""Tables from metrics.json and per-query scores of several seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import table
from experiments.errors import UsageError
from experiments.runs import write_json, write_text
from retrieval.significance import paired_bootstrap

ROOT = Path(__file__).parents[2]
QUERIES = 30


def write_run(home: Path, seed: int, **changes: object) -> Path:
    """A run folder as far as a table looks."""
    folder = home / f"capture-tiny-{seed}-0"
    draw = np.random.default_rng(seed)
    names = ["mAP@10", "mAR@10", "image/mAP@10", "image/mAR@10", "tfidf/mAP@10", "tfidf/mAR@10"]
    scores = {name: draw.random(QUERIES) for name in names}
    order = draw.permutation(QUERIES)
    (folder / "rankings").mkdir(parents=True)
    ids = np.array([f"q{n:02d}" for n in range(QUERIES)])
    shuffled = {name: score[order] for name, score in scores.items()}
    np.savez_compressed(folder / "rankings" / "test.npz", query_ids=ids[order], **shuffled)
    means = {name: float(score.mean()) for name, score in scores.items()}
    record = {
        **{"run_id": folder.name, "experiment": "capture", "data": "tiny", "scale": "tiny", "config_hash": "0"},
        **{"seed": seed, "feature": "product_co", "git": {"commit": "c" * 40, "dirty": False}},
        **{"command": f"python -m experiments fit --seed {seed}", "hardware": {"cpu": "a cpu", "cores": 2}},
        "test": {name: value for name, value in means.items() if not name.startswith("tfidf")},
        "floors": {"test": {"tfidf": {k: means[f"tfidf/{k}"] for k in ("mAP@10", "mAR@10")}}},
        "intervals": {"test": {"image": {"mAP@10": [0.1, 0.05, 0.15]}}},
    }
    write_json(folder / "metrics.json", {**record, **changes})
    write_text(folder / "config.yaml", "run: {}\n")
    return folder


def cells(text: str, row: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_seeds_are_averaged_and_paired_by_query(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, seed) for seed in (0, 1, 2)]
    text = table.make_table(runs, None, "make table")
    ours, theirs = [], []
    for run in runs:
        with np.load(run / "rankings" / "test.npz") as stored:
            by_id = np.argsort(stored["query_ids"])
            ours.append(stored["mAP@10"][by_id])
            theirs.append(stored["image/mAP@10"][by_id])
    means = [scores.mean() for scores in ours]
    assert cells(text, "product feature")[0] == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"
    interval = paired_bootstrap(np.stack(ours), np.stack(theirs), samples=table.BOOTSTRAP_SAMPLES)
    assert cells(text, "image only")[1] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    assert "n = 3" in text
    assert "`make table`" in text
    assert "cccccccccc" in text


def test_one_seed_shows_its_own_interval(tmp_path: Path) -> None:
    text = table.make_table([write_run(tmp_path, 0)], None, "x")
    assert cells(text, "image only")[1] == "+0.100 [+0.050, +0.150]"
    assert "n = 1" in text
    assert "±" not in cells(text, "product feature")[0]


def test_configurations_are_kept_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 0, config_hash="1", scale="small")]
    text = table.make_table(runs, None, "x")
    assert text.count("n = 1") == 2


def test_a_seed_given_twice_is_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 0) for name in ("a", "b")]
    with pytest.raises(UsageError, match=r"seed 0 .* given twice"):
        table.make_table(runs, None, "x")


def test_a_number_one_seed_lacks_is_not_averaged(tmp_path: Path) -> None:
    complete, partial = write_run(tmp_path, 0), write_run(tmp_path, 1, floors={})
    text = table.make_table([complete, partial], None, "x")
    assert cells(text, "TF-IDF on captions")[0] == "–"


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 0)
    (folder / "metrics.json").unlink()
    with pytest.raises(UsageError, match="did not finish"):
        table.make_table([folder], None, "x")


def test_a_table_file_finds_its_runs(tmp_path: Path, shards: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.experiments.conftest import SMALL

    (tmp_path / "ablations").mkdir()
    settings = ", ".join(f"{word[2:].replace('=', ': ')}" for word in SMALL)
    rows = f"- {{label: ours, data: {shards}, seeds: [0, 1], set: {{{settings}}}}}"
    (tmp_path / "ablations" / "mine.yaml").write_text(f"title: Mine\nscale: tiny\nrows:\n{rows}\n")
    monkeypatch.setattr(table, "HOME", tmp_path)
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    text = table.make_table([], "mine", "x")
    assert "### Mine" in text
    assert "**ours** (n = 1, seed 0;" in text
    assert "1 run(s) missing" in text


def test_rows_are_compared_with_the_base_row_by_seed_and_query(tmp_path: Path) -> None:
    def row(label: str, seeds: list[int], first: int) -> table.Row:
        runs = [table.open_run(write_run(tmp_path / label, first + seed)) for seed in seeds]
        records = [{**table.read_metrics(run), "seed": seed} for run, seed in zip(runs, seeds, strict=True)]
        return table.Row(label, runs, records)

    base, other = row("full", [0, 1], 0), row("less", [1, 0], 10)
    text = table._comparison([base, other], base)
    expected = []
    for seed in (0, 1):
        scores = []
        for label, first in (("full", 0), ("less", 10)):
            with np.load(tmp_path / label / f"capture-tiny-{first + seed}-0" / "rankings" / "test.npz") as stored:
                scores.append(stored["mAP@10"][np.argsort(stored["query_ids"])])
        expected.append(scores)
    interval = paired_bootstrap(*np.stack(expected, 1), samples=table.BOOTSTRAP_SAMPLES)
    assert cells(text, "less")[2] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    assert cells(text, "full")[2] == ""
    assert cells(text, "less")[-1] == "–"  # no run has the caption alone


@pytest.mark.parametrize("wrong", ["lable: x", "rows: [{lable: x}]"])
def test_a_misspelt_key_of_a_table_file_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "mine.yaml").write_text(wrong)
    monkeypatch.setattr(table, "HOME", tmp_path)
    with pytest.raises(UsageError, match=r"mine\.yaml: unknown key lable"):
        table.make_table([], "mine", "x")


def test_it_is_light(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path, seed)) for seed in (0, 1)]
    code = (
        "import sys\nfrom experiments.cli import main\nassert main(['table', *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *runs], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "n = 2" in done.stdout
