"""The command line as a shell sees it: exit codes, one line, and no torch where an answer must come at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import COMMANDS, main, one_line

ROOT = Path(__file__).parents[2]
# Runs a command and fails with code 99 if it imported torch on the way.
LIGHT = (
    "import sys\nfrom experiments.cli import main\n"
    "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
    "sys.exit(99 if 'torch' in sys.modules else code)\n"
)


def light(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LIGHT, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=60)


HELP = [["--help"], ["data", "build", "--help"], *([command, "--help"] for command in COMMANDS if command != "data")]


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_is_light(words: list[str], tmp_path: Path) -> None:
    done = light(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "unknown command 'fitt': did you mean 'fit'?"),
        (["fit"], "make demo"),
        (["fit", "--exp", "captrue"], "did you mean 'capture'?"),
        (["fit", "--data", "grocry"], "did you mean 'grocery'?"),
        (["fit", "--model.lrr=1"], "unknown key model.lrr: did you mean 'lr'?"),
        (["fit", "--trainer.devices=two-ish"], "make data DATA=product1m"),
        (["fit", "--modle.lr=1"], "did you mean 'model'?"),
        (["fit", "--seed", "x"], "--seed"),
        (["eval"], "RUN=runs/<run_id>"),
        (["eval", "--run", "runs/none"], "no such run folder"),
        (["score", "--ranking", "a", "--queries", "b"], "--gallery"),
        (["score", "--ranking", "a", "--queries", "b", "--gallery", "c"], "--ranking a: no such file"),
        (["table"], "TABLE=<name>"),
        (["table", "--table", "spin"], "did you mean 'spine'?"),
        (["table", "runs/none"], "no such run folder"),
        (["report", "--run", "runs/none"], "no such run folder"),
        (["bench", "serch"], "did you mean 'search'?"),
        (["data", "biuld"], "did you mean 'build'?"),
        (["data", "build", "grocry"], "did you mean 'grocery'?"),
        (["data", "build", "grocery"], "raw"),
        (["data", "build", "synthetic", "--wokers=2"], "did you mean '--workers'?"),
        (["data", "build", "synthetic", "--set", "num_labels"], "KEY=VALUE"),
        (["demo", "--modle.lr=1"], "did you mean 'model'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_line_and_code_2_without_torch(words: list[str], message: str, tmp_path: Path) -> None:
    done = light(*words, cwd=tmp_path)
    assert done.returncode == 2, done
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_command_prints_the_usage_and_fails() -> None:
    done = light(cwd=ROOT)
    assert done.returncode == 2
    assert all(command in done.stdout for command in COMMANDS)


def test_score_is_light_and_exact(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("q1#####c#####u#####u#####a\nq2#####c#####u#####u#####b#;#a\n")
    (tmp_path / "g.txt").write_text("g1#####c#####u#####u#####a\ng2#####c#####u#####u#####b\n")
    (tmp_path / "r.txt").write_text("q1,g1,g2\nq2,g1,g2\n")
    done = light("score", "--ranking", "r.txt", "--queries", "q.txt", "--gallery", "g.txt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"mAP@10": 1.0' in done.stdout


def test_a_bug_keeps_its_traceback_and_exits_with_1(tmp_path: Path) -> None:
    code = "import sys\nfrom experiments import cli\ncli._dispatch = lambda *_: 1 / 0\nsys.exit(cli.main(['table']))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_it_without_a_word(unbuffered: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as closed:
        command = [sys.executable, "-m", "experiments", "--help"]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False
        )
    assert (done.returncode, done.stderr) == (141, "")


def test_an_error_from_a_loader_worker_is_unwrapped() -> None:
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\n    raise DataError\ndatamodules.errors.DataError: shard x is damaged\n'
    )
    assert one_line(ValueError(text)) == "shard x is damaged"


def test_help_lists_the_arguments_of_the_chosen_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for experiment in ("capture", "uniter"):
        with pytest.raises(SystemExit):
            main(["fit", "--help", "--exp", experiment])
        said[experiment] = capsys.readouterr().out
    assert "matching_candidates" in said["uniter"]
    assert "matching_candidates" not in said["capture"]
    assert "--model.* (UNITER, --exp uniter)" in said["uniter"]
    assert main(["fit", "--exp", "unitre", "--help"]) == 2
    assert "did you mean 'uniter'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("--lr=1e-3", "did you mean --model.lr?"),
        ("--batch_size=3", "did you mean --data.batch_size?"),
        ("--model.objectives=mlm", "write [mlm]"),
        ("--lrr=1e-3", "unknown key lrr"),
    ],
)
def test_a_setting_in_the_wrong_form_is_told_the_right_one(
    setting: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--exp", "uniter", "--scale", "tiny", setting]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(("gpus", "words", "warned"), [(0, [], 1), (0, ["--scale=paper"], 0), (2, [], 0)])
def test_a_scale_left_out_is_told_where_there_is_no_gpu(
    gpus: int,
    words: list[str],
    warned: int,
    shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("experiments.machine.visible_gpus", lambda: gpus)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert main(["fit", "--data", str(shards), "--print_config", *words]) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: SCALE left out means paper") == warned
    assert "SCALE" not in said.out  # where the configuration can be piped from


@pytest.mark.parametrize("kind", ["trainer", "worker", "chained", "killed"])
def test_a_stop_from_outside_is_one_line(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    def stopped(command: str, words: list[str]) -> int:
        if kind == "trainer":
            raise SIGTERMException
        signal = "Killed" if kind == "killed" else "Terminated"
        told = RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {signal}. ")
        if kind == "chained":
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly") from told
        raise told

    monkeypatch.setattr("experiments.cli._dispatch", stopped)
    if kind == "killed":  # by the kernel, for its memory: that has to be seen
        with pytest.raises(RuntimeError, match="Killed"):
            main(["fit"])
        return
    assert main(["fit"]) == 143
    assert capsys.readouterr().err.startswith("stopped by SIGTERM")


def test_without_the_environment_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "experiments", "data", "verify", "x"],  # -S: no installed packages
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "`make setup` installs it" in line
