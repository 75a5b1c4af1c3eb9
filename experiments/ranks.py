"""Processes of a training that are gone: a rank, or a loader's worker. Those that are left stop with a message."""

from __future__ import annotations

import re
import signal
import threading
import traceback
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.cli import stopped_from_outside
from experiments.errors import RunError, UsageError

GO_ON = "the same command goes on from the last checkpoint"


class Ranks(Callback):
    """How long a rank waits for the others, and what it does when they do not come.

    A process that dies is noticed at once where the ranks talk over the CPU (gloo, which they do once per step on a
    GPU too); one that is frozen, or a machine that is cut off, after `timeout_s`.

    Args:
        timeout_s: Seconds that a collective may take. It has to be longer than rank zero alone is ever at work while
            the others wait; building an entity graph, which may take hours, does not count.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        if timeout_s <= 0:
            raise UsageError(f"ranks.timeout_s={timeout_s}: should be above 0")
        self.timeout_s = timeout_s
        self.ended: list[str] = []  # ranks that this process has started and that have failed, as words

    def limit(self, strategy: Any) -> None:
        """Make the timeout that of a strategy's process group; before there is one."""
        if hasattr(strategy, "_timeout"):  # an argument of its constructor, which "ddp" as a word leaves out
            strategy._timeout = timedelta(seconds=self.timeout_s)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Rank zero takes the ranks it has started with it, also those that are frozen."""
        processes = getattr(trainer.strategy.launcher, "procs", [])
        if not processes or not isinstance(exception, Exception):  # a stop by signal is one of all ranks, in order
            return
        for thread in threading.enumerate():
            if thread.name == "child-process-observer":
                # Lightning's: it would kill this process before it has said why.
                thread._child_processes = []  # type: ignore[attr-defined]
        codes = {number: process.poll() for number, process in enumerate(processes, start=1)}
        self.ended = [f"rank {number} {_how(code)}" for number, code in codes.items() if code]
        trainer.strategy.launcher.kill(signal.SIGKILL)  # type: ignore[union-attr]

    def explained(self, problem: Exception, trainer: Trainer) -> RunError | None:
        """An error that says which process is lost; None if it is something else, or said already."""
        if isinstance(problem, RunError):
            return None
        text = str(problem)
        if _is_of_a_worker(problem) and not stopped_from_outside(problem):
            killed = re.search(r"killed by signal: (\w+)", _chain(problem))
            how = f"was killed ({killed[1]})" if killed else "ended unexpectedly"
            return RunError(
                f"a worker of the data loader {how}, most often for want of memory: take fewer (--data.num_workers) or "
                f"smaller batches; {GO_ON}"
            )
        if trainer.world_size > 1 and _is_of_a_collective(problem):
            who = " and ".join(self.ended) or "another process has ended, or has not answered"
            within = "" if self.ended else f" within {self.timeout_s:g} s (ranks.timeout_s)"
            reason = re.sub(r"^\[[^\]]*\] *", "", (text.splitlines() or [""])[0])[:200]
            return RunError(
                f"rank {trainer.global_rank} of {trainer.world_size} stops: {who}{within}; what it said, if anything, "
                f"stands above ({reason}); {GO_ON}"
            )
        return None


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _chain(problem: BaseException | None) -> str:
    texts = []
    while problem is not None:
        texts.append(str(problem))
        problem = problem.__cause__ or problem.__context__
    return "\n".join(texts)


def _is_of_a_worker(problem: Exception) -> bool:
    """By torch's own words, or a connection to a worker that broke while a batch was taken from it."""
    if isinstance(problem, (ConnectionError, EOFError)):
        return any("multiprocessing" in frame.filename for frame in traceback.extract_tb(problem.__traceback__))
    return "DataLoader worker" in str(problem)


def _is_of_a_collective(problem: Exception) -> bool:
    """By where it was raised, or (in a backward pass, which has no frames of its own) by the words of gloo and NCCL."""
    words = ("gloo", "by peer", "Broken pipe", "Timed out waiting", "timeout caused pair closure", "NCCL")
    raised_in = {frame.filename.rpartition("/")[2] for frame in traceback.extract_tb(problem.__traceback__)}
    known = isinstance(problem, dist.DistError) or "distributed_c10d.py" in raised_in
    return known or any(word in str(problem) for word in words)
