"""Several ranks as threads of one process that take turns: an exchange of tensors without processes or sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from torch import Tensor

from lightning_modules import embedding_store, sharded_rows


class _Exchange:
    def __init__(self, world: int) -> None:
        self.number = threading.local()
        self.slots: list[Any] = [None] * world
        self.all_there = threading.Barrier(world)
        self.turn = threading.Lock()  # one rank computes at a time, as settings of torch are the process's

    def rank(self) -> int:
        return int(self.number.rank)

    def gather(self, own: Tensor) -> list[Tensor]:
        self.slots[self.number.rank] = own
        self.turn.release()
        try:
            self.all_there.wait()
            found = [part.clone() for part in self.slots]
            self.all_there.wait()
        finally:
            self.turn.acquire()
        return found

    def run(self, rank: int, function: Callable[[int], Any]) -> Any:
        self.number.rank = rank
        with self.turn:
            try:
                return function(rank)
            except BaseException:
                self.all_there.abort()  # the others wait no longer
                raise


def in_turns(world: int, function: Callable[[int], Any]) -> list[Any]:
    """`function(rank)` on so many ranks; its returns in rank order."""
    exchange = _Exchange(world)
    with (
        mock.patch.object(embedding_store, "gather_all_tensors", exchange.gather),
        mock.patch.object(embedding_store, "world_size", return_value=world),
        mock.patch.object(sharded_rows, "rank", exchange.rank),
        ThreadPoolExecutor(world) as pool,
    ):
        futures = [pool.submit(exchange.run, rank, function) for rank in range(world)]
        broken = [problem for future in futures if (problem := future.exception())]
        for problem in sorted(broken, key=lambda problem: isinstance(problem, threading.BrokenBarrierError)):
            raise problem
        return [future.result() for future in futures]
