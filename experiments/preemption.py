"""A training that is asked to stop does so between two steps, with a checkpoint of that very place."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from experiments.runs import RunFolder
from experiments.stop_signals import Stopped, StopSignals


class StopInOrder(Callback):
    """Writes `last.ckpt` after the step in progress when a stop signal has come, and raises `Stopped`.

    All ranks agree on the step, whichever of them was told. An evaluation that is interrupted is made again from its
    beginning; when an interval has ended, the checkpoint of its end is there already. Stands behind the callbacks whose
    state it saves, and before those that begin an interval with long work.
    """

    def __init__(self, signals: StopSignals, run: RunFolder) -> None:
        self.signals = signals
        self.run = run
        self._group: Any = None  # over the CPU: asking it does not wait for a GPU
        self._stopping = 0  # the signal's number, once the checkpoint is written
        self._due_at: int | None = None  # the step after which an evaluation was interrupted
        self._max_steps: int | None = None  # while the loop has been told another number
        self._evaluated_by_all: list[int] = []  # per loader: batches that every rank has

    # ---- what a run that goes on has to know -----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_due_at": self._due_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._due_at = state_dict["evaluation_due_at"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._due_at is None:
            return
        # Lightning goes back into an evaluation one of whose steps was begun and not ended. It would continue with the
        # next batch, but what this one had gathered is lost, so it is told that no batch was behind it.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        for part in ("total", "current"):
            progress[part].update(ready=0, started=0, completed=0, processed=0)
        progress["total"].update(ready=1, started=1)
        progress["is_last_batch"] = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due_at is not None and self._due_at >= trainer.max_steps:
            self._max_steps = trainer.max_steps
            trainer.fit_loop.epoch_loop.max_steps += 1  # or there would be nothing to do, the evaluation included

    # ---- where a training can stop ---------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold()
        if trainer.world_size > 1:
            timeout = getattr(trainer.strategy, "_timeout", None)  # as everywhere else: `ranks.timeout_s`
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if number := self._agreed():
            raise Stopped(number, f"step {trainer.global_step}", together=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._stopping:  # only now: the numbers of the step before are logged after its last hook
            raise Stopped(self._stopping, f"step {trainer.global_step}", together=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or trainer.global_step >= trainer.max_steps:
            return  # an evaluation or the end of the interval is next, which save by themselves
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients are in no checkpoint
        if number := self._agreed():
            trainer.save_checkpoint(self.run.last)
            self._stopping = number

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            self.signals.take()
            return
        self._end_of_going_back(trainer)
        self._evaluated_by_all = self._least([int(count) for count in trainer.num_val_batches])
        self._stop_evaluating(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == TrainerFn.FITTING and batch_idx < self._evaluated_by_all[dataloader_idx]:
            self._stop_evaluating(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.held = False
        if number := self._agreed():
            raise Stopped(number, f"step {trainer.global_step}, with the test after it", together=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signals.take()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.signals.held = False

    # ---- how -------------------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        self.signals.take()
        self.signals.held = True

    def _end_of_going_back(self, trainer: Trainer) -> None:
        """What was said to get back into an evaluation is true no longer."""
        if self._due_at is None:
            return
        loop = trainer.fit_loop.epoch_loop
        loop.val_loop.batch_progress.total.reset()
        loop.max_steps = self._max_steps or loop.max_steps
        self._due_at = self._max_steps = None

    def _stop_evaluating(self, trainer: Trainer) -> None:
        if number := self._agreed():
            self._due_at = trainer.global_step
            trainer.save_checkpoint(self.run.last)
            raise Stopped(number, f"step {trainer.global_step}, with the evaluation after it", together=True)

    def _agreed(self) -> int:
        """The signal that any rank has received; all ranks call it together."""
        return -self._least([-self.signals.number])[0]

    def _least(self, numbers: list[int]) -> list[int]:
        """Element by element, over all ranks."""
        if self._group is None:
            return numbers
        everyone = torch.tensor(numbers)
        dist.all_reduce(everyone, dist.ReduceOp.MIN, group=self._group)
        return [int(number) for number in everyone]
