"""The runs of a table as processes: finished, failed, stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.ablate import ablate_command
from experiments.cli import main
from tests.experiments.ablation_stub import ROOT, ablate, started
from tests.experiments.conftest import SMALL


def test_all_runs_finish_and_a_second_time_there_is_nothing_to_do(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert ablate(home, "--seeds", "3", "--rows", "MLM,CLR, alone") == 0
    text = capsys.readouterr().out
    assert len(started(home)) == 4
    line = r"\[1/2\] finished  CLR, alone, seed 3  val/mAP@10 0\.2500  test/mAP@10 0\.5000  trained 30 s  \d+ s"
    assert re.search(line, text)
    assert "[2/2] started   MLM, seed 3" in text
    chosen = f"TABLE=mine SEEDS=3 ROWS='MLM,CLR, alone' ARGS='--runs {home / 'runs'}'"
    assert f"all runs of the plan are finished: make table {chosen}" in text
    assert ablate(home, "--seeds", "3", "--rows", "MLM,CLR, alone") == 0
    assert len(started(home)) == 4
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    assert ablate(home, "--seeds", "3", "--dry") == 0  # by those of the same experiment, data and scale
    assert "1 to run, 1 at a time: about 30 s" in capsys.readouterr().out


def test_a_failed_run_stops_no_other_and_is_listed_with_its_error(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(seeds=[0])
    assert ablate(home, **{"all": "fail", "CLR, alone": "kill"}) == 1
    head, tail = capsys.readouterr().out.split("2 of 3 runs failed:")
    assert "finished  MLM, seed 0" in head
    assert re.search(
        r"  all, seed 0: ValueError: no such thing in capture-synthetic-0-\w+\n    \S+/output/\S+\.txt", tail
    )
    assert "CLR, alone, seed 0: killed by SIGKILL" in tail
    assert ablate(home) == 0  # the same command runs these again, and nothing else
    assert [kind for _, kind, _ in started(home)] == ["fail", "kill", "finish", "end", "finish", "end", "finish", "end"]


def test_a_run_that_ends_without_numbers_has_failed(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("\n  - {label: all}", seeds=[0])
    words = ["mine", "--runs", str(home / "runs")]
    assert ablate_command("", words, lambda run: [sys.executable, "-c", "print('nothing to do')"]) == 1
    assert re.search(r"all, seed 0: ended without \S+metrics\.json", capsys.readouterr().out)


def test_jobs_run_at_the_same_time(home: Path, write: Callable[..., None]) -> None:
    write(seeds=[0])
    assert ablate(home, "--jobs", "3", **{"all": "short", "CLR, alone": "short", "MLM": "short"}) == 0
    assert [kind for _, kind, _ in started(home)] == ["short"] * 3 + ["end"] * 3


# A parent with two stubs that wait, to be stopped from outside.
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
from pathlib import Path
from experiments import table_rows
from tests.experiments.ablation_stub import ablate
home = Path(sys.argv[1])
table_rows.HOME = home
sys.exit(ablate(home, "--jobs", "2", **{"all": "wait"}))
"""


def start_parent(home: Path, expected: int) -> subprocess.Popen[str]:
    """Returns when so many stubs are at work."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PARENT, str(home)]
    parent = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(started(home)) < expected and time.monotonic() < deadline:
        time.sleep(0.1)
    return parent


def stubs(home: Path) -> list[str]:
    """Living processes of the stub."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(home / "stub.py") in words:
            found.append(file.parent.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_children_in_order(home: Path, write: Callable[..., None], number: signal.Signals) -> None:
    write()
    parent = start_parent(home, 2)
    os.killpg(parent.pid, number)  # as a terminal and make do: to all; the children have groups of their own
    said, _ = parent.communicate(timeout=30)
    assert parent.returncode == 128 + number
    assert len(re.findall("stopped   all, seed", said)) == 2
    assert "started   CLR" not in said
    assert "failed" not in said
    assert "the same command goes on" in said
    assert not stubs(home)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_killed_group_leaves_nobody_behind_and_goes_on(home: Path, write: Callable[..., None]) -> None:
    write(seeds=[0])
    parent = start_parent(home, 3)  # the row after is through, the first one waits
    os.killpg(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while stubs(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not stubs(home)
    before = len(started(home))
    assert ablate(home) == 0
    cut = {name for name, kind, _ in started(home)[:before] if kind == "wait"}
    assert len(cut) == 1
    assert {name for name, kind, _ in started(home)[before:] if kind == "finish"} >= cut
    assert len({name for name, kind, _ in started(home) if kind == "end"}) == 3


@pytest.mark.slow
def test_a_small_table_from_its_runs_to_its_text(
    home: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real trainings: one of them cannot be built, so neither starts; then the same with the row mended."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = {word[2:].partition("=")[0]: word.partition("=")[2] for word in SMALL}
    shared = "".join(f", {key}: {value}" for key, value in settings.items())
    rows = f"\n  - {{label: all, set: {{model.dropout: 0.1{shared}}}}}\n"
    rows += f"  - {{label: broken, set: {{model.objectives: [clrr]{shared}}}}}\n"
    write(rows, seeds=[0])
    words = ["ablate", "mine", "--runs", str(home / "runs")]
    assert main(words) == 2
    assert re.search(r"mine\.yaml: row 'broken': .*'clrr' is unknown.*nothing was started", capsys.readouterr().err)
    assert not (home / "runs").exists()
    write(rows.replace("clrr", "clr"), seeds=[0])
    assert main([*words, "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\[1/2\] finished  all, seed 0  val/mAP@10 0\.\d{4}  test/mAP@10 0\.\d{4}  trained", text)
    assert main(["table", "--table", "mine", "--runs", str(home / "runs")]) == 0
    assert capsys.readouterr().out.count("(n = 1, seed 0;") == 2


REAL_PARENT = """
import sys
from pathlib import Path
from experiments import table_rows
from experiments.cli import main
table_rows.HOME = Path(sys.argv[1])
sys.exit(main(["ablate", "mine", "--runs", sys.argv[1] + "/runs"]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_real_training_that_was_stopped_goes_on(
    home: Path, write: Callable[..., None], number: signal.Signals
) -> None:
    settings = {word[2:].partition("=")[0]: word.partition("=")[2] for word in SMALL} | {"trainer.max_steps": "60"}
    write(
        f"\n  - {{label: all, set: {{{', '.join(f'{key}: {value}' for key, value in settings.items())}}}}}", seeds=[0]
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    words = [sys.executable, "-c", REAL_PARENT, str(home)]
    parent = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(home.glob("runs/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(parent.pid, number)
    said, _ = parent.communicate(timeout=90)
    assert ("stopped   all, seed 0" in said) is (number == signal.SIGTERM)
    assert parent.returncode == (-number if number == signal.SIGKILL else 128 + number)
    (run,) = home.glob("runs/capture-*")
    assert not (run / "metrics.json").exists()
    assert (run / "run.lock").exists() is (number == signal.SIGKILL)  # of a dead owner, and so taken over
    again = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.search(r"started   all, seed 0 .*\(evaluated at step \d+ of 60\)", again.stdout)
    assert "going on from" in (run / "log.txt").read_text()
    assert json.loads((run / "metrics.json").read_text())["steps"] == 60
