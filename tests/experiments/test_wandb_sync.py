"""An offline run that was interrupted: what its segments hold, and what arrives at a server when they are synced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.history import read_history
from experiments.wandb_segments import STEP, goes_on, read_records, row_of, segments, trim
from tests.experiments.conftest import fit_words
from tests.experiments.wandb_server import Server, serving

ROOT = Path(__file__).parents[2]
KILLED_AT = 5  # the last checkpoint is of step 3
# Kills itself, with W&B's process, once rows past the checkpoint are on disk.
KILLED = f"""
import os, signal, sys, time
from pathlib import Path
from experiments.cli import main
from experiments.wandb_segments import read_records, row_of, segments, STEP
from lightning_modules.callbacks.throughput import Throughput

start = Throughput.on_train_batch_start

def stop(self, trainer, *more):
    if trainer.global_step == {KILLED_AT}:
        (segment,) = segments(Path(trainer.checkpoint_callback.dirpath).parent)
        while not any((row_of(record) or {{}}).get(STEP, 0) >= 3 for _, record in read_records(segment.log)):
            time.sleep(0.1)
        os.killpg(0, signal.SIGKILL)
    start(self, trainer, *more)

Throughput.on_train_batch_start = stop
sys.exit(main(sys.argv[1:]))
"""


def offline(patch: pytest.MonkeyPatch) -> None:
    for name in (
        "WANDB_SERVICE",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_RUN_GROUP",
        "WANDB_SWEEP_ID",
        "WANDB_BASE_URL",
    ):
        patch.delenv(name, raising=False)
    patch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def killed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as SIGKILL leaves it in the second of two intervals."""
    home = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        patch.setenv("PYTHONPATH", str(ROOT))
        words = [
            sys.executable,
            "-c",
            KILLED,
            *fit_words(shards, home, "--trainer.log_every_n_steps=1", "--table=pretext"),
        ]
        done = subprocess.run(words, cwd=ROOT, start_new_session=True, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    (folder,) = home.iterdir()
    return folder


@pytest.fixture(scope="module")
def interrupted(killed: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after the same command has gone on to the end."""
    home = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(killed, home / killed.name, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        assert main(fit_words(shards, home, "--trainer.log_every_n_steps=1", "--table=pretext")) == 0
    return home / killed.name


@pytest.fixture
def folder(interrupted: Path, tmp_path: Path) -> Path:
    """A copy, to be synced."""
    shutil.copytree(interrupted, tmp_path / interrupted.name, symlinks=True)
    return tmp_path / interrupted.name


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving() as found:
        for name in ("WANDB_MODE", "WANDB_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield found


def rows(folder: Path) -> list[list[dict[str, Any]]]:
    """The history of each segment."""
    found = [[row_of(record) for _, record in read_records(segment.log)] for segment in segments(folder)]
    return [[row for row in part if row] for part in found]


def told(history: list[dict[str, Any]]) -> list[tuple[int, str, float]]:
    """Curves as sorted points; media, W&B's own keys and the epoch, which several rows of a step have, left out."""
    return sorted(
        (row[STEP], key, value)
        for row in history
        if STEP in row
        for key, value in row.items()
        if key not in (STEP, "epoch") and not key.startswith(("_", "test/"))
    )


def kept(folder: Path) -> list[tuple[int, str, float]]:
    """The same of history.jsonl."""
    found = read_history(folder / "history.jsonl")
    return told([{STEP: row["step"], **{k: v for k, v in row.items() if k != "step"}} for row in found])


def test_the_killed_process_left_rows_that_will_be_repeated(killed: Path) -> None:
    (part,) = rows(killed)
    assert max(row[STEP] for row in part) >= 3


def test_the_segments_of_a_run_are_its_history_without_repeats(interrupted: Path) -> None:
    first, second = segments(interrupted)
    assert not goes_on(first)
    assert goes_on(second)
    parts = rows(interrupted)
    assert max(row[STEP] for row in parts[0]) < 3 <= min(row[STEP] for row in parts[1] if STEP in row)
    points = told([row for part in parts for row in part])
    assert points == kept(interrupted)
    assert len({point[:2] for point in points}) == len(points)


def test_a_run_that_went_on_logs_at_the_steps_of_one_that_was_not_stopped(interrupted: Path, run: Path) -> None:
    def validated(folder: Path) -> list[float]:
        return [row["step"] for row in read_history(folder / "history.jsonl") if "val/mAP@10" in row]

    assert validated(interrupted) == validated(run) == [0, 2, 5]


def test_both_segments_say_what_the_run_is(interrupted: Path) -> None:
    for segment in segments(interrupted):
        (run,) = (r.run for _, r in read_records(segment.log) if r.WhichOneof("record_type") == "run")
        assert run.run_id == interrupted.name
        assert run.run_group == "pretext"
        assert run.job_type == "training"
        assert {"pretext", "seed 0"} <= set(run.tags)
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        record = json.loads((interrupted / "metrics.json").read_text())
        for key in ("experiment", "data", "data_hash", "scale", "seed", "metric_version", "config_hash"):
            assert config[key] == record[key]
        assert config["git.commit"] == record["git"]["commit"]
        assert config["git.dirty"] is record["git"]["dirty"]
        assert config["model.width"] == 32
        assert str(Path.home()) not in json.dumps(config)
        assert not run.git.remote_url


def test_synced_it_is_one_run_with_the_numbers_of_its_folder(
    folder: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(folder), "--dry"]) == 0
    assert server.requests == 0
    printed = capfd.readouterr().out
    assert printed.count("offline-run-") == 2
    assert "1 to upload" in printed

    assert main(["sync", str(folder)]) == 0
    assert list(server.runs) == [folder.name]
    run, record = server.runs[folder.name], json.loads((folder / "metrics.json").read_text())
    assert told(run.history) == kept(folder)
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    assert run.exit_codes[-1] == 0
    for split in ("val", "test"):
        assert all(run.summary[f"{split}/{key}"] == pytest.approx(value) for key, value in record[split].items())
    assert run.summary["test/floor/tfidf/mAP@10"] == pytest.approx(record["floors"]["test"]["tfidf"]["mAP@10"])
    assert run.summary["parameters"] == run.config["parameters"] == record["parameters"]
    assert run.about["group"] == "pretext"
    assert "seed 0" in run.about["tags"]
    assert ("retrieval-hits", f"hits-{folder.name}") in server.artifacts

    asked = server.requests
    assert main(["sync", str(folder)]) == 0
    assert server.requests == asked
    assert "1 with nothing to upload" in capfd.readouterr().out


def test_an_upload_that_broke_off_is_begun_again_and_nothing_stands_there_twice(
    folder: Path, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    server.refuse_history = True
    assert main(["sync", str(folder)]) == 1
    assert f"failed: {folder}" in capfd.readouterr().out
    server.refuse_history = False
    assert main(["sync", str(folder)]) == 0
    assert told(server.runs[folder.name].history) == kept(folder)


def test_a_run_that_was_synced_before_it_went_on_is_appended_to(
    killed: Path, shards: Path, server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / killed.name
    shutil.copytree(killed, folder, symlinks=True)
    assert main(["sync", str(folder)]) == 0
    before = len(server.runs[folder.name].history)
    with pytest.MonkeyPatch.context() as patch:
        offline(patch)
        assert main(fit_words(shards, tmp_path, "--trainer.log_every_n_steps=1")) == 0
    assert main(["sync", str(folder)]) == 0
    points = [point[:2] for point in told(server.runs[folder.name].history)]
    assert len(server.runs[folder.name].history) > before
    assert len(set(points)) == len(points)
    assert set(points) >= {point[:2] for point in kept(folder)}


def test_a_torn_end_is_cut_off_so_that_the_rest_arrives(folder: Path, server: Server) -> None:
    last = segments(folder)[-1]
    size = last.log.stat().st_size
    os.truncate(last.log, size - 5)
    whole = len(rows(folder)[-1])
    assert main(["sync", str(folder)]) == 0
    assert len(server.runs[folder.name].history) == len(rows(folder)[0]) + whole
    assert trim(last) == 0


def test_a_run_that_is_being_written_is_left_out(
    folder: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.run_lock._living_owner", lambda lock: "process 1 on a-host")
    assert main(["sync", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed
    assert "1 run: 0 uploaded, 0 with nothing to upload, 1 in use" in printed
    assert server.requests == 0


@pytest.mark.parametrize("words", [[], ["no-such-run"], ["a", "--table", "pretext"], ["--table", "pretexts"]])
def test_wrong_words_are_answered(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
