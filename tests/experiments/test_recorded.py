"""Tables kept in the repository: records of runs, and the README's section made from them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import recorded, results_page, table
from experiments.errors import UsageError
from experiments.results_command import results_command
from experiments.runs import open_run, read_metrics, write_json
from experiments.table_markdown import markdown
from experiments.table_rows import Plan, Row
from tests.experiments.test_table import write_run

ROOT = Path(__file__).parents[2]
RECORDED = sorted(file.parent.name for file in recorded.RESULTS.glob("*/table.json"))


def make_row(label: str, folders: list[Path], missing: int = 0) -> Row:
    runs = [open_run(folder) for folder in folders]
    return Row(label, runs, [read_metrics(run) for run in runs], missing)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    rows = []
    for name, missing in (("ours", 0), ("theirs", 1)):
        folders = [write_run(tmp_path / name, seed, config_hash=name) for seed in (0, 1)]
        folders = [folder.rename(folder.with_name(f"{folder.name}{name}")) for folder in folders]
        rows.append(make_row(name, folders, missing))
    return Plan(rows, "A <title>", rows[0], blocks=False)


def test_a_recorded_table_says_what_the_runs_said(plan: Plan, tmp_path: Path) -> None:
    whole = markdown(table.document(plan, "mine", "make results", "c0"))
    record = recorded.record_table(plan, "mine", "make results", tmp_path / "results")
    shutil.rmtree(tmp_path / "ours")
    shutil.rmtree(tmp_path / "theirs")
    assert record.folder.name == "mine-tiny"
    again = recorded.read_record(record.folder)
    assert markdown(table.document(again.plan, "mine", "make results", "c0")) == whole
    assert (record.folder / "table.md").read_text() == again.text()


def test_a_table_of_another_scale_is_kept_beside_its_file_s_own(plan: Plan, tmp_path: Path) -> None:
    own = recorded.record_table(plan, "mine", "x", tmp_path / "results")
    other = recorded.record_table(plan, "mine", "x", tmp_path / "results", scale="small")
    assert (own.folder.name, other.folder.name) == ("mine-tiny", "mine-tiny-small")  # the data are called tiny
    assert len(recorded.records(tmp_path / "results")) == 2


@pytest.mark.parametrize(("words", "scale"), [([], None), (["--scale", "tiny"], None), (["--scale", "small"], "small")])
def test_the_scale_of_the_file_is_not_named(
    words: list[str], scale: str | None, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named: list[str | None] = []

    def record_table(*arguments: object, scale: str | None = None) -> recorded.Record:
        named.append(scale)
        return recorded.Record(tmp_path, "pretext", plan, "x", "c0")

    monkeypatch.setattr(recorded, "record_table", record_table)
    monkeypatch.setattr("experiments.results_command.read_plan", lambda *arguments: plan)
    monkeypatch.setattr("experiments.table_plot.draw", lambda *arguments: None)
    monkeypatch.setattr(results_page, "write_section", lambda *arguments: None)
    results_command("results", ["--table", "pretext", *words])
    assert named == [scale]


def test_a_record_holds_each_run_once_and_no_more_than_tables_need(plan: Plan, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for run in plan.rows[0].runs:
        with np.load(run.rankings / "test.npz") as stored:
            scores = dict(stored)
        np.savez_compressed(run.rankings / "test.npz", **scores, **{"mAP@77": scores["mAP@10"]})
    recorded.record_table(plan, "mine", "x", results)
    kept = recorded.runs_of(results)
    assert sorted(path.name for path in kept.iterdir()) == sorted(r.run_id for row in plan.rows for r in row.runs)
    with np.load(kept / plan.rows[0].runs[0].run_id / "rankings" / "test.npz") as stored:
        assert {"mAP@10", "image/mAR@10", "query_ids"} <= set(stored.files)
        assert "mAP@77" not in stored.files
    other = plan._replace(columns=("mAP@77",), base=None, rows=plan.rows[:1])  # a table that shows it shares the runs
    recorded.record_table(other, "other", "x", results)
    recorded.record_table(plan, "mine", "x", results)
    with np.load(kept / plan.rows[0].runs[0].run_id / "rankings" / "test.npz") as stored:
        assert "mAP@77" in stored.files


def test_a_record_is_made_again_from_itself(plan: Plan, tmp_path: Path) -> None:
    """The run folders are gone, and the table gets a row: what is kept stays."""
    results = tmp_path / "results"
    first = recorded.record_table(plan, "mine", "x", results)
    kept = recorded.read_record(first.folder).plan
    assert recorded.record_table(kept, "mine", "x", results).text() == first.text()


def test_nothing_finished_is_nothing_to_record(plan: Plan, tmp_path: Path) -> None:
    empty = plan._replace(rows=[Row("ours", [], [], 3)], base=None)
    with pytest.raises(UsageError, match="no run has finished"):
        recorded.record_table(empty, "mine", "x", tmp_path)


def test_a_record_without_one_of_its_runs_is_an_error(plan: Plan, tmp_path: Path) -> None:
    record = recorded.record_table(plan, "mine", "x", tmp_path / "results")
    shutil.rmtree(recorded.runs_of(tmp_path / "results") / plan.rows[0].runs[0].run_id)
    with pytest.raises(UsageError, match=plan.rows[0].runs[0].run_id):
        recorded.read_record(record.folder)


def write_readme(root: Path) -> Path:
    readme = root / "README.md"
    readme.write_text(f"before\n{results_page.BEGIN}\nold\n{results_page.END}\nafter\n")
    return readme


def test_the_readme_shows_the_tables_and_their_reading(plan: Plan, tmp_path: Path) -> None:
    results = tmp_path / "results"
    record = recorded.record_table(plan, "mine", "x", results)
    (record.folder / results_page.READING).write_text("Ours is ours.\n")
    single = plan._replace(rows=[row._replace(runs=row.runs[:1], records=row.records[:1]) for row in plan.rows])
    single = single._replace(base=single.rows[0], title="Single")
    recorded.record_table(single, "single", "x", results)
    readme = write_readme(tmp_path)
    results_page.write_section(readme, results)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "Ours is ours." in text
    assert "results/mine-tiny/table.md" in text
    assert "image only" not in text  # stands in the whole table
    assert text.index("A <title>") < text.index("n = 1") < text.index("<summary>Single</summary>")
    results_page.write_section(readme, results)
    assert readme.read_text() == text


def test_a_readme_without_marks_stays_as_it_is(plan: Plan, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine\n")
    with pytest.raises(UsageError, match="results: begin"):
        results_page.write_section(readme, tmp_path)
    assert readme.read_text() == "mine\n"


def test_runs_are_chosen_of_a_table_only() -> None:
    with pytest.raises(UsageError, match="--table"):
        results_command("results", ["--data", "grocery"])


def test_the_readme_of_the_repository_is_as_generated(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split(results_page.BEGIN)[1].split(results_page.END)[0]
    assert section.strip() == results_page.section(ROOT).strip()


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_tables_follow_from_their_runs(name: str) -> None:
    record = recorded.read_record(recorded.RESULTS / name)
    assert (record.folder / "table.md").read_text(encoding="utf-8") == record.text()


def test_recorded_runs_name_a_clean_commit_and_no_folder_of_a_machine() -> None:
    files = sorted(recorded.runs_of().glob("*/metrics.json"))
    assert files
    for file in files:
        found = read_metrics(open_run(file.parent))
        assert found["git"]["commit"], file
        assert not found["git"]["dirty"], file
        for text in (file.read_text(encoding="utf-8"), (file.parent / "config.yaml").read_text(encoding="utf-8")):
            assert not [word for word in ("/home/", "/work/", "/tmp/", "/root/") if word in text], file


def test_runs_that_only_the_repository_has_are_found_when_asked_for(tmp_path: Path) -> None:
    """`table --recorded`: the first place that has a finished run is taken."""
    from experiments.table_rows import first_finished

    here, there = write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 0)
    places = [open_run(here), open_run(there)]
    assert first_finished(places)[0] == places[0]
    write_json(here / "metrics.json", {"run_id": "unfinished"})
    run, record = first_finished(places)
    assert record is not None
    assert (run, record["seed"]) == (places[1], 0)
    write_json(there / "metrics.json", {"run_id": "unfinished"})
    assert first_finished(places) == (places[0], None)
