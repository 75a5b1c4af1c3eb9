"""What the throughput callback reports, on a clock of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_modules.callbacks import throughput
from lightning_modules.callbacks.throughput import Throughput
from lightning_modules.flops import autocast_dtype
from tests.lightning_modules.tiny_models import tiny_capture


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds are what the test says."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock.now)
    return clock


def _run(callback: Throughput, clock: SimpleNamespace, steps: int, log: Log, world: int = 1, begin: int = 0) -> None:
    """Each step: 1 s until its batch is there, 3 s of work; 8 samples on each rank."""
    for number in range(begin, begin + steps):
        trainer: Any = SimpleNamespace(world_size=world, global_step=number, log_every_n_steps=5, loggers=[log])
        clock.now += 1
        batch: Any = SimpleNamespace(index_B=torch.zeros(8))
        callback.on_train_batch_start(trainer, None, batch, 0)
        clock.now += 3
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, None, None, batch, 0)


def test_pace_and_waiting_are_those_of_the_clock(clock: SimpleNamespace) -> None:
    callback, log = Throughput(), Log()
    assert callback.recent() == callback.whole_run() == {}
    _run(callback, clock, 10, log, world=2)
    # the first step's wait cannot be seen: nothing came before it
    assert callback.whole_run()["samples_per_second"] == pytest.approx(160 / 39)
    assert callback.whole_run()["data_wait_share"] == pytest.approx(9 / 39)
    assert [step for step, _ in log.rows] == [4, 9]
    assert log.rows[-1][1]["throughput/step_ms"] == pytest.approx(3900)
    _run(callback, clock, 20, log, world=2, begin=10)
    assert callback.recent()["samples_per_second"] == pytest.approx(4)  # the first steps have left the window


def test_an_evaluation_between_intervals_is_not_counted(clock: SimpleNamespace) -> None:
    callback = Throughput()
    _run(callback, clock, 3, Log())
    seconds: Any = callback.seconds
    callback.on_train_epoch_end(SimpleNamespace(), None)  # type: ignore[arg-type]
    clock.now += 1000
    _run(callback, clock, 3, Log())
    assert callback.seconds == pytest.approx(2 * seconds)


def test_a_resumed_run_goes_on_counting(clock: SimpleNamespace) -> None:
    first, second = Throughput(), Throughput()
    _run(first, clock, 4, Log())
    second.load_state_dict(first.state_dict())
    assert second.whole_run()["samples_per_second"] == first.whole_run()["samples_per_second"]


def test_utilisation_is_the_models_operations_over_the_devices(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_capture()
    model.setup("fit")
    monkeypatch.setattr(throughput, "matrix_product_rate", lambda device, dtype: 1000.0 * model.flops_per_sample)
    callback = Throughput()
    callback.on_train_start(SimpleNamespace(precision="32-true", world_size=2), model)  # type: ignore[arg-type]
    _run(callback, clock, 30, Log(), world=2)
    assert callback.recent()["mfu"] == pytest.approx(4 / 2000)  # 4 samples/s of two devices that could do 1000 each


def test_counted_operations_are_those_of_the_formula() -> None:
    """A model whose layers are all products of known size: text layers only, forward and backward."""

    def flops(text_layers: int) -> float:
        model = tiny_capture(objectives=["clr"], text_layers=text_layers)
        model.setup("fit")
        return model.flops_per_sample

    width, length, inner = 32, 12, 48
    forward = 2 * length * (4 * width**2 + 2 * width * inner) + 4 * length**2 * width
    # three times: forward, and backward to inputs and to weights; fused attention recomputes its scores (2.5 not 2)
    assert flops(3) - flops(2) == pytest.approx(3 * forward, rel=0.05)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", torch.float32)]
)
def test_the_yardstick_has_the_precision_of_the_products(precision: str, dtype: torch.dtype) -> None:
    assert autocast_dtype(precision) == dtype
