"""Dropout of a run on several processes, and of one that goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.randomness import RandomState


def _start(rank: int, step: int = 0, state: dict[str, Any] | None = None) -> RandomState:
    """A fresh process up to its first batch, seeded as Lightning seeds every rank."""
    torch.manual_seed(7)
    callback, trainer = RandomState(), SimpleNamespace(global_rank=rank, global_step=step)
    if state is not None:
        callback.load_state_dict(state)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    return callback


@pytest.mark.parametrize("goes_on", [False, True])
def test_every_rank_drops_other_units(goes_on: bool) -> None:
    state, step = (RandomState().state_dict(), 3) if goes_on else (None, 0)
    kept = []
    for rank in range(3):
        _start(rank, step, state)
        kept.append(torch.nn.functional.dropout(torch.ones(64)))
    assert not any(torch.equal(kept[a], kept[b]) for a, b in [(0, 1), (0, 2), (1, 2)])


def test_rank_zero_draws_as_a_single_process_and_goes_on_where_it_was() -> None:
    torch.manual_seed(7)
    expected = torch.rand(8)
    first = _start(rank=0)
    assert torch.equal(torch.rand(4), expected[:4])
    state = first.state_dict()
    _start(rank=0, step=3, state=state)
    assert torch.equal(torch.rand(4), expected[4:])
