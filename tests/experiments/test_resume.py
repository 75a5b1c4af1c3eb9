"""A training started again: finished, interrupted, or with another seed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from experiments import record as recording
from experiments import train as training
from experiments.cli import main
from experiments.history import read_history
from tests.experiments.conftest import fit_words
from tests.experiments.interruption import check_same_weights, stopped_at


def test_a_finished_run_is_not_repeated(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    before = (run / "metrics.json").stat().st_mtime_ns
    assert main(fit_words(shards, run.parent)) == 0
    assert "finished already" in capsys.readouterr().out
    assert (run / "metrics.json").stat().st_mtime_ns == before


def test_a_rank_above_zero_starts_afresh_whatever_rank_zero_has_not_yet_deleted(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("wandb"))
    started: list[object] = []

    def start(composition: object, folder: object, engine: object, command: str, resume: object, *more: object) -> dict:
        started.append(resume)
        return record

    record = json.loads((run / "metrics.json").read_text())
    monkeypatch.setattr(training, "_run", start)
    monkeypatch.setenv("RANK", "1")
    assert main(fit_words(shards, tmp_path, "--fresh")) == 0
    assert started == [None]
    assert (tmp_path / run.name / "metrics.json").is_file()  # not this rank's to delete


def test_a_run_that_lost_its_end_goes_on_instead_of_starting_over(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(training, "git_state", lambda: {"commit": "at the start", "dirty": False}, raising=False)
    monkeypatch.setattr(recording, "git_state", lambda: {"commit": "at the end", "dirty": True})
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("metrics.json", "wandb"))
    assert main(fit_words(shards, tmp_path)) == 0
    again = json.loads((copy / "metrics.json").read_text())
    assert again["steps"] == 6
    assert again["test"] == record["test"]
    assert again["parameters"] == record["parameters"]
    assert again["git"] == {"commit": "at the start", "dirty": False}  # the code that trains, whatever is there now
    log = (copy / "log.txt").read_text()
    resumed = log[log.index("going on from") :]
    assert "tested: step" in resumed
    assert "fill no interval" not in resumed  # all were evaluated, before the interruption
    assert "samples/s" not in resumed  # and no interval is told that was not trained


def test_a_run_stopped_in_its_second_interval_ends_with_the_same_weights(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with stopped_at(4):
        main(fit_words(shards, tmp_path))
    assert not (tmp_path / run.name / "metrics.json").exists()
    assert main(fit_words(shards, tmp_path)) == 0
    check_same_weights(run, tmp_path / run.name)
    assert json.loads((tmp_path / run.name / "metrics.json").read_text())["test"] == record["test"]
    log = (tmp_path / run.name / "log.txt").read_text()
    lines = [line for line in log[log.index("going on from") :].splitlines() if "samples/s" in line]
    assert len(lines) == 1
    assert re.search(r"step 6/6  mean loss \d+\.\d{4}  val/mAP@10 \d\.\d{4}", lines[0])


def test_same_seed_same_numbers_other_seed_others(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")

    def losses(folder: Path) -> list[tuple[float, float]]:
        return [
            (row["step"], row["train/loss"]) for row in read_history(folder / "history.jsonl") if "train/loss" in row
        ]

    for seed, same in ((0, True), (1, False)):
        assert main(fit_words(shards, tmp_path, f"--seed={seed}", "--trainer.log_every_n_steps=1")) == 0
        (folder,) = tmp_path.glob(f"capture-synthetic-{seed}-*")
        assert (json.loads((folder / "metrics.json").read_text())["test"] == record["test"]) is same
    first, second = (losses(next(tmp_path.glob(f"capture-synthetic-{seed}-*"))) for seed in (0, 1))
    assert len(first) == 6
    assert first != second
