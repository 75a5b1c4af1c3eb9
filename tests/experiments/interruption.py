"""A training that stops before its end, and the weights it is compared by."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.callbacks.throughput import Throughput


@contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """What is trained inside fails when a step begins, and has to."""
    start = Throughput.on_train_batch_start

    def stop(self: Throughput, trainer: Any, *more: Any) -> None:
        if trainer.global_step == step:
            raise OSError("the machine is gone")
        start(self, trainer, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_start", stop)
        with pytest.raises(OSError, match="the machine is gone"):
            yield


def check_same_weights(run: Path, other: Path) -> None:
    """The last checkpoints of two runs are equal to the bit."""
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (run, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@contextmanager
def told_to_stop(hook: tuple[type, str], step: int, number: signal.Signals = signal.SIGUSR1) -> Iterator[None]:
    """This process gets a signal when a callback's hook is called for the first time at a step, or after it."""
    owner, name = hook
    before = getattr(owner, name)
    told: list[int] = []

    def tell(self: Any, trainer: Any, *more: Any) -> Any:
        if trainer.global_step >= step and trainer.state.fn == "fit" and not told:
            told.append(step)
            os.kill(os.getpid(), number)
        return before(self, trainer, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, tell)
        yield
    assert told, f"{name} was never reached"
