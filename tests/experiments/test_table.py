"""Tables from metrics.json and per-query scores of several seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import table, table_cells, table_rows
from experiments.errors import UsageError
from experiments.runs import open_run, read_metrics, write_json, write_text
from experiments.table_comparison import comparison as comparison_grid
from experiments.table_markdown import grid_markdown
from experiments.table_rows import Plan, Row
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
    same = {name: draw.random(4) for name in ("same/mAP@10", "image/same/mAP@10", "tfidf/same/mAP@10")}
    np.savez_compressed(folder / "rankings" / "test-same.npz", query_ids=np.array(["g2", "g1", "g0", "g3"]), **same)
    means |= {name: float(score.mean()) for name, score in same.items()}
    record = {
        **{"run_id": folder.name, "experiment": "capture", "data": "tiny", "scale": "tiny", "config_hash": "0"},
        **{"seed": seed, "feature": "product_co", "git": {"commit": "c" * 40, "dirty": False}},
        **{"command": f"python -m experiments fit --seed {seed}", "hardware": {"cpu": "a cpu", "cores": 2}},
        "test": {name: value for name, value in means.items() if not name.startswith("tfidf")},
        "floors": {"test": {"tfidf": {k: means[f"tfidf/{k}"] for k in ("mAP@10", "mAR@10", "same/mAP@10")}}},
        "intervals": {"test": {"image": {"mAP@10": [0.1, 0.05, 0.15]}}},
    }
    write_json(folder / "metrics.json", {**record, **changes})
    write_text(folder / "config.yaml", "run: {}\n")
    return folder


def cells(text: str, row: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def comparison(plan: Plan) -> str:
    """As it stands in Markdown."""
    return grid_markdown(comparison_grid(plan, [()] * len(plan.rows)))


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
    interval = paired_bootstrap(np.stack(ours), np.stack(theirs), samples=table_cells.BOOTSTRAP_SAMPLES)
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
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    text = table.make_table([], "mine", "x")
    assert "### Mine" in text
    assert "**ours** (n = 1, seed 0;" in text
    assert "1 run(s) missing" in text


@pytest.mark.parametrize(("rows", "base"), [("all,CLR", "all"), ("CLR,MLM", "CLR"), ("MLM", "MLM"), (None, "all")])
def test_some_rows_of_a_table_are_compared_with_its_base_or_the_first_of_them(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, rows: str | None, base: str
) -> None:
    (tmp_path / "ablations").mkdir()
    labels = "rows: [{label: all}, {label: CLR, seeds: [1]}, {label: MLM, seeds: [2]}]"
    (tmp_path / "ablations" / "mine.yaml").write_text(f"data: {shards}\nbase: all\n{labels}\n")
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    plan = table_rows.read_plan("mine", table_rows.Choice(rows=rows), [tmp_path])
    assert [row.label for row in plan.rows] == (rows or "all,CLR,MLM").split(",")
    assert plan.base is not None
    assert plan.base.label == base


def test_rows_are_compared_with_the_base_row_by_seed_and_query(tmp_path: Path) -> None:
    def row(label: str, seeds: list[int], first: int) -> Row:
        runs = [open_run(write_run(tmp_path / label, first + seed)) for seed in seeds]
        records = [{**read_metrics(run), "seed": seed} for run, seed in zip(runs, seeds, strict=True)]
        return Row(label, runs, records)

    base, other = row("full", [0, 1], 0), row("less", [1, 0], 10)
    text = comparison(Plan([base, other], base=base))
    expected = []
    for seed in (0, 1):
        scores = []
        for label, first in (("full", 0), ("less", 10)):
            with np.load(tmp_path / label / f"capture-tiny-{first + seed}-0" / "rankings" / "test.npz") as stored:
                scores.append(stored["mAP@10"][np.argsort(stored["query_ids"])])
        expected.append(scores)
    interval = paired_bootstrap(*np.stack(expected, 1), samples=table_cells.BOOTSTRAP_SAMPLES)
    assert cells(text, "less")[2] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    assert cells(text, "full")[2] == ""
    assert cells(text, "less")[-1] == "–"  # no run has the caption alone


def plan(home: Path, **changes: object) -> Plan:
    """Two methods of two seeds each, and one that has not been run."""
    rows = []
    for label, feature in (("ours", "co"), ("theirs", "first")):
        records = []
        for seed in (0, 1):
            folder = write_run(home / label, seed + 10 * (label == "theirs"))
            record = {**read_metrics(open_run(folder)), "seed": seed, "parameters": 2_500_000}
            record |= {"train_seconds": 60.0 * (seed + 1), "embedding_ms_per_item": 0.5}
            record["test"][f"feature/{feature}/mAP@10"] = 0.25 + 0.5 * seed
            record["floors"]["test"]["untrained"] = {"mAP@10": 0.125, "image/mAP@10": 0.0625}
            records.append((folder, record))
        runs = [open_run(folder) for folder, _ in records]
        rows.append(Row(label, runs, [record for _, record in records], own_feature=feature))
    rows[0] = rows[0]._replace(published={"mAP@10": 0.7936, "mAP@50": 0.7479})
    rows.append(Row("later", [], [], missing=2, published={"mAP@10": 0.5}))
    return Plan(rows, base=rows[0], published_source="a file, 2022")._replace(**changes)


def by_head(text: str, row: str) -> dict[str, str]:
    """A row's cells by the heads of their columns; of a repeated head the last."""
    heads = next(line for line in text.splitlines() if line.startswith("| | n |"))
    names = [name.strip() for name in heads.strip("|").split("|")][1:]
    found = cells(text, row)
    assert len(found) == len(names)
    return dict(zip(names, found, strict=True))


def test_costs_own_features_and_published_numbers_have_their_columns(tmp_path: Path) -> None:
    text = comparison(plan(tmp_path, costs=True))
    ours, theirs, later = (by_head(text, label) for label in ("ours", "theirs", "later"))
    assert ours["trained parameters (M)"] == theirs["trained parameters (M)"] == "2.50"
    assert ours["training (min)"] == "1.5 ± 0.7"
    assert ours["embedding (ms per item)"] == "0.50 ± 0.00"
    assert ours["own feature mAP@10"] == theirs["own feature mAP@10"] == "0.5000 ± 0.3536"
    assert theirs["own feature mAR@10"] == "–"  # no run has it
    assert (ours["published on Product1M: mAP@10"], ours["published on Product1M: mAP@50"]) == ("0.7936", "0.7479")
    assert set(theirs[f"published on Product1M: mAP@{k}"] for k in (10, 50)) == {"–"}
    assert later.pop("published on Product1M: mAP@10") == "0.5000"
    assert set(later.values()) == {"0", "–"}
    assert "co (ours), first (theirs)" in text
    assert "a file, 2022" in text


def test_without_them_the_comparison_has_none_of_their_columns(tmp_path: Path) -> None:
    rows = [row._replace(published=None, own_feature=None) for row in plan(tmp_path).rows]
    text = comparison(Plan(rows, base=rows[0]))
    for word in ("published", "own feature", "parameters", "training", "embedding", "re-ranked", "TF-IDF", "– ="):
        assert word not in text


def test_without_blocks_the_floors_of_the_base_are_rows(tmp_path: Path) -> None:
    shown = plan(tmp_path, blocks=False)
    text = comparison(shown)
    base = shown.rows[0]
    found = by_head(text, "TF-IDF on captions")
    means = [record["floors"]["test"]["tfidf"]["mAP@10"] for record in base.records]
    assert found["mAP@10"] == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"
    assert found["image only mAP@10"] == found["own feature mAP@10"] == "–"
    sides = []
    for run in base.runs:
        with np.load(run.rankings / "test.npz") as stored:
            sides.append([stored[key][np.argsort(stored["query_ids"])] for key in ("mAP@10", "tfidf/mAP@10")])
    interval = paired_bootstrap(*np.stack(sides, 1), samples=table_cells.BOOTSTRAP_SAMPLES)
    assert cells(text, "TF-IDF on captions")[2] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    untrained = by_head(text, "untrained ours")
    assert (untrained["mAP@10"], untrained["image only mAP@10"]) == ("0.1250 ± 0.0000", "0.0625 ± 0.0000")
    assert "* **theirs** (n = 2, seed 0, 1; feature chosen on val: product_co)" in text
    assert "* **later**: no finished run" in text


def test_re_ranked_results_are_compared_where_a_row_has_them(tmp_path: Path) -> None:
    shown = plan(tmp_path)
    for record in shown.rows[1].records:
        record["test"]["rerank/mAP@10"] = 0.75
    text = comparison(shown)
    assert by_head(text, "theirs")["re-ranked mAP@10"] == "0.7500 ± 0.0000"
    assert by_head(text, "ours")["re-ranked mAP@10"] == "–"


def test_the_identical_product_is_a_column_with_its_own_queries(tmp_path: Path) -> None:
    shown = plan(tmp_path, blocks=False, columns=("mAP@10", "same/mAP@10"))
    text = comparison(shown)
    ours, theirs, _ = shown.rows
    means = [record["test"]["same/mAP@10"] for record in theirs.records]
    assert by_head(text, "theirs")["same/mAP@10"] == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"
    means = [record["test"]["image/same/mAP@10"] for record in ours.records]
    assert by_head(text, "ours")["image only same/mAP@10"] == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"
    means = [record["floors"]["test"]["tfidf"]["same/mAP@10"] for record in ours.records]
    floor = by_head(text, "TF-IDF on captions")["same/mAP@10"]
    assert floor == f"{np.mean(means):.4f} ± {np.std(means, ddof=1):.4f}"

    def scores(row: Row, measure: str) -> np.ndarray:
        by_id = [2, 1, 0, 3]
        return np.stack([np.load(run.rankings / "test-same.npz")[measure][by_id] for run in row.runs])

    interval = paired_bootstrap(*(scores(row, "same/mAP@10") for row in (ours, theirs)), samples=2000)
    assert cells(text, "theirs")[4] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    interval = paired_bootstrap(scores(ours, "same/mAP@10"), scores(ours, "tfidf/same/mAP@10"), samples=2000)
    assert cells(text, "TF-IDF on captions")[4] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    heads = next(line for line in text.splitlines() if line.startswith("| | n |"))
    assert "mAR@10" not in heads
    assert "own feature same" not in heads


def write_levels(home: Path, seed: int) -> Path:
    """A run whose queries were read by the detector's boxes, as one, and by their true boxes."""
    folder = write_run(home, seed)
    record, draw = read_metrics(open_run(folder)), np.random.default_rng(seed + 100)
    with np.load(folder / "rankings" / "test.npz") as stored:
        scores = {name: stored[name] for name in stored.files}
    for prefix in ("", "whole/", "true/", "tfidf/"):
        for column in ("mAP@10", "mAR@10", "coverage@10"):
            scores.setdefault(prefix + column, draw.random(QUERIES))
            if prefix != "tfidf/":
                record["test"][prefix + column] = float(scores[prefix + column].mean())
    np.savez_compressed(folder / "rankings" / "test.npz", **scores)
    about = {name: {"rows": 90, "mean": 3.0, "without": 1} for name in ("detected", "true")}
    write_json(folder / "metrics.json", {**record, "level": "detected", "instances": {"val": about, "test": about}})
    return folder


@pytest.mark.parametrize("seeds", [(0, 1), (0,)])
def test_the_levels_of_a_run_are_rows_of_its_block(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    runs = [open_run(write_levels(tmp_path, seed)) for seed in seeds]
    row = Row("ours", runs, [read_metrics(run) for run in runs])
    text = grid_markdown(table._block(row, ("mAP@10", "mAR@10", "coverage@10")))
    assert "feature chosen on val: product_co; product feature of: detected boxes)" in text
    labels = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert labels == ["", "product feature", "image only", "TF-IDF on captions", "whole picture", "true boxes"]
    for label, prefix in (("whole picture", "whole/"), ("true boxes", "true/"), ("TF-IDF on captions", "tfidf/")):
        sides = []
        for run in runs:
            with np.load(run.rankings / "test.npz") as stored:
                by_id = np.argsort(stored["query_ids"])
                sides.append([stored["coverage@10"][by_id], stored[f"{prefix}coverage@10"][by_id]])
        interval = paired_bootstrap(*np.stack(sides, 1), samples=table_cells.BOOTSTRAP_SAMPLES)
        assert cells(text, label)[5] == "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)
    means = [record["test"]["true/coverage@10"] for record in row.records]
    assert cells(text, "true boxes")[4] == str(table_cells.mean_std(means))


def test_the_table_of_instances_names_levels_as_words() -> None:
    content = table_rows.read_file(ROOT / "experiments" / "ablations" / "instances.yaml")
    for row in content["rows"]:
        assert row["set"]["data.instances"] == ["detected", "true"]  # unquoted, YAML reads a truth value


def test_a_table_file_asks_for_costs_and_no_blocks(
    tmp_path: Path, shards: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.experiments.conftest import SMALL

    (tmp_path / "ablations").mkdir()
    settings = ", ".join(f"{word[2:].replace('=', ': ')}" for word in SMALL)
    row = f"{{label: ours, own_feature: product_both, published: {{mAP@10: 0.5}}, set: {{{settings}}}}}"
    content = f"data: {shards}\nbase: ours\ncosts: true\nblocks: false\npublished_source: a paper\nrows: [{row}]\n"
    file = tmp_path / "ablations" / "mine.yaml"
    file.write_text(content)
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    record = read_metrics(open_run(run))
    text = table.make_table([], "mine", "x")
    found = by_head(text, "ours")
    assert found["own feature mAP@10"] == f"{record['test']['feature/product_both/mAP@10']:.4f}"
    assert found["trained parameters (M)"] == f"{record['parameters'] / 1e6:.2f}"
    assert found["embedding (ms per item)"] == f"{record['embedding_ms_per_item']:.2f}"
    assert by_head(text, "untrained ours")["mAP@10"] == f"{record['floors']['test']['untrained']['mAP@10']:.4f}"
    assert "product − this" not in text

    file.write_text(content.replace("product_both", "product_bth"))
    with pytest.raises(UsageError, match="own_feature product_bth: did you mean 'product_both'"):
        table.make_table([], "mine", "x")


ROWS_OF_A = "rows: [{label: a}]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"blocks: false\n{ROWS_OF_A}", "blocks: false wants a base row.*base: a"),
        (f"costs: true\n{ROWS_OF_A}", "costs wants a base row"),
        ("rows: [{label: a, own_feature: x}]", "own_feature wants a base row"),
        (f"base: b\n{ROWS_OF_A}", "base 'b' is no row"),
        ("rows: []", "at least one row"),
        (f"columns: [same/mAR@10]\n{ROWS_OF_A}", "columns: 'same/mAR@10' is no metric: expected a list of metrics"),
        (f"columns: [same/coverage@10]\n{ROWS_OF_A}", "columns: 'same/coverage@10' is no metric"),
        (f"columns: [map@10]\n{ROWS_OF_A}", "columns: 'map@10' is no metric"),
        (f"columns: mAP@10\n{ROWS_OF_A}", "columns: expected a list of metrics.*got 'mAP@10'"),
        (f"columns: [mAP@10, mAP@10]\n{ROWS_OF_A}", "columns: expected .* each once"),
        ("rows: [{data: x}]", "a row has no label"),
        ("base: a\nrows: [{label: a, published: {mAP@10: 0.5}}]", "want a published_source"),
        ("base: a\npublished_source: x\nrows: [{label: a, published: {mAP@10: 79.36}}]", "mAP@10 must be a fraction"),
        ("base: a\npublished_source: x\nrows: [{label: a, published: high}]", "must be a fraction, got 'high'"),
    ],
)
def test_what_a_table_file_lacks_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UsageError, match=rf"mine\.yaml: .*{message}"):
        table_rows.read_file(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments" / "ablations").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_tables_of_the_project_are_well_formed(file: Path) -> None:
    assert table_rows.read_file(file)["rows"]


@pytest.mark.parametrize("wrong", ["lable: x", "rows: [{lable: x}]"])
def test_a_misspelt_key_of_a_table_file_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "mine.yaml").write_text(wrong)
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
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
