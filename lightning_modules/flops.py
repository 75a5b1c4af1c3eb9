"""Floating-point operations: what a model needs, and what a device gives."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The shortest of several timings, each until the device has finished."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()  # allocations and the choice of a kernel stay outside
    return min(once() for _ in range(repeats))


def matrix_product_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of one large square matrix product: what the device gives when nothing is in the way.

    The yardstick of every utilisation here: it needs no table of data sheets and exists on every device.
    """
    side = side or (8192 if device.type == "cuda" else 1024)  # no faster per product at 2048 on a CPU
    generator = torch.Generator(device).manual_seed(0)  # a run's own random numbers stay as they are
    a, b = (torch.rand(side, side, device=device, generator=generator).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: torch.mm(a, b), device, repeats=5)


def autocast_dtype(precision: str) -> torch.dtype:
    """The type matrix products run in under a Trainer's `precision`."""
    if "bf16" in precision:
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32
