"""Random numbers of a run that goes on are those it would have drawn: Lightning's checkpoints leave them out."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn


class RandomState(Callback):
    """Keeps torch's generators in the checkpoint; dropout is what draws from them (masks and data have their own).

    Lightning gives every rank the same seed. Ranks above zero start from one of their own, else all would drop the same
    units of their rows; only rank zero's state is in the file.

    An evaluation that is interrupted is made again, so during one the state is that of its beginning.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._before_evaluation: dict[str, Any] | None = None
        self._evaluates_again = False

    def state_dict(self) -> dict[str, Any]:
        return self._before_evaluation or _now()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_step + trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._evaluates_again = self._restored is not None
            self._restore(trainer)
            self._before_evaluation = _now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_evaluation = None
        if self._evaluates_again:  # the training loader, opened only now, draws too
            self._restored, self._evaluates_again = _now(), False

    def _restore(self, trainer: Trainer) -> None:
        state, self._restored = self._restored, None
        if state is None or trainer.global_rank:
            return
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())


def _now() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
