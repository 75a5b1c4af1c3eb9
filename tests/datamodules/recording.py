"""A model that learns nothing and writes down the rows it was given, and how it is trained.

Importable by spawned processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.batch import DetectionBatch, ProductBatch

AnyBatch = ProductBatch | DetectionBatch


class Recording(LightningModule):
    """Appends {"stage", "rank", "rows"} lines to `<folder>/rank<r>.jsonl`."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.folder = folder

    def _write(self, stage: str, batch: AnyBatch) -> None:
        line = {"stage": stage, "rank": self.global_rank, "rows": batch.index_B.tolist()}
        line["interval"] = self.trainer.current_epoch
        with (Path(self.folder) / f"rank{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def training_step(self, batch: AnyBatch, batch_idx: int) -> torch.Tensor:
        self._write("train", batch)
        return self.weight.sum() + batch.index_B.float().mean() * 0

    def validation_step(self, batch: AnyBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._write(f"val{dataloader_idx}", batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def recorded(folder: Path, stage: str = "train") -> list[list[int]]:
    """Rows of every batch of a stage, rank after rank."""
    lines = [json.loads(line) for path in sorted(folder.glob("rank*.jsonl")) for line in path.open()]
    return [line["rows"] for line in lines if line["stage"] == stage]


class Checkpoint(Callback):
    """Saves after some batches (inside an interval) and at the end of intervals."""

    def __init__(self, folder: Path, after: set[int]) -> None:
        self.folder, self.after = folder, after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.after:
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"end{trainer.global_step}.ckpt")


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that shows and keeps nothing of its own."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**quiet, "accelerator": "cpu", "enable_checkpointing": False, "max_epochs": -1, **options})
