"""What the stopwatch counts, and what it leaves out."""

from __future__ import annotations

import time

import pytest
import torch

from lightning_modules.stopwatch import Stopwatch

CPU = torch.device("cpu")


def test_only_what_lies_between_start_and_stop_counts() -> None:
    watch = Stopwatch(CPU)
    assert watch.seconds() == 0.0
    began = time.perf_counter()
    for _ in range(2):
        time.sleep(0.05)  # loading
        watch.start()
        time.sleep(0.02)
        watch.stop()
    elapsed = time.perf_counter() - began
    assert 0.04 <= watch.seconds() <= elapsed - 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_and_not_the_host_that_fills_its_queue() -> None:
    device = torch.device("cuda")
    square = torch.rand(4096, 4096, device=device)
    square @ square  # the first product loads its kernel
    torch.cuda.synchronize()
    watch, began = Stopwatch(device), time.perf_counter()
    watch.start()
    for _ in range(50):
        square = (square @ square).clamp(0, 1)
    watch.stop()
    issued = time.perf_counter() - began
    assert watch.seconds() > 2 * issued
