"""A training told to stop: a checkpoint inside the interval, and the same numbers after going on from it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.history import read_history
from experiments.stop_signals import STOPPED_CODE
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_modules.callbacks.throughput import Throughput
from tests.experiments.conftest import fit_words
from tests.experiments.interruption import check_same_weights, told_to_stop

STEP_BEGINS = (Throughput, "on_train_batch_start")
EVALUATES = (RetrievalEvaluation, "on_validation_batch_start")
# With dropout, so that random numbers count, and every step in the curves.
WORDS = ("--model.dropout=0.2", "--trainer.log_every_n_steps=1")
MEASURED = ("throughput/", "graph/seconds")  # by a clock


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts: two intervals of three steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        home = tmp_path_factory.mktemp("whole")
        assert main(fit_words(shards, home, *WORDS)) == 0
    return next(home.iterdir())


def curves(run: Path) -> list[dict[str, float]]:
    """All logged numbers in order, but for those that a clock measures."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_history(run / "history.jsonl")
    ]
    return [row for row in rows if len(row) > 1]


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
    check_same_weights(run, whole)
    assert curves(run) == curves(whole)
    found, expected = (json.loads((folder / "metrics.json").read_text()) for folder in (run, whole))
    for key in ("run_id", "steps", "val", "test", "skipped"):
        assert found[key] == expected[key], key
    lines = [
        [line.split("  ", 1)[1] for line in (f / "log.txt").read_text().splitlines() if "mean loss" in line]
        for f in (run, whole)
    ]
    assert [line.partition("samples/s")[0].rsplit("  ", 1)[0] for line in lines[0]] == [
        line.partition("samples/s")[0].rsplit("  ", 1)[0] for line in lines[1]
    ]
