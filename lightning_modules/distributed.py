"""The only collectives with gradient, and the means that make DDP equal one process on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_is_alone = False


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if _has_group() else 1


def rank() -> int:
    """This process's number; 0 without a process group."""
    return dist.get_rank() if _has_group() else 0


@contextmanager
def alone() -> Iterator[None]:
    """As without a process group: for what every rank finds out for itself.

    Before training starts a model lies on the CPU, where NCCL, the backend of GPUs, has no collectives.
    """
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def _has_group() -> bool:
    return not _is_alone and dist.is_available() and dist.is_initialized()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows_BD.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's loss reads these rows as columns: the true gradient is the sum over ranks.
        # all_reduce and not reduce_scatter, which gloo lacks.
        total = grads[0].contiguous()
        dist.all_reduce(total)
        size = len(total) // dist.get_world_size()
        return total[dist.get_rank() * size : (dist.get_rank() + 1) * size]


def gather_rows(rows_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient; the batch size must be the same on every rank.

    With a loss that averages *local* rows against these gathered columns, the gradient DDP averages over ranks is the
    gradient of one process on the whole batch.
    """
    return _GatherRows.apply(rows_BD) if world_size() > 1 else rows_BD


@torch.no_grad()
def all_sum(value: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_objects(own: Any) -> list[Any]:
    """A small Python object of every rank, in rank order."""
    found = [own] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, own)
    return found


def mean_over_ranks(sum_local: Tensor, count_local: Tensor) -> Tensor:
    """A masked mean whose average over ranks is the mean over the whole batch; 0 where nothing is counted.

    DDP averages gradients over ranks. Dividing by the local count would weigh a token by how few its rank has masked;
    dividing by the all-reduced count over the world size weighs every token the same.
    """
    count = all_sum(count_local.detach().to(sum_local.dtype))
    return sum_local * world_size() / count.clamp(min=1)
