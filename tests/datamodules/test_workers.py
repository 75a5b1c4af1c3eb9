"""A loader's worker and the signals of a scheduler."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

WORKER = """
import sys
from datamodules.workers import start_worker
start_worker(0)
print("ready", flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


def test_a_worker_outlives_one_request_to_stop_and_obeys_the_second() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        worker.send_signal(number)
    worker.stdin.write("a batch\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "a batch\n"
    assert worker.poll() is None
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == -signal.SIGTERM
    worker.stdin.close()
    worker.stdout.close()
