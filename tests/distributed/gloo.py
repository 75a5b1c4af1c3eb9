"""Runs a function in several gloo processes and hands back what each returned."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def run_on_ranks(world: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(*arguments)` on `world` spawned processes with a gloo group; its returns in rank order.

    Spawned, not forked: nothing may reach a worker but what is passed to it.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    mp.spawn(_enter, (world, port, str(folder), function, arguments), nprocs=world, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
