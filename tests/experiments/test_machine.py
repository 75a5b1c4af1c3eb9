"""Devices asked for and there, the doctor, the makefile, and W&B when it is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import doctor, machine, wandb_artifacts, wandb_logger
from experiments.config import Composition, compose
from experiments.errors import UsageError
from experiments.runs import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("trainer", "gpus", "fits"),
    [
        ({"devices": 2, "accelerator": "cpu"}, 0, True),
        ({"devices": 5, "accelerator": "cpu"}, 8, False),
        ({"devices": "auto"}, 0, True),
        ({"devices": 5}, 0, False),
        ({"devices": 5}, 8, True),
        ({"devices": "9"}, 8, False),
        ({"devices": [0, 1], "accelerator": "gpu"}, 1, False),
        ({"devices": -1, "accelerator": "gpu"}, 1, True),
        ({"devices": 1, "accelerator": "gpu"}, 0, False),
        ({}, 0, True),
    ],
)
def test_more_devices_than_there_are_is_refused(
    trainer: dict, gpus: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    if fits:
        machine.check_devices(trainer)
    else:
        with pytest.raises(UsageError, match=r"trainer\.(devices|accelerator)="):
            machine.check_devices(trainer)


def test_nodes_that_nobody_has_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: 0)
    machine.check_devices({"num_nodes": 1})
    with pytest.raises(UsageError, match=r"trainer\.num_nodes=2: nothing has started processes on 2 nodes.* srun"):
        machine.check_devices({"num_nodes": 2, "devices": 1, "strategy": "ddp"})


def test_rank_is_read_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert machine.rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert machine.rank() == 1
    monkeypatch.setenv("RANK", "5")
    assert machine.rank() == 5


def test_the_doctor_needs_the_standard_library_only(tmp_path: Path) -> None:
    code = "import sys, experiments.doctor as d; from pathlib import Path; d.VENV_PYTHON = Path('none'); "
    command = [sys.executable, "-S", "-c", code + "sys.exit(d.doctor())"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "make setup" in done.stdout
    assert done.stderr == ""
    command = [sys.executable, "-S", "-m", "experiments", "--help"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT, check=False).returncode == 0


def test_the_doctor_names_what_is_broken_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "VENV_PYTHON", Path(sys.executable))
    monkeypatch.setattr(doctor, "VENDORS", {"json": "nothing", "no_such_vendor": "everything"})
    monkeypatch.setattr(doctor, "_devices", lambda: doctor.Finding(True, "devices: none"))
    assert doctor.doctor() == 1
    printed = capsys.readouterr().out
    assert "ok     json" in printed
    assert "BROKEN no_such_vendor: ModuleNotFoundError" in printed
    assert "rm -rf .venv && make setup" in printed


@pytest.fixture
def composition(shards: Path) -> Composition:
    return compose("capture", str(shards), "tiny", 0, [])


def test_a_broken_wandb_costs_the_mirror_only(
    composition: Composition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.output import to_terminal

    to_terminal()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert wandb_logger.open_logger(RunFolder(tmp_path / "run"), composition) == []
    assert "W&B is left out" in capsys.readouterr().out
    wandb_artifacts.show_hits([], RunFolder(tmp_path / "run"), None, None)
    wandb_logger.close([])


def test_wandb_disabled_starts_nothing(
    composition: Composition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_logger.open_logger(RunFolder(tmp_path / "run"), composition) == []
    assert not (tmp_path / "run").exists()


TARGETS = ["setup", "demo", "test", "test-all", "data", "train", "regions", "eval", "ablation", "table", "report"]
TARGETS += ["results", "sync", "bench", "doctor", "lint"]


def make(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("DATA", "OUT", "RUN", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def test_make_help_has_one_line_per_target() -> None:
    done = make("help")
    lines = [line.split()[1] for line in done.stdout.splitlines()]
    assert sorted(lines) == sorted([*TARGETS, "help"])


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train", "EXP=capture", "DATA=grocery", "SCALE=tiny", "SEED=1"], "fit --exp 'capture' --data 'grocery'"),
        (["train", "ARGS=--model.lr=5e-5"], "experiments fit     --model.lr=5e-5"),
        (["eval", "RUN=runs/x"], "eval --run 'runs/x'"),
        (["eval", "EXP=clip", "DATA=grocery"], "--exp 'clip' --data 'grocery'"),
        (["data", "DATA=fashion", "SOURCE=photos", "RAW=r"], "data build 'photos' --raw 'r' --out 'data/fashion'"),
        (["data", "DATA=synthetic", "OUT=o"], "data build 'synthetic'  --out 'o'"),
        (["table", "TABLE=spine"], "table --table 'spine'"),
        (["report", "RUN=runs/x"], "report --run 'runs/x'"),
        (["report", "TABLE=spine", "DATA=grocery", "SEEDS=0"], "report --table 'spine' --data 'grocery' --seeds '0'"),
        (["test"], 'pytest -m "not slow"'),
        (["doctor"], "python3 -m experiments doctor"),
    ],
)
def test_make_calls_the_command_line(words: list[str], command: str) -> None:
    done = make("-n", *words)
    assert done.returncode == 0, done.stderr
    assert " ".join(command.split()) in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("launcher", "by"),
    [
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4"}, "torchrun"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun"),
    ],
)
def test_launched_processes_that_no_device_is_for_are_refused(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], by: str
) -> None:
    """Each of them would train alone, into one folder."""
    monkeypatch.setattr(machine, "visible_gpus", lambda: 0)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    for key, value in launcher.items():
        monkeypatch.setenv(key, value)
    machine.check_devices({"devices": 2, "num_nodes": 2, "accelerator": "cpu"})
    with pytest.raises(UsageError, match=rf"{by} has started 4 processes, but trainer.devices=1"):
        machine.check_devices({"devices": 1, "accelerator": "cpu"})


@pytest.mark.parametrize(
    ("environment", "trainer"),
    [
        ({}, {}),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            {"devices": 4, "num_nodes": 2, "strategy": "ddp"},
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "5"},
            {"devices": 2, "num_nodes": 3, "strategy": "ddp"},
        ),
    ],
)
def test_devices_and_nodes_follow_from_what_was_started(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], trainer: dict, shards: Path
) -> None:
    from experiments.config import compose

    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert machine.launched_settings() == trainer
    composed = compose("capture", str(shards), "tiny", 0, []).config["trainer"]
    assert {key: composed[key] for key in trainer} == trainer
    chosen = compose("capture", str(shards), "tiny", 0, ["--trainer.devices=7"]).config["trainer"]
    assert chosen["devices"] == 7  # the command line has the last word, and is checked against what was started


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, "put srun before it"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, "--ntasks-per-node"),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "0"}, "3 processes on 2 nodes"),
    ],
)
def test_what_would_wait_for_processes_that_nobody_starts_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], problem: str
) -> None:
    monkeypatch.setattr(machine, "visible_gpus", lambda: 0)
    for name in ("SLURM_JOB_NAME", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UsageError, match=problem):
        machine.check_devices({"devices": "auto", "accelerator": "cpu"})


def test_children_of_lightning_in_an_interactive_slurm_job_know_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("RANK", raising=False)
    assert machine.rank() == 1
