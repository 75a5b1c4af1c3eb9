"""A training told to stop: a checkpoint inside the interval, and the same numbers after going on from it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.stop_signals import STOPPED_CODE
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_modules.callbacks.throughput import Throughput
from tests.experiments.conftest import fit_words
from tests.experiments.drills import check_same_run, curves
from tests.experiments.fake_slurm import FakeSlurm
from tests.experiments.interruption import check_same_weights, told_to_stop

STEP_BEGINS = (Throughput, "on_train_batch_start")
EVALUATES = (RetrievalEvaluation, "on_validation_batch_start")
# With dropout, so that random numbers count, and every step in the curves.
WORDS = ("--model.dropout=0.2", "--trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts: two intervals of three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        home = tmp_path_factory.mktemp("whole")
        assert main(fit_words(shards, home, *WORDS)) == 0
    return next(home.iterdir())


@pytest.mark.parametrize(
    ("hook", "step", "number", "saved", "said"),
    [
        (STEP_BEGINS, 1, signal.SIGUSR1, 2, "stopped by SIGUSR1; the same command goes on from step 2"),
        (STEP_BEGINS, 4, signal.SIGTERM, 5, "stopped by SIGTERM; the same command goes on from step 5"),
        (STEP_BEGINS, 2, signal.SIGUSR2, 3, "from step 3, with the evaluation after it"),
        (EVALUATES, 3, signal.SIGUSR1, 3, "from step 3, with the evaluation after it"),
        (EVALUATES, 6, signal.SIGTERM, 6, "from step 6, with the evaluation after it"),
    ],
    ids=["first interval", "second interval", "last step of an interval", "evaluation", "last evaluation"],
)
def test_a_stopped_run_ends_as_one_that_was_left_alone(
    hook: tuple[type, str],
    step: int,
    number: signal.Signals,
    saved: int,
    said: str,
    whole: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    words = fit_words(shards, tmp_path, *WORDS)
    with told_to_stop(hook, step, number):
        assert main(words) == STOPPED_CODE
    assert said in capsys.readouterr().err
    run = tmp_path / whole.name
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == saved
    assert not (run / "run.lock").exists()
    assert not (run / "metrics.json").exists()

    assert main(words) == 0
    check_same_run(run, whole)
    lines = [
        [line.split("  ", 1)[1] for line in (f / "log.txt").read_text().splitlines() if "mean loss" in line]
        for f in (run, whole)
    ]
    assert [line.partition("samples/s")[0].rsplit("  ", 1)[0] for line in lines[0]] == [
        line.partition("samples/s")[0].rsplit("  ", 1)[0] for line in lines[1]
    ]


def test_under_slurm_the_job_is_queued_again_and_lightning_keeps_its_hands_off(
    whole: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    job = {"JOB_ID": "12", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    scheduler = FakeSlurm(tmp_path / "slurm", monkeypatch)
    scheduler.queue("RUNNING")
    words = fit_words(shards, tmp_path / "runs", *WORDS)
    with told_to_stop(STEP_BEGINS, 4, signal.SIGUSR1):
        assert main(words) == STOPPED_CODE
    assert scheduler.calls("scontrol") == ["scontrol requeue 12"]
    assert not list(Path.cwd().glob("hpc_ckpt_*"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(words) == 0
    check_same_weights(tmp_path / "runs" / whole.name, whole)
    assert len(scheduler.calls("scontrol")) == 1


def test_a_run_with_an_entity_graph_goes_on_with_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is built after the first interval, and the run stopped in the second."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    runs = []
    for name in ("whole", "stopped"):
        words = fit_words(shards, tmp_path / name, *WORDS)
        words[words.index("capture")] = "ege_cmp"
        if name == "stopped":
            with told_to_stop(STEP_BEGINS, 4):
                assert main(words) == STOPPED_CODE
        assert main(words) == 0
        runs += (tmp_path / name).iterdir()
    check_same_run(*runs)
    assert any("graph/edges" in row for row in curves(runs[0]))
