"""Learns a model's whitening before it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.retrieval_module import RetrievalModule


class FitWhitening(Callback):
    """Fits on training pictures before each validation during training, and for weights that it was not fitted for.

    A checkpoint that a validation chose brings its own: evaluating it fits nothing. Training pictures and not the
    gallery, so that a model encodes the same way wherever it is taken.
    """

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From the first step on, what was fitted before is of other weights."""
        assert isinstance(pl_module, RetrievalModule)
        pl_module.forget_whitening()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, RetrievalModule)
        if not pl_module.whitening:
            return
        if trainer.state.fn == TrainerFn.FITTING or not pl_module.whitening_is_fitted:
            pl_module.fit_whitening(_on_device(trainer, pl_module.whitening_samples))

    on_test_start = on_validation_start


def _on_device(trainer: lightning.Trainer, num_samples: int) -> Iterator[Any]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    for batch in data.training_sample(num_samples):
        yield trainer.strategy.batch_to_device(batch)
