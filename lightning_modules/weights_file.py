"""Weights in a file of unknown origin: tensors and plain values, never a pickled program."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from lightning_modules.errors import ModelError


def read_weights(path: str, key: str) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        key: the setting that names the file, for the message.

    Raises:
        ModelError: no checkpoint, or one that would have to be unpickled.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch has many for what is no checkpoint
        raise ModelError(f"{key} {path!r}: no checkpoint that torch can read ({reason_of(problem)})") from None


def reason_of(problem: Exception) -> str:
    """One line; of a refused pickle not torch's own, which tells how to run it all the same."""
    if isinstance(problem, pickle.UnpicklingError):
        return "it holds more than tensors and plain values, and is not unpickled"
    return (str(problem).splitlines() or [type(problem).__name__])[0][:200]
