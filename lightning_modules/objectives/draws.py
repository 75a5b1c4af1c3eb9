"""Random draws keyed by (seed, step), the same for one process as for many."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.distributed import rank, world_size


class Draws:
    """Uniform numbers for the rows of a global batch; each rank takes its own rows.

    Keyed by seed and step rather than by the state of a global generator, so that a resumed run draws what the
    uninterrupted one would have drawn, and DDP draws what one process on the whole batch draws. Drawn on the host:
    how many positions were chosen is then known without waiting for the device.
    """

    def __init__(self, seed: int, step: int, device: torch.device | str, task: str | None = None) -> None:
        self.generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
        self.device = torch.device(device)
        self.task = task

    def uniform(self, rows: int, *shape: int) -> Tensor:
        """U[0, 1) of shape (rows, *shape) for this rank's rows, on the host; every rank asks for the same shapes."""
        everyone = torch.rand(rows * world_size(), *shape, generator=self.generator)
        return everyone[rank() * rows : (rank() + 1) * rows]

    def choose(self, shares: Mapping[str, float]) -> str:
        """One of the names, drawn in proportion to the shares, the same on all ranks; `task` where that was given."""
        if self.task is not None:
            return self.task
        names = list(shares)
        shares_N = torch.tensor([shares[name] for name in names], dtype=torch.float64)
        return names[int(torch.multinomial(shares_N, 1, generator=self.generator))]

    def send(self, host: Tensor) -> Tensor:
        """The tensor on the device, without waiting for the copy."""
        if self.device.type == "cuda":
            host = host.pin_memory()  # from pageable memory the copy would make the host wait
        return host.to(self.device, non_blocking=True)
