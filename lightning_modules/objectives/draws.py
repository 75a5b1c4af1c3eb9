"""Random draws keyed by (seed, step), the same for one process as for many."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.distributed import rank, world_size
from lightning_modules.errors import ModelError

_32_BITS = 2**32 - 1


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
        # The generator reads 32 bits: parts lie far apart in them.
        self._key = (seed * 1_000_003 + step + part * 2_654_435_761) % 2**63
        self.generator = torch.Generator().manual_seed(self._key)
        self.device = torch.device(device)
        self.task = task

    def uniform(self, rows: int, *shape: int) -> Tensor:
        """U[0, 1) of shape (rows, *shape) for this rank's rows, on the host; every rank asks for the same shapes."""
        everyone = torch.rand(rows * world_size(), *shape, generator=self.generator)
        return everyone[rank() * rows : (rank() + 1) * rows]

    def keyed(self, rows_M: Tensor, count: int, purpose: str) -> Tensor:
        """U[0, 1) of shape (M, count) on the rows' device, keyed by each row's number as well as by seed and step.

        Wherever a row stands, and on whichever rank, it gets the same numbers. They come from a hash, computed where
        the rows lie: the host need not know them.

        Args:
            rows_M: int64, 0 or more.
            purpose: Another word, other numbers.
        """
        words = f"{self._key}/{purpose}".encode()
        salt = int.from_bytes(hashlib.blake2s(words, digest_size=4).digest(), "little")
        column_C = torch.arange(count, device=rows_M.device)
        mixed_MC = _mix(_mix(rows_M & _32_BITS).bitwise_xor(salt).unsqueeze(1) + column_C & _32_BITS)
        return (_mix(mixed_MC.bitwise_xor(salt)) >> 8) / 2**24  # as many bits as float32 has

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


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers in int64 in which every bit of the input changes half of the output's.

    Source of the constants: C. Wellons, hash-prospector (github.com/skeeto), public domain. Both are below 2^31, so no
    product overflows.
    """
    x = (x ^ (x >> 16)) * 0x21F0AAAD & _32_BITS
    x = (x ^ (x >> 15)) * 0x735A2D97 & _32_BITS
    return x ^ (x >> 15)
