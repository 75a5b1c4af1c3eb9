"""Writes a run's history.jsonl, so that curves can be drawn without W&B and survive a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.history import read_history
from experiments.machine import rank


class History(Logger):
    """Every logged number as one JSON line, so that curves can be drawn without W&B and survive a resume."""

    def __init__(self, path: Path, resumed_at_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        if rank() == 0:
            kept = [row for row in read_history(path) if resumed_at_step is not None and row["step"] < resumed_at_step]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

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
