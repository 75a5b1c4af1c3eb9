"""How fast a run trains, what share of the device that is, and what it waits for."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_modules.flops import autocast_dtype, matrix_product_rate


class Step(NamedTuple):
    """One training step as the host saw it."""

    seconds: float  # since the step before it ended
    waited: float  # of these, until its batch was there: fetched and on its way to the device
    samples: int  # of all ranks


class Throughput(Callback):
    """Samples per second, step time, utilisation, peak memory and time spent waiting for data.

    Logged as `throughput/…` with the losses, over the last `WINDOW_STEPS` steps; sums over the whole run without its
    evaluations go to the checkpoint and to metrics.json. Nothing here makes the host wait for the device: a GPU's steps
    are timed by when the host could issue the next one, which over a window is the device's own pace.

    `mfu`, model FLOP utilisation: operations the model needs (counted once, without recomputation) over those a large
    matrix product of the same precision does in the same time on the same device. A module says what it needs in
    `flops_per_sample`; one that does not has a utilisation of 0.
    """

    WINDOW_STEPS = 20

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.window: deque[Step] = deque(maxlen=self.WINDOW_STEPS)
        self._rate = 0.0  # FLOP/s of a large matrix product on all ranks' devices together
        self._flops_per_sample = 0.0
        self._began = self._fetched = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        dtype = autocast_dtype(str(trainer.precision))
        self._rate = matrix_product_rate(pl_module.device, dtype) * trainer.world_size
        self._flops_per_sample = float(getattr(pl_module, "flops_per_sample", 0.0))

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._fetched = time.perf_counter()
        self._began = self._began or self._fetched

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        step = Step(now - self._began, self._fetched - self._began, len(batch.index_B) * trainer.world_size)
        self._began = now
        self.window.append(step)
        self.samples += step.samples
        self.seconds += step.seconds
        self.waited += step.waited
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            shown = {f"throughput/{name}": value for name, value in self.recent().items()}
            for logger in trainer.loggers:  # not by `self.log`, which would move each number to the device and wait
                logger.log_metrics(shown, step=trainer.global_step - 1)  # Lightning's own label of this step

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began = 0.0  # an evaluation follows, which is not training

    def recent(self) -> dict[str, float]:
        """Of the last steps; empty before the first."""
        if not self.window:
            return {}
        totals = Step(*(sum(column) for column in zip(*self.window, strict=True)))
        return self._summary(totals) | {"step_ms": 1e3 * totals.seconds / len(self.window)}

    def whole_run(self) -> dict[str, float]:
        """Of all training steps, those before a resume included; empty before the first."""
        return self._summary(Step(self.seconds, self.waited, self.samples)) if self.samples else {}

    def _summary(self, total: Step) -> dict[str, float]:
        seconds = max(1e-9, total.seconds)
        found = {
            "samples_per_second": total.samples / seconds,
            "data_wait_share": total.waited / seconds,
            "peak_memory_mb": peak_memory_mb(),
        }
        if self._rate:
            found["mfu"] = total.samples * self._flops_per_sample / seconds / self._rate
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "seconds": self.seconds, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.samples, self.seconds = state_dict["samples"], state_dict["seconds"]
        self.waited = state_dict.get("waited", 0.0)


def peak_memory_mb() -> float:
    """Most memory used so far: of the GPU by this process's tensors, without a GPU of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux
