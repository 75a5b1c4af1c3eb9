"""A loss that is NaN: no weight moves, the batch is written down, and the run stops or goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from experiments.cli import main
from experiments.errors import RunError
from experiments.history import read_steps
from experiments.non_finite import NonFinite
from lightning_modules import CAPTURE
from tests.experiments.conftest import fit_words
from tests.experiments.drills import drilled

CPU = torch.device("cpu")


class Loop:
    """The hooks that Lightning calls in a step, around a network of one layer and a batch norm."""

    def __init__(self, callback: NonFinite, fused: bool = True, log_every: int = 10, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.callback = callback
        self.network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.1, fused=fused)
        data = SimpleNamespace(training_ids=lambda rows: [f"item{row}" for row in rows])
        self.trainer: Any = SimpleNamespace(
            global_step=0, log_every_n_steps=log_every, precision_plugin=None, datamodule=data
        )
        self.network.device = torch.device(device)  # type: ignore[assignment]
        callback.on_train_start(self.trainer, self.network)  # type: ignore[arg-type]

    def step(self, factor: float) -> None:
        network: Any = self.network
        batch = SimpleNamespace(index_B=torch.tensor([self.trainer.global_step, 100]))
        self.callback.on_train_batch_start(self.trainer, network, batch, 0)
        torch.manual_seed(self.trainer.global_step)
        loss = (network(torch.randn(4, 3) * factor) ** 2 * torch.rand(4, 3)).sum()
        self.callback.on_before_backward(self.trainer, network, loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.callback.on_before_optimizer_step(self.trainer, network, self.optimizer)
        self.optimizer.step()
        self.trainer.global_step += 1
        self.callback.on_train_batch_end(self.trainer, network, {}, batch, 0)

    def state(self) -> dict[str, torch.Tensor]:
        moments = {f"{i}.{k}": v for i, s in self.optimizer.state_dict()["state"].items() for k, v in s.items()}
        return {name: value.clone() for name, value in {**self.network.state_dict(), **moments}.items()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_such_a_step_leaves_weights_moments_and_statistics_as_they_were(
    bad: float, fused: bool, tmp_path: Path
) -> None:
    callback = NonFinite("skip")
    callback.file = tmp_path / "non_finite.jsonl"
    loop = Loop(callback, fused)
    loop.step(1.0)
    before = loop.state()
    loop.step(bad)
    after = loop.state()
    counted = {"1.num_batches_tracked"}
    assert all(torch.equal(before[name], after[name]) for name in before if name not in counted)
    loop.step(1.0)
    assert not torch.equal(loop.state()["0.weight"], before["0.weight"])
    assert torch.isfinite(loop.state()["1.running_mean"]).all()
    (row,) = read_steps(callback.file)
    assert (row["step"], row["rank"], row["ids"]) == (1, 0, ["item1", "item100"])
    assert callback.state_dict() == {"steps": 1, "in_a_row": 0}


def test_a_loss_with_finite_gradients_counts_too() -> None:
    """A constant that is NaN has none; the step would move the weights by the rest of the loss."""
    callback, weight = NonFinite("skip"), nn.Parameter(torch.ones(2))
    loss = weight.sum() + float("nan")
    callback.on_before_backward(None, None, loss)  # type: ignore[arg-type]
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def test_the_host_of_a_gpu_looks_when_losses_are_logged_and_before_a_checkpoint() -> None:
    callback = NonFinite("skip")
    loop = Loop(callback, log_every=3, device="cuda")
    loop.step(float("nan"))
    assert callback.steps == 0
    assert callback.state_dict()["steps"] == 1
    for _ in range(3):
        loop.step(float("nan"))
    assert callback.steps == 4


def test_stop_ends_the_run_and_skip_does_after_the_limit() -> None:
    with pytest.raises(RunError, match=r"step 0: .*non_finite\.policy=skip"):
        Loop(NonFinite("stop")).step(float("nan"))
    loop = Loop(NonFinite("skip", limit=3))
    for factor in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        loop.step(factor)
    with pytest.raises(RunError, match=r"step 5: .*3 steps in a row"):
        loop.step(float("nan"))


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_trap(step: int) -> None:
        training_step = CAPTURE.training_step

        def poisoned(self: Any, *arguments: Any) -> torch.Tensor:
            loss = training_step(self, *arguments)
            return loss * float("nan") if self.global_step == step else loss

        monkeypatch.setattr(CAPTURE, "training_step", poisoned)

    return set_trap


def test_a_run_that_is_stopped_goes_on_under_the_other_policy(
    shards: Path, tmp_path: Path, nan_at: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy is no part of a run's id."""
    nan_at(4)
    words = fit_words(shards, tmp_path)
    assert main(words) == 1
    error = capsys.readouterr().err
    assert error.count("error: step 4: the loss or its gradient is not finite") == 1
    assert main([*words, "--non_finite.policy=skip"]) == 0
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "metrics.json").read_text())["skipped"]["training/non_finite_steps"] == 1
    (row,) = read_steps(run / "non_finite.jsonl")  # the second time it was made takes the place of the first
    ids: Any = row["ids"]
    assert row["step"] == 4
    assert len(set(ids)) == 8
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_two_processes_agree_on_a_loss_that_one_of_them_has(policy: str, shards: Path, tmp_path: Path) -> None:
    words = fit_words(shards, tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp")
    done = drilled([*words, f"--non_finite.policy={policy}"], rank=1, step=4, fault="nan")
    (run,) = tmp_path.iterdir()
    rows: Any = read_steps(run / "non_finite.jsonl")
    assert [(row["rank"], row["loss"][0] == row["loss"][0]) for row in rows] == [(0, True), (1, False)]
    if policy == "skip":
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((run / "metrics.json").read_text())["skipped"]["training/non_finite_steps"] == 1
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert "error: step 4: the loss or its gradient is not finite" in done.stderr
