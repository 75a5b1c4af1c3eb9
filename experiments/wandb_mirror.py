"""Lightning's logger for W&B, made so that it can neither stop a training nor tell a step twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from experiments.wandb_logger import guarded

ONE_NUMBER = "test/"  # such metrics have no curve; `wandb_logger.log_record` puts them into the run's summary


class Mirror(WandbLogger):
    """Curves of a run in W&B.

    Args:
        experiment: The W&B run, started.
        told: Step and key of what the server has of an earlier start of this run, past the checkpoint it goes on from.
    """

    def __init__(self, experiment: Any, told: set[tuple[int, str]]) -> None:
        super().__init__(experiment=experiment)
        self.told = told

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        new = {
            key: value
            for key, value in metrics.items()
            if not key.startswith(ONE_NUMBER) and (step, key) not in self.told
        }
        if new:
            guarded("takes no metrics", lambda: super(Mirror, self).log_metrics(new, step))

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run was started with the whole configuration."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: the run goes on with the test, and no checkpoint is uploaded."""
