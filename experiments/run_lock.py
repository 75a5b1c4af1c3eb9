"""One process writes into a run folder at a time: a lock file that names its owner, and what an owner leaves behind."""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments import slurm
from experiments.errors import UsageError
from experiments.machine import rank
from experiments.output import log_file
from experiments.runs import RunFolder, clear

_PROCESS = re.compile(r"[0-9]{1,9}")


@contextmanager
def opened(run: RunFolder) -> Iterator[None]:
    """Own a run folder and log into it. The ranks of a run share it: rank zero locks for all.

    A folder that was new and has no config.yaml by the time its settings are refused is taken away again.

    Raises:
        UsageError: If a living process is writing into it.
    """
    if rank() != 0:
        yield
        return
    new = not run.root.exists()
    lock = _acquire(run)
    refused = False
    try:
        with log_file(run.log):
            yield
    except Exception as problem:
        from experiments.cli import is_user_error

        refused = new and is_user_error(problem) and not run.config.is_file()
        raise
    finally:
        lock.unlink(missing_ok=True)
        if refused:
            clear(run)


def check_free(run: RunFolder) -> None:
    """Raise `UsageError` if a living process is writing into the run folder."""
    owner = _living_owner(_lock_of(run))
    if owner:
        raise UsageError(
            f"{run.root} is in use by {owner}: wait for it or stop it; if it is gone, delete {_lock_of(run)}"
        )


def _lock_of(run: RunFolder) -> Path:
    return run.root / "run.lock"


def _acquire(run: RunFolder) -> Path:
    """Write the lock file; one whose owner is dead is taken over."""
    lock = _lock_of(run)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _guarded(lock.parent):
        check_free(run)
        owner = [socket.gethostname(), str(os.getpid()), *filter(None, [slurm.this_start()])]
        lock.write_text(" ".join(owner) + "\n", encoding="utf-8")
    return lock


@contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Nobody else looks at the lock or writes it meanwhile; a file system without `flock` has to trust to luck."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _living_owner(lock: Path) -> str | None:
    """Who holds the lock: "process 12 on a-host"; None if nobody, or nobody any more.

    Another host's processes cannot be seen, so they count as living, unless Slurm knows better of their job.
    """
    try:
        words = lock.read_text(encoding="utf-8", errors="replace").split()
    except FileNotFoundError:
        return None
    if len(words) not in (2, 3) or not _PROCESS.fullmatch(words[1]):
        return None  # a process that died while it wrote its words
    host, pid = words[0], int(words[1])
    if host != socket.gethostname() and len(words) == 3 and slurm.has_ended(words[2]):
        return None
    if host == socket.gethostname() and (pid == os.getpid() or not _lives(pid)):
        return None  # our own number is a dead process's whose number we were given
    return f"process {pid} on {host}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Whether a process is over and only waits for its parent to notice: an adopted one may wait for seconds."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False  # no such file system, or gone meanwhile
    return state in ("Z", "X")
