"""Memory and processor time of processes, as Linux tells them under /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.errors import UsageError


class Usage(NamedTuple):
    """What a finished command took."""

    seconds: float
    cpu_seconds: float  # of it and its children
    peak_mb: float  # resident memory of the largest of these processes


def proportional_mb(pid: int) -> float:
    """Memory of a process, what it shares divided by the number of those who share it (PSS): such figures add up.

    Raises:
        UsageError: The system does not tell.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        raise UsageError(f"/proc/{pid}/smaps_rollup cannot be read: memory is measured on Linux only") from None


def cpu_seconds(pid: int) -> float:
    """Processor time that a living process has taken so far.

    Raises:
        UsageError: The system does not tell.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        raise UsageError(f"/proc/{pid}/stat cannot be read: processor time is measured on Linux only") from None
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def run_cli(words: Sequence[str]) -> Usage:
    """Run `python -m experiments …` in a process of its own; what it prints is seen.

    Raises:
        UsageError: It fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "experiments", *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UsageError(f"`python -m experiments {' '.join(words)}` failed: see above")
    return Usage(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
