"""A loss that is no number moves no weight: its step is skipped, counted and written down, or ends the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from experiments.errors import RunError, UsageError
from experiments.history import read_steps
from experiments.machine import rank
from experiments.output import say
from experiments.runs import write_text
from lightning_modules.distributed import all_objects


class _Step(NamedTuple):
    """What is known of a step before the host has waited for the device."""

    number: int
    finite: Tensor  # bool, the same on all ranks
    losses: list[Tensor]  # of this rank, one for each batch whose gradients the step accumulates
    rows: list[Tensor]  # of the training split, likewise


class NonFinite(Callback):
    """Leaves out optimiser steps whose loss, or norm of the gradient, is NaN or infinite.

    A rank whose loss is not finite makes its gradients NaN, and DDP's mean carries that to all ranks: they agree
    without a message of their own. The optimiser reads on the device whether to step, so the host waits for nobody; it
    looks at what happened when the losses are logged, and before a checkpoint. Weights, moments and running statistics
    stay as they were; the step counts in the schedule. Under `trainer.precision=16-mixed`, whose scaler skips steps on
    purpose, nothing is done.

    Args:
        policy: "stop" ends the run with a message, "skip" goes on. Either way the items of the batch are written to
            `non_finite.jsonl` in the run folder, and no checkpoint holds weights that the step has moved.
        limit: So many steps in a row end the run also under "skip": it is no longer a matter of single samples.
    """

    file: Path | None = None  # where the steps are written down

    def __init__(self, policy: Literal["stop", "skip"] = "stop", limit: int = 10) -> None:
        if limit < 1:
            raise UsageError(f"non_finite.limit={limit}: should be at least 1")
        self.policy, self.limit = policy, limit
        self.steps = 0  # left out so far
        self._in_a_row = 0
        self._pending: list[_Step] = []
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []  # of batch norms: now, and before the step
        self._trainer: Trainer | None = None

    # ---- on the device ---------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rows.append(batch.index_B)
        if not self._losses:
            norms = [module for module in pl_module.modules() if isinstance(module, _BatchNorm) and module.training]
            buffers = [buffer for module in norms for buffer in module.buffers()]
            self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        finite = loss.detach().isfinite()
        loss.register_hook(lambda gradient: torch.where(finite, gradient, torch.nan))
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        losses, rows = self._losses, self._rows
        self._losses, self._rows = [], []
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        finite = torch.nn.utils.get_total_norm(gradients).isfinite()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = finite.logical_not().float()  # type: ignore[attr-defined]  # as a GradScaler does
        elif not finite:
            optimizer.zero_grad(set_to_none=True)
        for now, before in self._statistics:
            now.copy_(torch.where(finite, now, before))
        self._pending.append(_Step(trainer.global_step, finite, losses, rows))

    # ---- on the host -----------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        if self.file is not None and rank() == 0 and self.file.is_file():
            kept = [row for row in read_steps(self.file) if row["step"] < trainer.global_step]
            write_text(self.file, "".join(json.dumps(row) + "\n" for row in kept))  # the others are made again

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        often: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if pl_module.device.type == "cpu" or len(self._pending) >= often:
            self._look()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look()

    def state_dict(self) -> dict[str, Any]:
        self._look()
        return {"steps": self.steps, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self._in_a_row = state_dict["steps"], state_dict["in_a_row"]

    def _look(self) -> None:
        """Take notice of the steps made since the last look; all ranks do so together and see the same.

        Raises:
            RunError: The policy, or the limit, says to stop.
        """
        pending, self._pending = self._pending, []
        found = torch.stack([step.finite for step in pending]).tolist() if pending else []
        for step, finite in zip(pending, found, strict=True):
            self._in_a_row = 0 if finite else self._in_a_row + 1
            if not finite:
                self.steps += 1
                self._take_notice(step)

    def _take_notice(self, step: _Step) -> None:
        data: Any = self._trainer.datamodule  # type: ignore[union-attr]
        mine = {
            "step": step.number,
            "rank": rank(),
            "loss": [float(loss) for loss in step.losses],
            "ids": data.training_ids([int(row) for rows in step.rows for row in rows]),
        }
        everyone = all_objects(mine)
        if self.file is not None and rank() == 0:
            with self.file.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in everyone))
        what = f"step {step.number}: the loss or its gradient is not finite; the batch is in {self.file}"
        remedy = "lower model.lr or look at these items; the same command goes on from the last checkpoint"
        if self.policy == "stop":
            raise RunError(f"{what}; {remedy}, with --non_finite.policy=skip without such steps")
        if self._in_a_row >= self.limit:
            raise RunError(f"{what}, and these are {self._in_a_row} steps in a row (non_finite.limit); {remedy}")
        say(f"warning: {what}; the step is left out, {self.steps} so far")
