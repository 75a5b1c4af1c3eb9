"""A run's mirror in W&B, and that whatever W&B or the disk does costs no numbers."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from experiments import record as record_file
from experiments import wandb_logger
from experiments.cli import main
from experiments.config import compose
from experiments.runs import RunFolder
from experiments.wandb_segments import read_records, row_of, segments
from tests.experiments.conftest import fit_words
from tests.experiments.test_wandb_sync import offline

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said; each failure of W&B's is said once in a process, so those of other tests are forgotten."""
    lines: list[str] = []
    monkeypatch.setattr(wandb_logger, "say", lines.append)
    monkeypatch.setattr(wandb_logger, "_said", set())
    return lines


class Broken:
    """A W&B run of which everything but its being there fails."""

    id = "broken"

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """The one thing that works: it is done at the start, where a failure leaves W&B out."""

    def _fail(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = log_artifact = finish = _fail

    @property
    def summary(self) -> Any:
        raise BrokenPipeError("the service is gone")

    config = summary


def test_a_wandb_that_raises_at_every_call_costs_no_numbers(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    import wandb

    offline(monkeypatch)
    monkeypatch.setattr(wandb, "init", lambda **kwargs: Broken())
    assert main(fit_words(shards, tmp_path)) == 0
    assert json.loads((tmp_path / run.name / "metrics.json").read_text())["test"] == record["test"]
    failures = Counter(line.partition(":")[0] for line in told)
    assert failures["W&B takes no metrics"] == failures["W&B did not finish in order"] == 1
    assert failures["W&B takes no summary"] == 1


def test_a_full_disk_at_its_start_leaves_wandb_out(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    import wandb

    def full(**kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    offline(monkeypatch)
    monkeypatch.setattr(wandb, "init", full)
    assert wandb_logger.open_logger(RunFolder(tmp_path / "run"), compose("capture", str(shards), "tiny", 0, [])) == []
    assert "W&B is left out" in told[-1]
    assert "No space left" in told[-1]


def test_a_server_that_does_not_answer_leaves_an_offline_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    import wandb

    offline(monkeypatch)
    started = wandb.init

    def unreachable(mode: str, **kwargs: Any) -> Any:
        if mode == "online":
            raise wandb.errors.CommError("connection refused")
        return started(mode=mode, **kwargs)

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "init", unreachable)
    loggers = wandb_logger.open_logger(RunFolder(tmp_path / "run"), compose("capture", str(shards), "tiny", 0, []))
    loggers[0].log_metrics({"train/loss": 1.0}, step=0)
    wandb_logger.close(loggers)
    assert [segment.online for segment in segments(tmp_path / "run")] == [False]
    assert [row["train/loss"] for row in map(row_of, records_of(tmp_path / "run")) if row] == [1.0]


def test_a_finish_that_hangs_is_left_after_a_while(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        def finish(self) -> None:
            Event().wait()

    stopped = Event()
    monkeypatch.setattr(wandb_logger, "_stop_service", stopped.set)
    wandb_logger.finish(Hanging(), seconds=0.1)
    assert "did not finish within" in told[-1]
    assert stopped.is_set()


FROZEN = """
import os, signal, sys
from pathlib import Path
from experiments import wandb_logger
from experiments.output import to_terminal
from experiments.wandb_labels import Labels

to_terminal()
experiment = wandb_logger.start(Path(sys.argv[1]), "frozen", Labels(None, ()), "training", {})
from wandb.sdk import wandb_setup
os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGSTOP)
wandb_logger.finish(experiment, seconds=1)
print("the run goes on", flush=True)
"""


def test_a_frozen_process_of_wandb_does_not_hold_up_the_end_of_ours(tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    environment.pop("WANDB_SERVICE", None)  # of this process: the other one wants its own
    words = [sys.executable, "-c", FROZEN, str(tmp_path)]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert "the run goes on" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_full_disk_at_the_end_is_one_error_and_the_same_command_trains_nothing_again(
    run: Path,
    record: dict,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = tmp_path / run.name

    def full(file: Path, content: dict) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(record_file, "write_json", full)
        assert main(fit_words(shards, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert f"{folder / 'metrics.json'}: No space left on device" in error
    assert "Traceback" not in error
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert not (folder / "metrics.json").exists()

    assert main(fit_words(shards, tmp_path)) == 0
    assert json.loads((folder / "metrics.json").read_text())["test"] == record["test"]
    log = (folder / "log.txt").read_text()
    assert "samples/s" not in log[log.index("going on from") :]


def test_numbers_are_on_disk_before_wandb_hears_of_them(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies in the upload leaves a finished run."""
    offline(monkeypatch)
    monkeypatch.setattr(wandb_logger, "open_logger", lambda *args, **kwargs: [])

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(wandb_logger, "log_record", die)
    with pytest.raises(KeyboardInterrupt):
        main(fit_words(shards, tmp_path))
    assert RunFolder(tmp_path / run.name).finished()


def test_a_finished_run_drawn_by_a_sweep_tells_its_numbers_under_the_sweeps_id(
    run: Path, record: dict, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("wandb"))
    offline(monkeypatch)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_ID", "drawn")
    assert main(fit_words(shards, tmp_path)) == 0
    records = records_of(tmp_path / run.name)
    (started,) = (found.run for found in records if found.WhichOneof("record_type") == "run")
    assert (started.run_id, started.display_name) == ("drawn", run.name)
    summary = summary_in(records)
    assert summary["val/mAP@10"] == pytest.approx(record["val"]["mAP@10"])


def records_of(folder: Path) -> list[Any]:
    """Of the only segment; W&B's process closes its log a moment after it has said that it has finished."""
    (segment,) = segments(folder)
    while True:  # bounded by pytest's own limit
        found = [record for _, record in read_records(segment.log)]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)


def summary_in(records: list[Any]) -> dict[str, Any]:
    found = {}
    for entry in records:
        if entry.WhichOneof("record_type") == "summary":
            for item in entry.summary.update:
                found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


def test_an_evaluation_in_a_folder_of_its_own_is_a_run_of_its_own_kind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("wandb"))
    offline(monkeypatch)
    assert main(["eval", "--run", str(tmp_path / run.name), "--evaluation.choose_by=mAR@10"]) == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.name != run.name)
    records = records_of(folder)
    (started,) = (found.run for found in records if found.WhichOneof("record_type") == "run")
    assert (started.run_id, started.job_type, list(started.tags)) == (folder.name, "evaluation", ["seed 0"])
    measured = json.loads((folder / "metrics.json").read_text())
    assert summary_in(records)["test/mAP@10"] == pytest.approx(measured["test"]["mAP@10"])


def test_a_table_is_a_run_of_its_own_with_all_its_forms(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offline(monkeypatch)
    plot = tmp_path / "plot.png"
    words = ["table", str(run), "--runs", str(tmp_path), "--wandb", "--plot", str(plot)]
    assert main(words) == 0
    folder = tmp_path / "tables" / "runs"
    records = records_of(folder)
    (started,) = (found.run for found in records if found.WhichOneof("record_type") == "run")
    assert (started.run_id, started.job_type, started.run_group) == ("table-runs", "table", "runs")
    (artifact,) = (
        found.artifact
        for found in records
        if found.WhichOneof("record_type") == "artifact" and found.artifact.type == "results-table"
    )
    assert artifact.name == "table-runs"
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert set(files) == {"runs.md", "runs.tex", "runs.csv", "plot.png"}
    assert capsys.readouterr().out.startswith(files["runs.md"].read_text())
    assert next(csv.reader(files["runs.csv"].open()))[0] == "part"
    assert all(folder in path.parents for path in files.values())  # not in somebody's home folder
