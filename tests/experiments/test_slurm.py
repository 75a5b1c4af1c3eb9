"""What is asked of Slurm: a job queued again, and whether the owner of a lock is still at work."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from experiments import slurm
from experiments.errors import UsageError
from experiments.run_lock import check_free, opened
from experiments.runs import RunFolder
from tests.experiments.fake_slurm import FakeSlurm

NAMES = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SUBMITIT_EXECUTOR")


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.mark.parametrize(
    ("state", "number", "again"),
    [
        ("RUNNING", signal.SIGUSR1, True),  # before the time limit
        ("RUNNING", signal.SIGTERM, True),  # before preemption
        ("COMPLETING", signal.SIGTERM, False),  # cancelled
        ("", signal.SIGUSR1, False),
        (None, signal.SIGUSR1, True),
        (None, signal.SIGTERM, False),
    ],
)
def test_a_job_is_queued_again_unless_it_is_being_ended(
    scheduler: FakeSlurm, state: str | None, number: signal.Signals, again: bool
) -> None:
    scheduler.queue(state or "")
    if state is None:
        scheduler.fails("Unable to contact slurm controller")
    slurm.requeue(number)
    assert scheduler.calls("scontrol") == (["scontrol requeue 12"] if again else [])


def test_of_an_array_one_job_is_queued_again(scheduler: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    scheduler.queue("RUNNING")
    slurm.requeue(signal.SIGUSR1)
    assert scheduler.calls("scontrol") == ["scontrol requeue 11_3"]


@pytest.mark.parametrize(("name", "value"), [("SUBMITIT_EXECUTOR", "slurm"), ("SLURM_JOB_ID", None)])
def test_jobs_of_submitit_and_no_jobs_are_left_alone(
    scheduler: FakeSlurm, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    slurm.requeue(signal.SIGUSR1)
    assert not scheduler.calls("s")


def test_a_job_started_again_on_another_node_takes_over_its_lock(
    scheduler: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    with opened(run):
        lock = (run.root / "run.lock").read_text()
    assert lock.split()[2] == "12.0"
    of_another_node = "elsewhere 7 12.0\n"
    (run.root / "run.lock").write_text(of_another_node)
    scheduler.queue("RUNNING")
    with pytest.raises(UsageError, match="in use by process 7 on elsewhere"):
        check_free(run)  # the same start of the job: another node of it
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    check_free(run)


@pytest.mark.parametrize(("answer", "free"), [("RUNNING", False), ("COMPLETING", False), ("", True), (None, False)])
def test_a_lock_of_another_job_ends_with_that_job(
    scheduler: FakeSlurm, tmp_path: Path, answer: str | None, free: bool
) -> None:
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    (run.root / "run.lock").write_text("elsewhere 7 9_1.0\n")
    scheduler.queue(answer or "")
    if answer is None:
        scheduler.fails("Unable to contact slurm controller")
    if free:
        check_free(run)
    else:
        with pytest.raises(UsageError, match="in use"):
            check_free(run)
    assert scheduler.calls("squeue") == ["squeue --noheader --jobs 9_1 --format %T"]
