"""Who may write into a run folder, and what a refused run leaves there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import slurm
from experiments.cli import main
from experiments.errors import UsageError
from experiments.run_lock import check_free, opened
from experiments.runs import RunFolder


@pytest.fixture
def run_folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "capture-synthetic-0-abcd")


def _locked_by(run: RunFolder, host: str, pid: int) -> Path:
    run.root.mkdir()
    lock = run.root / "run.lock"
    lock.write_text(f"{host} {pid}\n")
    return lock


def _dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_living_owner_is_named_and_left_alone(run_folder: RunFolder) -> None:
    lock = _locked_by(run_folder, socket.gethostname(), os.getppid())
    owner = rf"in use by process {os.getppid()} on {socket.gethostname()}: .*run\.lock"
    with pytest.raises(UsageError, match=owner), opened(run_folder):
        pytest.fail("opened twice")
    assert lock.read_text() == f"{socket.gethostname()} {os.getppid()}\n"
    assert list(run_folder.root.iterdir()) == [lock]


def test_processes_of_other_hosts_count_as_living(run_folder: RunFolder) -> None:
    _locked_by(run_folder, "elsewhere", _dead_process())
    with pytest.raises(UsageError, match="on elsewhere"):
        check_free(run_folder)


@pytest.mark.parametrize("content", ["dead", "ours", "torn"])
def test_a_dead_owner_is_succeeded(run_folder: RunFolder, content: str) -> None:
    lock = _locked_by(run_folder, socket.gethostname(), _dead_process() if content == "dead" else os.getpid())
    if content == "torn":
        lock.write_text(socket.gethostname())
    with opened(run_folder):
        assert lock.read_text() == f"{socket.gethostname()} {os.getpid()}\n"
    assert not lock.exists()
    assert run_folder.log.is_file()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="states of processes are read from /proc")
def test_an_owner_that_has_ended_unnoticed_is_succeeded(run_folder: RunFolder) -> None:
    """A killed training in a container whose first process is slow to collect it."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        _locked_by(run_folder, socket.gethostname(), child.pid)
        check_free(run_folder)


def test_two_processes_never_hold_one_folder(run_folder: RunFolder, tmp_path: Path) -> None:
    """Five start at once over a dead owner's lock: whoever gets in finds nobody inside."""
    _locked_by(run_folder, socket.gethostname(), _dead_process())
    script = tmp_path / "enter.py"
    script.write_text(
        "import sys, time, os\nfrom pathlib import Path\n"
        "from experiments.run_lock import _acquire\nfrom experiments.errors import UsageError\n"
        "from experiments.runs import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]))\n"
        "try:\n    _acquire(run)\n    print('in', flush=True)\n    time.sleep(20)\n"
        "except UsageError:\n    print('out')\n"
    )
    words = [sys.executable, str(script), str(run_folder.root)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    children = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(5)]
    said = [child.communicate(timeout=60)[0].strip() for child in children]
    assert sorted(said) == ["in", *["out"] * 4]


def test_other_ranks_share_the_lock(run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = _locked_by(run_folder, "elsewhere", 1)
    monkeypatch.setenv("RANK", "1")
    with opened(run_folder):
        assert lock.read_text() == "elsewhere 1\n"
    assert lock.exists()


def test_a_refused_run_leaves_no_folder_but_a_failure_does(run_folder: RunFolder) -> None:
    with pytest.raises(UsageError, match="no"), opened(run_folder):
        raise UsageError("no")
    assert not run_folder.root.exists()
    with pytest.raises(OSError, match="disk"), opened(run_folder):
        raise OSError("disk")
    assert run_folder.log.is_file()
    with pytest.raises(UsageError, match="no"), opened(run_folder):
        raise UsageError("no")
    assert run_folder.log.is_file()  # it was there before


@pytest.mark.parametrize("job", ["\0004.0", "12_3", "12.", "--help.0", "1,2.0", "x"])
def test_a_damaged_job_of_another_host_is_not_asked_about(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr(slurm, "_ask", lambda *words: pytest.fail(f"asked {words}"))
    run_folder.root.mkdir(parents=True, exist_ok=True)
    (run_folder.root / "run.lock").write_text(f"elsewhere 12 {job}\n")
    with pytest.raises(UsageError, match="in use by process 12 on elsewhere"):
        check_free(run_folder)


def test_fit_and_fresh_keep_out_of_a_folder_in_use(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.experiments.conftest import fit_words

    folder = tmp_path / run.name
    folder.mkdir()
    (folder / "run.lock").write_text("elsewhere 12\n")
    for more in ([], ["--fresh"]):
        assert main([*fit_words(shards, tmp_path), *more]) == 2
        assert f"{folder} is in use by process 12 on elsewhere" in capsys.readouterr().err
    assert (folder / "run.lock").is_file()
