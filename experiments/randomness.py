"""Random numbers of a run that goes on are those it would have drawn: Lightning's checkpoints leave them out."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.distributed import all_objects


class RandomState(Callback):
    """Keeps the torch generators of all ranks in the checkpoint; dropout is what draws from them.

    Masks and data have their own. Lightning gives every rank the same seed. Ranks above zero start from one of their
    own, else all would drop the same units of their rows. A rank that the checkpoint knows nothing of, as there were
    fewer, does so when the run goes on.

    An evaluation that is interrupted is made again, so during one the state is that of its beginning.
    """

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] = []  # by rank, of the checkpoint the run goes on from
        self._restored: dict[str, Any] | None = None
        self._before_evaluation: dict[str, Any] | None = None
        self._evaluates_again = False

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks: they call it together."""
        return {"ranks": all_objects(self._before_evaluation or _now())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Older checkpoints hold the state of rank zero alone.
        self._saved = state_dict.get("ranks", [state_dict])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank = trainer.global_rank
        if rank < len(self._saved):
            self._restored = self._saved[rank]
        elif rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_step + rank)
        self._saved = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._evaluates_again = self._restored is not None
            self._restore()
            self._before_evaluation = _now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_evaluation = None
        if self._evaluates_again:  # the training loader, opened only now, draws too
            self._restored, self._evaluates_again = _now(), False

    def _restore(self) -> None:
        state, self._restored = self._restored, None
        if state is None:
            return
        torch.set_rng_state(state["cpu"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())


def _now() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
