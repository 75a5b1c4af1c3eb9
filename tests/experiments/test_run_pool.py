"""Jobs as processes: how they share a machine, end, and are told of."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from experiments.run_pool import End, Job, last_error, run_jobs


def test_a_job_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import run_pool

    monkeypatch.setattr(run_pool, "GRACE_SECONDS", 1.0)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    output, ends = tmp_path / "a.txt", []

    def stop_all(number: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 2)

    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        job = Job([sys.executable, "-c", deaf], output)
        assert run_jobs([job, job], 1, stop_all, lambda number, end: ends.append((number, end))) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGALRM, before)
    ((number, end),) = ends
    assert (number, end.code, end.stopped) == (0, -signal.SIGKILL, True)
    assert output.read_text() == "deaf\n"


def test_jobs_at_once_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import run_pool

    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_pool.machine, "visible_gpus", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    alone = run_pool.child_environment(0, 1)
    assert not {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & set(alone)
    of_three = [run_pool.child_environment(slot, 3) for slot in range(3)]
    assert [found["CUDA_VISIBLE_DEVICES"] for found in of_three] == ["0", "1", "0"]
    assert {found["OMP_NUM_THREADS"] for found in of_three} == {"2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    chosen = run_pool.child_environment(1, 2)
    assert (chosen["CUDA_VISIBLE_DEVICES"], chosen["OMP_NUM_THREADS"]) == ("7", "3")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error: no shards at data/x\n", "error: no shards at data/x"),
        (
            "Traceback:\n  File\ntorch.OutOfMemoryError: CUDA out of memory\nwandb: bye\n",
            "torch.OutOfMemoryError: CUDA",
        ),
        ("ValueError: first\nKeyError: 'second'\n  x\n", "KeyError: 'second'"),
        ("step 1\nstep 2\n\n", "step 2"),
        ("", ""),
    ],
)
def test_the_last_error_line_of_an_output(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "x").write_text(text)
    assert last_error(tmp_path / "x").startswith(expected)
    assert bool(last_error(tmp_path / "x")) is bool(expected)


def test_a_job_that_cannot_start_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    jobs = [
        Job([sys.executable, "-c", "pass"], tmp_path / "file" / "a.txt"),  # no folder for its output
        Job([str(tmp_path / "no-such-program")], tmp_path / "b.txt"),
        Job([sys.executable, "-c", "print('ran')"], tmp_path / "c.txt"),
    ]
    ends: dict[int, End] = {}
    assert run_jobs(jobs, 1, lambda number: None, ends.__setitem__) == 0
    assert [ends[number].code for number in range(3)] == [1, 1, 0]
    assert "did not start: " in ends[0].why(jobs[0].output)
    assert "no-such-program" in ends[1].why(jobs[1].output)
    assert jobs[2].output.read_text() == "ran\n"
