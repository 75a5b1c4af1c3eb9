"""Two processes that torchrun or srun starts, told to stop and started again. srun's part is played: its variables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.history import read_history
from experiments.stop_signals import STOPPED_CODE
from tests.experiments.conftest import fit_words
from tests.experiments.fake_slurm import FakeSlurm
from tests.experiments.interruption import check_same_weights

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")]
LONG = ("--data.steps_per_epoch=30", "--trainer.max_steps=60", "--trainer.log_every_n_steps=1")


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def start(words: list[str], **more: str) -> subprocess.Popen[str]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PL_GLOBAL_SEED")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    environment |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        words,
        text=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def train(words: list[str], **more: str) -> subprocess.Popen[str]:
    return start([sys.executable, "-m", "experiments", *words], **more)


def torchrun(words: list[str]) -> list[subprocess.Popen[str]]:
    script = ["bash", "scripts/train_torchrun.sh", *words[1:]]
    return [start(script, PYTHON=sys.executable, PROCESSES="2", PORT=free_port())]


def srun(words: list[str], restarts: int = 0) -> list[subprocess.Popen[str]]:
    """Two nodes, as far as the variables go, with a process on each."""
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "train", "SLURM_RESTART_COUNT": str(restarts)}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_NODELIST": "localhost"}
    job |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "0", "MASTER_PORT": free_port()}
    return [train(words, **job, SLURM_PROCID=n, SLURM_NODEID=n) for n in ("0", "1")]


def wait(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str]:
    said = [process.communicate(timeout=400)[0] for process in processes]
    return [process.returncode for process in processes], "".join(said)


def steps_logged(home: Path) -> list[int]:
    return [
        int(row["step"]) for file in home.glob("*/history.jsonl") for row in read_history(file) if "train/loss" in row
    ]


def wait_for_step(home: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while step not in steps_logged(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert step in steps_logged(home)


def last_step(home: Path) -> int:
    (file,) = home.glob("*/checkpoints/last.ckpt")
    return int(torch.load(file, weights_only=True)["global_step"])


def test_a_run_on_two_processes_stops_at_one_step_and_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole by torchrun; stopped and started again by srun: the same run, and the same numbers."""
    scheduler = FakeSlurm(tmp_path / "slurm", monkeypatch)
    scheduler.queue("RUNNING")
    homes = [tmp_path / "whole", tmp_path / "stopped"]
    whole, stopped = ([*fit_words(shards, home, *LONG), "--trainer.enable_progress_bar=false"] for home in homes)
    codes, said = wait(torchrun(whole))
    assert codes == [0], said

    processes = srun(stopped)
    wait_for_step(homes[1], 34)
    for process in processes:
        process.send_signal(signal.SIGUSR1)
    codes, said = wait(processes)
    assert codes == [STOPPED_CODE, 0], said  # rank zero speaks for all
    assert 35 <= last_step(homes[1]) < 60
    assert scheduler.calls("scontrol") == ["scontrol requeue 12"]  # by rank zero alone

    codes, said = wait(srun(stopped, restarts=1))
    assert codes == [0, 0], said
    runs = [next(home.iterdir()) for home in homes]
    assert runs[0].name == runs[1].name
    check_same_weights(*runs)
    assert steps_logged(homes[1]) == list(range(60))
    records = [json.loads((run / "metrics.json").read_text()) for run in runs]
    assert records[0]["test"] == records[1]["test"]
    assert records[1]["hardware"]["devices"] == 2
    assert (runs[1] / "log.txt").read_text().count("skipped samples: none") == 1


def test_a_finished_run_is_trained_afresh_on_two_processes(run: Path, shards: Path, tmp_path: Path) -> None:
    """Neither rank takes the run that rank zero deletes for one that has finished, or for one to go on with."""
    copy = tmp_path / run.name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("wandb"))
    codes, said = wait(torchrun(fit_words(shards, tmp_path, "--fresh", "--trainer.enable_progress_bar=false")))
    assert codes == [0], said
    assert "finished already" not in said
    assert "going on from" not in said
    assert json.loads((copy / "metrics.json").read_text())["hardware"]["devices"] == 2


def test_one_rank_that_is_told_stops_both(shards: Path, tmp_path: Path) -> None:
    words = [*fit_words(shards, tmp_path, *LONG), "--trainer.enable_progress_bar=false"]
    (agent,) = torchrun(words)
    wait_for_step(tmp_path, 3)
    ranks = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGUSR1)
    codes, said = wait([agent])
    assert codes == [1], said  # torchrun's own, whatever its processes end with
    assert 4 <= last_step(tmp_path) < 60
    assert said.count("stopped by SIGUSR1") == 1
    (run,) = tmp_path.iterdir()
    assert not (run / "run.lock").exists()
    assert f"from step {last_step(tmp_path)}" in said


def test_ranks_that_lightning_starts_are_stopped_with_rank_zero(shards: Path, tmp_path: Path) -> None:
    words = fit_words(shards, tmp_path, *LONG, "--trainer.devices=2", "--trainer.strategy=ddp")
    process = train([*words, "--trainer.enable_progress_bar=false"])
    wait_for_step(tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    codes, said = wait([process])
    assert codes == [STOPPED_CODE], said
    assert 4 <= last_step(tmp_path) < 60
    assert not list(tmp_path.glob("*/run.lock"))


def test_a_signal_to_all_processes_leaves_the_loader_workers_at_work(shards: Path, tmp_path: Path) -> None:
    """As a scheduler sends it: the training needs its workers to end in order."""
    words = [*fit_words(shards, tmp_path, *LONG, "--data.num_workers=2"), "--trainer.enable_progress_bar=false"]
    process = train(words)
    wait_for_step(tmp_path, 3)
    os.killpg(process.pid, signal.SIGTERM)
    codes, said = wait([process])
    assert codes == [STOPPED_CODE], said
    assert 4 <= last_step(tmp_path) < 60
    assert "killed by signal" not in said
