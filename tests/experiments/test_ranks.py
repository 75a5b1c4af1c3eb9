"""Ranks and loader workers that are killed or freeze: what is left says so and ends."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from lightning_modules.callbacks.throughput import Throughput
from tests.experiments.conftest import fit_words
from tests.experiments.drills import drilled

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_lost_rank_ends_the_others_with_a_message_and_the_run_goes_on(
    fault: str, shards: Path, tmp_path: Path
) -> None:
    words = [*fit_words(shards, tmp_path, *TWO), "--ranks.timeout_s=60"]
    done = drilled(words, rank=1, step=4, fault=fault)
    assert done.returncode == 1, done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if fault == "kill":
        assert "rank 0 of 2 stops: rank 1 was killed by SIGKILL" in error
    else:
        assert "within 60 s (ranks.timeout_s)" in error
    assert "the same command goes on from the last checkpoint" in error
    (run,) = tmp_path.iterdir()
    assert not (run / "run.lock").exists()
    done = drilled(words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "last.ckpt, step 3" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_ranks_outlive_rank_zero_by_a_message(shards: Path, tmp_path: Path) -> None:
    """Their message is on the error output that they share with it; waiting for its end is waiting for theirs."""
    done = drilled(fit_words(shards, tmp_path, *TWO), rank=0, step=4, fault="kill")
    assert done.returncode == -signal.SIGKILL
    assert "error: rank 1 of 2 stops: another process has ended" in done.stderr


def test_a_killed_worker_is_one_error(shards: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    start, killed = Throughput.on_train_batch_start, []

    def kill_a_worker(self: Throughput, trainer: Any, *more: Any) -> None:
        if trainer.global_step == 1 and not killed:
            loader = trainer.fit_loop._combined_loader.flattened[0]
            killed.append(loader._iterator._workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)
        start(self, trainer, *more)

    monkeypatch.setattr(Throughput, "on_train_batch_start", kill_a_worker)
    words = fit_words(shards, tmp_path, "--data.num_workers=1", "--trainer.max_steps=60", "--data.steps_per_epoch=30")
    assert main(words) == 1
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    # Whether the main process hears of the signal first, or of the broken connection, is chance.
    assert re.match(r"error: a worker of the data loader (was killed \(Killed\)|ended unexpectedly), most often", line)
    assert "Traceback" not in error


@pytest.mark.parametrize(("key", "words"), [("ranks.timeout_s=0", "above 0"), ("non_finite.limit=0", "at least 1")])
def test_settings_out_of_range_are_told(key: str, words: str, shards: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(fit_words(shards, tmp_path, f"--{key}")) == 2
    error = capsys.readouterr().err
    assert key.partition("=")[0] in error
    assert words in error
