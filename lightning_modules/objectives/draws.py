"""Random draws keyed by (seed, step), the same for one process as for many."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.distributed import rank, world_size
from lightning_modules.errors import ModelError


class Draws:
    """Uniform numbers for the rows of a global batch; each rank takes its own rows.

    Keyed by seed and step rather than by the state of a global generator, so that a resumed run draws what the
    uninterrupted one would have drawn, and DDP draws what one process on the whole batch draws. Drawn on the host:
    how many positions were chosen is then known without waiting for the device.

    Args:
        seed, step: The key.
        device: Where `send` puts tensors.
        task: What `choose` returns, whatever the weights: for probing one task after the other.
        part: Of the key too: which of the batches whose gradients one step accumulates.
    """

    def __init__(
        self, seed: int, step: int, device: torch.device | str, task: str | None = None, part: int = 0
    ) -> None:
        key = seed * 1_000_003 + step + part * 2_654_435_761  # the generator reads 32 bits: parts lie far apart in them
        self.generator = torch.Generator().manual_seed(key % 2**63)
        self.device = torch.device(device)
        self.task = task

    def uniform(self, rows: int, *shape: int) -> Tensor:
        """U[0, 1) of shape (rows, *shape) for this rank's rows, on the host; every rank asks for the same shapes."""
        everyone = torch.rand(rows * world_size(), *shape, generator=self.generator)
        return everyone[rank() * rows : (rank() + 1) * rows]

    def choose(self, shares: Mapping[str, float]) -> str:
        """One name of `shares` with a probability in proportion to its weight, the same on all ranks.

        Raises:
            ModelError: no weight is above 0, one is negative or not finite, or `task` is not among the names.
        """
        if not shares or not all(0 <= weight < math.inf for weight in shares.values()) or sum(shares.values()) <= 0:
            raise ModelError(f"task weights {dict(shares)} must be finite, at least 0, and one of them above 0")
        if self.task is not None and self.task not in shares:
            raise ModelError(f"task {self.task!r} is unknown; known: {', '.join(shares)}")
        left = torch.rand((), generator=self.generator, dtype=torch.float64).item() * sum(shares.values())
        if self.task is not None:  # after the draw, so that what is drawn next is the same as for a chosen task
            return self.task
        possible = sorted(name for name, weight in shares.items() if weight > 0)  # whatever order they are written in
        for name in possible:
            left -= shares[name]
            if left < 0:
                return name
        return possible[-1]  # the weights' sum was rounded up

    def send(self, host: Tensor) -> Tensor:
        """The tensor on the device, without waiting for the copy."""
        if self.device.type == "cuda":
            host = host.pin_memory()  # from pageable memory the copy would make the host wait
        return host.to(self.device, non_blocking=True)
