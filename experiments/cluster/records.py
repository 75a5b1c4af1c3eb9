"""Which job was submitted for which run, and what has become of it: a small file per run below the runs' home."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from submitit.core.utils import JobPaths

from experiments.errors import UsageError
from experiments.run_pool import OUTPUT_FOLDER, last_error
from experiments.runs import write_json

HOME = "cluster"  # below the runs: submitit's logs by table, and our records


class Submission(NamedTuple):
    """A job that was submitted for a run."""

    launch: str  # "slurm" or "local"
    job: str  # its id, as the launcher's commands take it
    logs: str  # submitit's folder
    host: str  # from where


def record_file(home: Path, run_id: str) -> Path:
    """Where the submission of a run is noted."""
    return home / HOME / "jobs" / f"{run_id}.json"


def note(home: Path, run_id: str, submission: Submission) -> None:
    """Remember that a run was submitted."""
    write_json(record_file(home, run_id), submission._asdict())


def noted(home: Path, run_id: str) -> Submission | None:
    """The last submission of a run; None if there was none."""
    try:
        return Submission(**json.loads(record_file(home, run_id).read_text(encoding="utf-8")))
    except (FileNotFoundError, TypeError, ValueError):
        return None


def states(submissions: Mapping[str, Submission]) -> dict[str, str]:
    """Run id -> state of its job ("PENDING", "RUNNING", …); runs whose job is over are left out.

    Raises:
        UsageError: Slurm does not answer, so nobody knows what is queued.
    """
    in_queue = _queue() if any(found.launch == "slurm" for found in submissions.values()) else {}
    found = {}
    for run_id, submission in submissions.items():
        state = in_queue.get(submission.job) if submission.launch == "slurm" else _local_state(submission)
        if state:
            found[run_id] = state
    return found


def why_it_ended(home: Path, run_id: str, submission: Submission) -> tuple[str, Path]:
    """The last error of a job that is over, and the file it stands in."""
    output = home / OUTPUT_FOLDER / f"{run_id}.txt"
    logs = JobPaths(submission.logs, submission.job, 0).stderr
    for file in (output, logs):
        said = last_error(file)
        if said:
            return said, file
    return "it ended without a word", logs


def _queue() -> dict[str, str]:
    """Job id -> state of all jobs of this user; those of an array one by one."""
    words = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as failure:
        problem = str(failure)
    if problem:
        raise UsageError(f"squeue does not say what is queued, so nothing was submitted: {problem}")
    return dict(_pairs(done.stdout.splitlines()))


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        job, _, state = line.strip().partition(" ")
        if job:
            yield job, state


def _local_state(submission: Submission) -> str:
    if submission.host != socket.gethostname():
        return "RUNNING"  # for all that can be seen from here
    try:
        os.kill(int(submission.job), 0)
        words = Path(f"/proc/{submission.job}/cmdline").read_bytes()
    except (OSError, ValueError):
        return ""
    return "RUNNING" if b"submitit" in words else ""  # another process may have the number by now
