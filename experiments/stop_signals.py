"""SIGTERM, SIGUSR1 and SIGUSR2 ask a training to stop, and what owns these signals while a run is at work. No torch.

One owner: Lightning would save in the middle of a step when SIGUSR1 arrives under Slurm, ignore SIGTERM there, and call
collectives from inside a signal handler.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

STOPPED_CODE = os.EX_TEMPFAIL  # 75, "try again later": the same command goes on
# Schedulers warn by any of them: Slurm by SIGTERM and by what --signal names, submitit by SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(SystemExit):
    """A training was asked to stop and did so in order; started again it goes on.

    Args:
        number: Of the signal.
        where: From where it will go on, as words.
        together: All ranks stop, and at the same place.
    """

    def __init__(
        self, number: int, where: str = "its last checkpoint, if there is one", together: bool = False
    ) -> None:
        super().__init__(STOPPED_CODE)
        self.number = number
        self.where = where
        self.together = together

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}; the same command goes on from {self.where}"


class StopSignals:
    """While open, a stop signal raises `Stopped`, or is kept in `number` where `held`.

    Attributes:
        number: The first signal that came; 0 before any.
        held: Somebody looks at `number` between two steps, so that no step is interrupted.
        pass_on: Called with the signal's number before `Stopped` is raised, for processes that were not told.
    """

    def __init__(self) -> None:
        self.number = 0
        self.held = False
        self.pass_on: Callable[[int], object] = lambda number: None
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.take()
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Own the signals again, after Lightning has put its handlers in their place."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a loader worker, forked off with this handler: its parent stops it in order
        if self.number:
            return  # it is stopping already, or will at the end of the step
        self.number = number
        if not self.held:
            self.pass_on(number)
            raise Stopped(number)
