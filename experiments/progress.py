"""What can be seen while a run trains: the bar with its throughput, one line per interval, and the curves' numbers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.types import STEP_OUTPUT

from experiments.output import say
from lightning_modules.callbacks.throughput import Throughput


class ThroughputBar(TQDMProgressBar):
    """Lightning's bar with throughput instead of the logger's version; few lines where no one watches."""

    def __init__(self, throughput: Throughput) -> None:
        self.watched = sys.stdout.isatty()
        super().__init__(refresh_rate=5 if self.watched else 100)
        self.throughput = throughput

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        recent = self.throughput.recent()
        if recent:
            shown["samples/s"] = _three_digits(recent["samples_per_second"])
            shown["mfu"] = f"{recent['mfu']:.0%}"
            shown["waiting"] = f"{recent['data_wait_share']:.0%}"
        return shown

    def init_validation_tqdm(self) -> Tqdm:
        return super().init_validation_tqdm() if self.watched else Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        return super().init_test_tqdm() if self.watched else Tqdm(disable=True)


def _three_digits(value: float) -> str:
    """A pace that may be 0.07 or 7,000."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class IntervalLine(Callback):
    """How many parameters are trained; then one line per interval: step, mean loss, metrics, pace, skips so far."""

    def __init__(self, throughput: Throughput, metrics: Sequence[str]) -> None:
        self.throughput = throughput
        self.metrics = metrics  # names of those shown
        self.last_step = 0  # at which an interval was completed
        self._loss = torch.zeros(())  # sum over the interval's batches, on their device
        self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        say(f"{type(pl_module).__name__}: {trained_parameters(pl_module) / 1e6:.2f} million trained parameters")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        # Summed up by hand: a mean that Lightning keeps would be another number in the curves. Nothing waits for it.
        assert isinstance(outputs, Mapping)
        self._loss = outputs["loss"].detach().float() + (self._loss if self._batches else 0.0)
        self._batches += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._batches:  # a run that goes on ends the interval before first, of which there is nothing to tell
            return
        skipped = all_skipped(trainer)
        metrics = trainer.callback_metrics
        words = [f"step {trainer.global_step}/{trainer.max_steps}"]
        words.append(f"mean loss {float(self._loss) / self._batches:.4f}")
        self._batches = 0
        for name in self.metrics:
            if name in metrics:
                words.append(f"{name} {float(metrics[name]):.4f}")
        words.append(f"{_three_digits(self.throughput.recent().get('samples_per_second', 0.0))} samples/s")
        words.append("skipped " + (", ".join(f"{k} {n}" for k, n in sorted(skipped.items())) or "none"))
        say("  ".join(words))

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step, "loss": float(self._loss), "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_step = state_dict["last_step"]
        self._batches = state_dict.get("batches", 0)  # of an interval that a stop has cut in two
        self._loss = torch.tensor(state_dict.get("loss", 0.0))


def trained_parameters(model: LightningModule) -> int:
    """Numbers that the chosen objectives train; of a model that has never been set up for training, all."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def all_skipped(trainer: Trainer) -> dict[str, int]:
    """Samples the training stream skipped so far, by reason, summed over ranks. Called by all ranks."""
    mine = dict(getattr(trainer.datamodule, "skipped", {}))  # type: ignore[attr-defined]
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return mine
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
