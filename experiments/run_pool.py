"""Runs as processes, some at a time: each in a process group of its own, its output in a file."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from experiments import machine
from experiments.config import HOME
from experiments.stop_signals import STOPPED_CODE

OUTPUT_FOLDER = "output"  # below the runs: what each process said, also before its run folder was there
GRACE_SECONDS = 60.0  # from SIGTERM to SIGKILL: a step and the loaders' end, generously
POLL_SECONDS = 0.2
ONE_SIGNAL_SECONDS = 2.0  # make passes SIGTERM on to a process that may have had it with the whole group
PR_SET_PDEATHSIG = 1
ERROR_LINE = re.compile(r"(error: |(\w+\.)*\w*(Error|Exception|Interrupt)\b(:|$))")


STOPPED_CODES = (STOPPED_CODE, -signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGKILL)


class Received(NamedTuple):
    """A signal, and when it came."""

    number: int
    at: float


class Job(NamedTuple):
    """A command to run, and the file its output goes to."""

    words: list[str]  # the whole command
    output: Path


class Running(NamedTuple):
    """A job at work."""

    number: int
    process: subprocess.Popen[bytes]
    start: float


class End(NamedTuple):
    """How a job ended."""

    code: int  # as `subprocess` says it: negative is a signal
    seconds: float
    stopped: bool  # because all were told to stop
    problem: str = ""  # why it could not even start

    def why(self, output: Path) -> str:
        """Its last error line, and the signal that ended it."""
        if self.problem:
            return self.problem
        said = last_error(output)
        if self.code >= 0:
            return said or f"exit code {self.code} without a word"
        name = signal.Signals(-self.code).name
        hint = " (by the system for want of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}" + (f"; last: {said}" if said else "")


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    on_start: Callable[[int], None],
    on_end: Callable[[int, End], None],
) -> int:
    """Run all jobs in order, `at_once` of them at any time; a failed one does not stop the others.

    SIGINT, SIGTERM and SIGHUP go on to the running jobs as SIGTERM, after which none is started; another one later,
    or `GRACE_SECONDS` of waiting, kills them with all their processes.

    Args:
        on_start: Called with a job's number when it starts.
        on_end: Called with a job's number when it has ended.

    Returns:
        0, or the number of the signal that stopped it.
    """
    waiting = list(range(len(jobs)))
    running: dict[int, Running] = {}  # by slot
    told = False
    with _signals() as received:
        try:
            while running or (waiting and not received):
                for slot in range(at_once):
                    if slot not in running and waiting and not received:
                        number = waiting.pop(0)
                        on_start(number)
                        try:
                            process = _start(jobs[number], slot, at_once)
                        except (OSError, subprocess.SubprocessError) as problem:  # a full disk, no memory
                            on_end(number, End(1, 0.0, False, f"did not start: {problem}"))
                            continue
                        running[slot] = Running(number, process, time.monotonic())
                if received and not told:
                    told = True
                    for job in running.values():
                        job.process.send_signal(signal.SIGTERM)  # it ends its own loader workers, in order
                if received and _is_over(received):
                    _kill(running.values())
                for slot in [slot for slot, job in running.items() if job.process.poll() is not None]:
                    ended = running.pop(slot)
                    on_end(ended.number, _end(ended, bool(received)))
                if running:
                    time.sleep(POLL_SECONDS)
        finally:
            _kill(running.values())  # any left only after a bug of ours
        return received[0].number if received else 0


def _end(ended: Running, told: bool) -> End:
    code = ended.process.returncode
    if code:
        _kill([ended])  # loader workers that nobody waits for
    return End(code, time.monotonic() - ended.start, told and code in STOPPED_CODES)


def _is_over(received: Sequence[Received]) -> bool:
    """Whether the running jobs have had their time to stop, or somebody is out of patience."""
    first, last = received[0].at, received[-1].at
    return time.monotonic() > first + GRACE_SECONDS or last > first + ONE_SIGNAL_SECONDS


def _kill(running: Iterable[Running]) -> None:
    """With all their processes."""
    for job in running:
        with suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)


@contextmanager
def _signals() -> Iterator[list[Received]]:
    """SIGINT, SIGTERM and SIGHUP are noted instead of obeyed; one that is ignored (nohup) stays ignored."""
    received: list[Received] = []
    caught = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {n: signal.signal(n, lambda n, _: received.append(Received(n, time.monotonic()))) for n in caught}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job, slot: int, at_once: int) -> subprocess.Popen[bytes]:
    job.output.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    with open(job.output, "wb") as output:
        return subprocess.Popen(
            job.words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: Ctrl-C is ours to pass on
            env=child_environment(slot, at_once),
            preexec_fn=lambda: die_with(parent),
        )


def die_with(parent: int) -> None:
    """On Linux a job does not outlive a parent that was killed: it would hold its run folder against the next try."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be told
            os._exit(1)


def child_environment(slot: int = 0, at_once: int = 1) -> dict[str, str]:
    """Jobs at once share the cores and, where there are several, have a GPU each."""
    environment = dict(os.environ)
    paths = [str(HOME.parent), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment["PYTHONUNBUFFERED"] = "1"
    if at_once > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
        count = machine.visible_gpus()
        if count > 1:
            chosen = environment.get("CUDA_VISIBLE_DEVICES")
            names = [name for name in chosen.split(",") if name.strip()] if chosen else [str(n) for n in range(count)]
            environment["CUDA_VISIBLE_DEVICES"] = names[slot % len(names)]
    return environment


def last_error(output: Path) -> str:
    """The last line of a job's output that tells an error, else its last line at all."""
    try:
        text = output.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1]
