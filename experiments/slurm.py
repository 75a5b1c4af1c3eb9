"""What a process inside a Slurm job knows of its job, and the two questions it asks Slurm. No torch."""

from __future__ import annotations

import os
import re
import signal
import subprocess

from experiments.output import say

PATIENCE_SECONDS = 30  # with a busy controller, out of a grace time of about two minutes
_START = re.compile(r"[0-9]+(_[0-9]+)?\.[0-9]+")  # as `this_start` says it
AT_WORK = ("RUNNING", "SIGNALING")  # a job that was cancelled or is out of time is COMPLETING while it is being ended


def job_id() -> str | None:
    """Of the job this process is in, as Slurm's commands take it ("12", or "12_3" in an array); None outside."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def this_start() -> str | None:
    """The job and how often it had been started before: "12_3.0"; None outside of a job."""
    job = job_id()
    return job and f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def has_ended(start: str) -> bool:
    """Whether a start of a job, on whichever node, is over for certain: started again since, or no longer queued."""
    if not _START.fullmatch(start):
        return False  # a damaged word is no answer
    job, _, count = start.rpartition(".")
    if job == job_id():
        return int(count) < int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return state(job) == ""


def state(job: str) -> str | None:
    """A job's state in the queue ("PENDING", "RUNNING", …), "" if it is not there; None if Slurm does not answer."""
    try:
        done = _ask("squeue", "--noheader", "--jobs", job, "--format", "%T")
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return "" if "invalid job id" in done.stderr.lower() else None
    return done.stdout.strip().partition("\n")[0]


def requeue(number: int) -> None:
    """Have this process's job started again, unless it has been cancelled or is out of time.

    Rank zero calls it, last of all: Slurm ends the job at once. Inside a job that submitit has submitted nothing is
    done, as submitit does it.

    Args:
        number: Of the signal that stopped the training. SIGTERM is sent before preemption, but also by scancel and at
            the end of the time limit: without an answer from Slurm it is taken for these.
    """
    job = job_id()
    if job is None or "SUBMITIT_EXECUTOR" in os.environ:
        return
    found = state(job)
    if found not in AT_WORK and not (found is None and number != signal.SIGTERM):
        say(f"Slurm job {job} is {found or 'unknown'}, so it is not requeued")
        return
    try:
        done = _ask("scontrol", "requeue", job)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as failure:
        problem = str(failure)
    say(f"Slurm job {job} was not requeued: {problem}" if problem else f"Slurm job {job} is requeued")


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
