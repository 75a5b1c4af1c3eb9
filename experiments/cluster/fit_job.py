"""What a job does on its node: start the training as the process that could be typed by hand, and queue it again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission

from experiments import slurm
from experiments.run_pool import child_environment, die_with, last_error
from experiments.stop_signals import STOPPED_CODE

GRACE_SECONDS = 600.0  # the scheduler's own is shorter, and ends the wait


class FitJob:
    """One run. submitit pickles it, calls it on every task, and calls `checkpoint` when the job is to be queued again.

    Args:
        words: The whole command.
        folder: Where it is started.
        output: File that what rank zero says is appended to.
    """

    def __init__(self, words: Sequence[str], folder: Path, output: Path) -> None:
        self.words, self.folder, self.output = list(words), folder, output
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run it to its end.

        Raises:
            RuntimeError: The training failed; the message is its last error line.
        """
        environment = JobEnvironment()
        first = environment.global_rank == 0
        self.output.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with open(self.output if first else os.devnull, "ab") as output:
            self._process = subprocess.Popen(
                self.words,
                cwd=self.folder,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output if first else None,  # of the others it goes to submitit's own log
                preexec_fn=lambda: die_with(parent),
            )
        os.waitid(
            os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT
        )  # not `wait`, whose lock `checkpoint` would meet
        code = self._process.wait()
        if code == STOPPED_CODE:
            if first:
                self._queue_again(environment)
            return code
        if code:
            said = last_error(self.output) if first else ""
            raise RuntimeError(said or f"exit code {code}")
        return code

    def checkpoint(self) -> DelayedSubmission:
        """The training stops in order, and the same job is what is queued again."""
        deadline = time.monotonic() + GRACE_SECONDS
        if self._process is not None and not _has_ended(self._process.pid):
            os.kill(self._process.pid, signal.SIGUSR1)  # it may have been told already, which does no harm
            while not _has_ended(self._process.pid) and time.monotonic() < deadline:
                time.sleep(0.2)
        return DelayedSubmission(FitJob(self.words, self.folder, self.output))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None}

    def _queue_again(self, environment: JobEnvironment) -> None:
        """The training was told to stop by a signal that submitit takes no notice of: have it take notice."""
        job = slurm.job_id()
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and job and slurm.state(job) not in slurm.AT_WORK:
            print(f"job {job} has been cancelled or is out of time: not queued again", file=sys.stderr)
            return
        os.kill(os.getpid(), environment._usr_sig())
        time.sleep(GRACE_SECONDS)  # its handler ends this process


def _has_ended(pid: int) -> bool:
    """Whether a child is over; it is left for `Popen` to collect."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True
