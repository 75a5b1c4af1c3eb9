"""Positions that a masked objective predicts, in shapes the host knows without asking the device.

A boolean index such as `outputs_BND[predicted_BN]` makes the host wait until the device has counted. The draws lie on
the host, so the positions they choose can be counted there; whether a chosen position is a real token only the device
knows, so some chosen ones turn out to be padding: their target says so, and the loss leaves them out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws


class Chosen(NamedTuple):
    """M chosen positions of a batch of B sequences of N, and the same as a grid of K per sequence."""

    position_BK: Tensor  # int64; unused places hold 0
    in_grid_M: Tensor  # int64, into the flattened grid
    in_batch_M: Tensor  # int64, into the flattened batch


def chosen(chosen_BN: Tensor, draws: Draws) -> Chosen:
    """The true places of a boolean tensor on the host, on the device of the draws; K is at least 1."""
    count_B = chosen_BN.sum(1)
    k = max(1, int(count_B.max()))
    position_BK = torch.sort(chosen_BN.byte(), dim=1, descending=True, stable=True).indices[:, :k]
    used_BK = torch.arange(k) < count_B[:, None]
    return Chosen(
        draws.send(torch.where(used_BK, position_BK, 0)),
        draws.send(used_BK.flatten().nonzero().squeeze(1)),
        draws.send(chosen_BN.flatten().nonzero().squeeze(1)),
    )


def check_rate(objective: str, rate: float) -> None:
    """Raise `ModelError` unless a masking rate leaves something to predict; a loss of 0 at each step tells nobody."""
    if not 0 < rate <= 1:
        raise ModelError(
            f"model.{objective}_prob {rate} must lie in (0, 1]; to train without it, leave it out of model.objectives"
        )


def nothing_chosen(batch_size: int, device: torch.device) -> Chosen:
    """For an objective that is left out."""
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return Chosen(none.view(1, 0).expand(batch_size, 0), none, none)
