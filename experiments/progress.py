"""What can be seen while a run trains: the bar with its throughput, one line per interval, and the curves' numbers."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from experiments.output import say


class Throughput(Callback):
    """Samples per second of all ranks, over the last few steps, and over the whole run without evaluations."""

    WINDOW_STEPS = 20

    def __init__(self) -> None:
        self.samples = 0  # of this process, since training started
        self.seconds = 0.0
        self.recent = 0.0
        self._started = 0.0
        self._window: list[tuple[float, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._started:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, count = time.perf_counter(), len(batch.index_B) * trainer.world_size
        self.samples += count
        self.seconds += now - self._started
        self._window = [*self._window, (now - self._started, count)][-self.WINDOW_STEPS :]
        self._started = now  # waiting for the loader belongs to the next step
        self.recent = sum(n for _, n in self._window) / max(1e-9, sum(s for s, _ in self._window))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = 0.0  # an evaluation follows, which is not training

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.seconds = state_dict["samples"], state_dict["seconds"]


class ThroughputBar(TQDMProgressBar):
    """Lightning's bar with samples per second instead of the logger's version; few lines where no one watches."""

    def __init__(self, throughput: Throughput) -> None:
        self.watched = sys.stdout.isatty()
        super().__init__(refresh_rate=5 if self.watched else 100)
        self.throughput = throughput

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self.throughput.recent:
            shown["samples/s"] = f"{self.throughput.recent:.0f}"
        return shown

    def init_validation_tqdm(self) -> Tqdm:
        return super().init_validation_tqdm() if self.watched else Tqdm(disable=True)

    def init_test_tqdm(self) -> Tqdm:
        return super().init_test_tqdm() if self.watched else Tqdm(disable=True)


class IntervalLine(Callback):
    """One line per interval: step, loss, val/mAP@10 and mAR@10, samples per second, samples skipped so far."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.last_step = 0  # at which an interval was completed

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        skipped = all_skipped(trainer)
        metrics = trainer.callback_metrics
        words = [f"step {trainer.global_step}/{trainer.max_steps}"]
        for name in ("train/loss", "val/mAP@10", "val/mAR@10"):
            if name in metrics:
                words.append(f"{name} {float(metrics[name]):.4f}")
        words.append(f"{self.throughput.recent:.0f} samples/s")
        words.append("skipped " + (", ".join(f"{k} {n}" for k, n in sorted(skipped.items())) or "none"))
        say("  ".join(words))


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
