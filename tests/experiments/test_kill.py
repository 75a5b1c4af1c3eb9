"""A training killed by SIGKILL, at any moment: the same command gives the samples and numbers of one left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import checkpoint_files
from experiments import train as training
from experiments.cli import main
from lightning_modules.callbacks.graph_refresh import GraphRefresh
from lightning_modules.callbacks.retrieval_evaluation import RetrievalEvaluation
from lightning_modules.callbacks.throughput import Throughput
from tests.experiments.conftest import fit_words
from tests.experiments.drills import check_same_run, drilled, samples

# With dropout, so that random numbers count, and every step in the curves: two intervals of three steps.
WORDS = ("--model.dropout=0.2", "--trainer.log_every_n_steps=1")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def die(*arguments: Any, **more: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int, owner: type, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Dies when a callback's hook is first called at a step, or after it."""

    def set_trap(patch: pytest.MonkeyPatch) -> None:
        before = getattr(owner, name)

        def hook(self: Any, trainer: Any, *more: Any) -> Any:
            if trainer.global_step >= step:
                die()
            return before(self, trainer, *more)

        patch.setattr(owner, name, hook)

    return set_trap


def writing(function: str, nth: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Dies when a function of `checkpoint_files` is called for the nth time."""

    def set_trap(patch: pytest.MonkeyPatch) -> None:
        before, calls = getattr(checkpoint_files, function), []

        def hook(*arguments: Any) -> Any:
            calls.append(1)
            return die() if len(calls) == nth else before(*arguments)

        patch.setattr(checkpoint_files, function, hook)

    return set_trap


MOMENTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {  # moment -> trap, step it goes on from
    "first interval": (at_step(1, Throughput, "on_train_batch_start"), 0),
    "second interval": (at_step(4, Throughput, "on_train_batch_start"), 3),
    "evaluation": (at_step(6, RetrievalEvaluation, "on_validation_batch_start"), 3),
    "before the first last.ckpt takes its place": (writing("_keep_as_previous", 1), 0),
    "before the second last.ckpt takes its place": (writing("_keep_as_previous", 2), 3),
    "test": (at_step(6, RetrievalEvaluation, "on_test_batch_start"), 6),  # the untrained model is tested at step 0
    "metrics.json": (lambda patch: patch.setattr(training, "write_results", die), 6),
}
QUICK = ("second interval", "before the second last.ckpt takes its place")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is forked here has no other threads, whose locks it might wait for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def observed(words: list[str], ids: Path, trap: Callable[[pytest.MonkeyPatch], None] | None = None) -> int | None:
    """The exit code of a training in a forked process that writes down its samples."""
    start = Throughput.on_train_batch_start

    def begin(self: Throughput, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        ids.mkdir(exist_ok=True)
        with (ids / "0.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, batch.index_B.tolist()]) + "\n")
        start(self, trainer, module, batch, batch_idx)

    def train() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Throughput, "on_train_batch_start", begin)
            if trap:
                trap(patch)
            os._exit(main(words))

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody kills, and beside it what it has seen."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert observed(fit_words(shards, home / "runs", *WORDS), home / "ids") == 0
    return home


@pytest.mark.parametrize(
    "moment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTS]
)
def test_a_killed_run_ends_as_one_that_was_left_alone(moment: str, whole: Path, shards: Path, tmp_path: Path) -> None:
    trap, step = MOMENTS[moment]
    words = fit_words(shards, tmp_path / "runs", *WORDS)
    assert observed(words, tmp_path / "ids", trap) == -signal.SIGKILL
    (run,) = (tmp_path / "runs").iterdir()
    assert not (run / "metrics.json").exists()
    assert observed(words, tmp_path / "ids") == 0
    assert (f"last.ckpt, step {step}" in (run / "log.txt").read_text()) is (step > 0)
    assert samples(tmp_path / "ids") == samples(whole / "ids")
    check_same_run(run, next((whole / "runs").iterdir()))
    assert not list(run.glob("checkpoints/.*"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in the interval", "when the graph is built"])
def test_a_killed_run_with_an_entity_graph_ends_with_the_same(moment: str, shards: Path, tmp_path: Path) -> None:
    """The graph is built after the first interval."""
    runs = []
    for name in ("whole", "killed"):
        words = fit_words(shards, tmp_path / name, *WORDS)
        words[words.index("capture")] = "ege_cmp"
        if name == "killed":
            owner, hook = (
                (Throughput, "on_train_batch_start") if moment == "in the interval" else (GraphRefresh, "_log")
            )
            step = 4 if moment == "in the interval" else 3
            trap = at_step(step, owner, hook)
            assert observed(words, tmp_path / f"ids {name}", trap) == -signal.SIGKILL
        assert observed(words, tmp_path / f"ids {name}") == 0
        runs += (tmp_path / name).iterdir()
    check_same_run(*runs)
    assert samples(tmp_path / "ids whole") == samples(tmp_path / "ids killed")


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("experiment", ["capture", "ege_cmp"])
def test_two_processes_that_are_killed_end_as_two_that_were_left_alone(
    experiment: str, shards: Path, tmp_path: Path
) -> None:
    """Dropout and samples of both ranks, and what is skipped on each."""
    runs = []
    for name in ("whole", "killed"):
        words = fit_words(shards, tmp_path / name, *WORDS, *TWO)
        words[words.index("capture")] = experiment
        ids = tmp_path / f"ids {name}"
        if name == "killed":
            assert drilled(words, ids=ids, rank=0, step=4, fault="kill all").returncode == -signal.SIGKILL
        done = drilled(words, ids=ids)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("last.ckpt, step 3" in done.stdout) is (name == "killed")
        runs += (tmp_path / name).iterdir()
    check_same_run(*runs)
    seen = samples(tmp_path / "ids whole")
    assert set(seen) == {"0", "1"}
    assert seen == samples(tmp_path / "ids killed")


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_another_number_of_processes_and_workers_goes_on_and_says_what_differs(shards: Path, tmp_path: Path) -> None:
    words = fit_words(shards, tmp_path, *WORDS)
    done = drilled([*words, *TWO], rank=0, step=4, fault="kill all")
    assert done.returncode == -signal.SIGKILL
    done = drilled([*words, "--data.num_workers=2"])
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = tmp_path.iterdir()
    log = (run / "log.txt").read_text()
    assert "was written by 2 process(es), this run has 1: a step is on 1 × 8 samples instead of 2 × 8" in log
    assert "written with 2 process(es) × 1 loader worker(s), this run has 1 × 2" in log
