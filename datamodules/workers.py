"""How a loader's worker process begins."""

from __future__ import annotations

import os
import signal
from types import FrameType

import torch


def start_worker(_worker: int) -> None:
    """Worker initialiser: one thread, or the workers and the model fight for the same cores; and a thick skin."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    outlive_a_stop_signal()


def outlive_a_stop_signal() -> None:
    """Go on when a scheduler tells all processes of a job to stop: the training needs batches to end in order.

    It is the training that ends its workers. A second SIGTERM ends one all the same, as that is what is left to a
    parent which no longer waits.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _next_one_ends)


def _next_one_ends(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
