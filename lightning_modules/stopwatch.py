"""Time that a device works, measured without making the host wait for it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Adds up the seconds between `start()` and `stop()`, however often; of the device where there is a GPU.

    On a GPU both only record an event in its queue, so nothing is held up; the one wait is in `seconds()`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host = self._began = 0.0
        self._events: list[torch.cuda.Event] = []  # a start and a stop of each span

    def start(self) -> None:
        if self.device.type == "cuda":
            self._record()
        self._began = time.perf_counter()

    def stop(self) -> None:
        self._host += time.perf_counter() - self._began
        if self.device.type == "cuda":
            self._record()

    def seconds(self) -> float:
        """Of all spans so far."""
        if not self._events:
            return self._host
        torch.cuda.synchronize(self.device)
        spans = zip(self._events[::2], self._events[1::2], strict=True)
        return sum(start.elapsed_time(stop) for start, stop in spans) / 1e3

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        self._events.append(event)
