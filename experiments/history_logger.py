"""Writes a run's history.jsonl, so that curves can be drawn without W&B and survive a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.history import read_history
from experiments.machine import rank
from experiments.runs import write_text


class StepLabels(Callback):
    """Rows of a run that went on carry the steps they would have carried without a break.

    Lightning counts one step too many after a restart from an interval's end (2.6: `_TrainingEpochLoop.reset`), so a
    second restart would take an interval's last row for one that is repeated, and drop it.
    """

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


class History(Logger):
    """Every logged number as one JSON line, so that curves can be drawn without W&B and survive a resume."""

    def __init__(self, path: Path, resumed_at_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        if rank() == 0:
            kept = [row for row in read_history(path) if resumed_at_step is not None and row["step"] < resumed_at_step]
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))  # killed meanwhile, it loses no row

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> Path:
        return self.path

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step or 0, **{k: float(v) for k, v in metrics.items()}}) + "\n")

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""
