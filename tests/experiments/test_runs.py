"""A run's name follows from what decides its numbers, and its files are whole or absent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from experiments import config, runs
from experiments.errors import UsageError
from tests.experiments.test_config import compose, write_folder

HOME = Path("runs")


def run_id(folder: Path, *settings: str, scale: str = "tiny", seed: int | None = None) -> str:
    return runs.run_folder(compose(folder, *settings, scale=scale, seed=seed), HOME).run_id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "synthetic", "synthetic")


# As they were before there were tasks: runs on disk are found again.
OLD_IDS = {
    "capture synthetic tiny": "capture-synthetic-0-9c915fbc",
    "capture synthetic small": "capture-synthetic-0-8be1cd97",
    "capture product1m paper": "capture-product1m-0-12d5b449",
    "ege_cmp synthetic tiny": "ege_cmp-synthetic-0-bbe1cb1c",
    "ege_cmp product1m paper": "ege_cmp-product1m-0-01eaf499",
    "clip synthetic tiny": "clip-synthetic-0-bc6ad8f5",
    "clip grocery small": "clip-grocery-0-f84dacf4",
    "clip product1m paper": "clip-product1m-0-5309d8b4",
    "uniter fashion tiny": "uniter-fashion-0-9c75eb22",
    "vilbert photos tiny": "vilbert-photos-0-fede8d37",
    "lxmert grocery tiny": "lxmert-grocery-0-0cf4f2fd",
    "image_only grocery tiny": "image_only-grocery-0-a5ff1822",
    "text_only grocery tiny": "text_only-grocery-0-6aabb4e0",
}


@pytest.mark.parametrize("case", sorted(OLD_IDS))
def test_runs_made_before_there_were_tasks_keep_their_names(case: str, tmp_path: Path) -> None:
    experiment, data, scale = case.split()
    folder = write_folder(tmp_path / data, data)
    composed = config.compose(experiment, str(folder), scale, 0, ())
    assert runs.run_folder(composed, HOME).run_id == OLD_IDS[case]


def test_the_name_has_four_parts(folder: Path) -> None:
    experiment, data, seed, digest = run_id(folder, seed=4).split("-")
    assert (experiment, data, seed) == ("capture", "synthetic", "4")
    assert len(digest) == 8


@pytest.mark.parametrize(
    "setting",
    [
        *("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.logger=false"),
        *("--data.num_workers=3", "--data.pin_memory=true", "--data.eval_batch_size=7", "--evaluation.backend=faiss"),
        *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--model.temperature=0.07"),
        *("--data.instances=[]", "--data.max_instances=10", "--evaluation.merge=round_robin"),
        *("--checkpoint.monitor=val/mAP@10", "--checkpoint.mode=max", "--checkpoint.save_weights_only=true"),
    ],
)
def test_how_and_where_it_runs_is_not_in_the_name(folder: Path, setting: str) -> None:
    assert run_id(folder, setting) == run_id(folder)


@pytest.mark.parametrize(
    "setting",
    [
        *("--model.lr=2e-5", "--model.objectives=[clr]", "--model.co_layers=2", "--data.batch_size=8"),
        *("--trainer.max_steps=9", "--trainer.precision=bf16-mixed", "--evaluation.ks=[10]", "--data.augment=false"),
        *("--data.instances=[true]", "--data.crop_margin=0.1", "--evaluation.level=whole"),
        *("--checkpoint.monitor=val/mAR@10", "--checkpoint.mode=min"),
    ],
)
def test_what_decides_the_numbers_is(folder: Path, setting: str) -> None:
    assert run_id(folder, setting) != run_id(folder)


def test_the_seed_changes_its_own_part_only(folder: Path) -> None:
    assert run_id(folder, seed=1).rsplit("-", 1)[1] == run_id(folder, seed=2).rsplit("-", 1)[1]
    assert run_id(folder, seed=1) != run_id(folder, seed=2)


def test_the_same_shards_elsewhere_are_the_same_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = write_folder(tmp_path / "elsewhere" / "shards", "synthetic")
    changed = write_folder(tmp_path / "changed", "synthetic", data_hash="f" * 16)
    assert run_id(moved) == run_id(folder)
    assert run_id(changed) != run_id(folder)


def test_entities_are_in_the_name_of_a_model_that_reads_them(tmp_path: Path) -> None:
    def of(experiment: str, digest: str) -> str:
        parts: dict[str, dict] = {"source": {}, "tags": {}, "files": {}, "counts": {}}
        folder = write_folder(tmp_path / f"{experiment}-{digest}", "synthetic", entities={"hash": digest, **parts})
        return runs.run_folder(config.compose(experiment, str(folder), "tiny", 0, ()), HOME).run_id

    assert of("ege_cmp", "a") != of("ege_cmp", "b")
    assert of("capture", "a") == of("capture", "b")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    runs.write_json(file, {"a": 1})

    def fail() -> None:
        with runs.atomic(file) as temporary:
            temporary.write_text("{")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert file.read_text() == '{\n  "a": 1\n}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_counts_as_finished_with_its_test_numbers(tmp_path: Path) -> None:
    run = runs.RunFolder(tmp_path)
    assert run.finished() is None
    runs.write_json(run.metrics, {"val": {}})
    assert run.finished() is None
    runs.write_json(run.metrics, {"test": {"mAP@10": 1.0}})
    assert run.finished() == {"test": {"mAP@10": 1.0}}


def test_a_missing_run_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "capture-synthetic-0-abc").mkdir()
    (tmp_path / "capture-synthetic-0-abc" / "config.yaml").write_text("run: {}")
    with pytest.raises(UsageError, match="did you mean 'capture-synthetic-0-abc'"):
        runs.open_run(tmp_path / "capture-synthetic-0-abd")
    with pytest.raises(UsageError, match="no run folder"):
        runs.open_run(tmp_path)


def test_unreadable_metrics_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UsageError, match="not readable as JSON"):
        runs.read_metrics(runs.RunFolder(tmp_path))


def test_git_state_names_a_commit_of_this_repository() -> None:
    state = runs.git_state()
    assert set(state) == {"commit", "dirty"}
    if state["commit"] is not None:
        assert len(state["commit"]) == 40


def git(folder: Path, *words: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *author, *words], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "dirty"),
    [
        ("lightning_modules/mine.py", True),
        ("experiments/data/mine.yaml", True),
        ("retrieval/notes.txt", False),
        ("data/mine/list.py", False),
        ("experiments/ignored.py", False),
        ("experiments/results/runs/a/config.yaml", False),
        ("experiments/ablations/mine.yaml", False),
    ],
)
def test_code_that_was_never_added_makes_a_tree_dirty(name: str, dirty: bool, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "-m", "first")
    assert runs.git_state(tmp_path)["dirty"] is False
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("x = 1\n")
    assert runs.git_state(tmp_path)["dirty"] is dirty


@pytest.mark.parametrize(
    ("name", "dirty"), [("README.md", False), ("docs/a.md", False), ("a.py", True), ("lock.txt", True)]
)
def test_a_changed_file_makes_a_tree_dirty_unless_it_is_a_document(name: str, dirty: bool, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("before\n")
    git(tmp_path, "init")
    git(tmp_path, "add", name)
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / name).write_text("after\n")
    assert runs.git_state(tmp_path)["dirty"] is dirty
