"""The runs of a table: planned, checked, run in processes, and gone on with."""

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

from experiments import table_rows
from experiments.ablate import ablate_command, fit_command
from experiments.ablation_plan import PlannedRun, choose_rows, plan_runs
from experiments.cli import main
from experiments.errors import UsageError
from experiments.run_pool import Job, last_error, run_jobs
from experiments.runs import write_json, write_text
from experiments.table_rows import Choice, open_table
from tests.experiments.conftest import SMALL

ROOT = Path(__file__).parents[2]
ROWS = """
  - {label: all}
  - {label: "CLR, alone", set: {model.objectives: [clr]}}
  - {label: MLM, set: {model.objectives: [mlm]}}
"""
# Stands in for `fit`: notes that it was there, and leaves what a finished run leaves.
STUB = """
import json, os, pathlib, sys, time
run, kind, home = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
home.joinpath("started").open("a").write(f"{run.name} {kind} {time.time()}\\n")
print("some words of a training", flush=True)
if kind == "fail":
    raise ValueError(f"no such thing in {run.name}")
if kind == "kill":
    os.kill(os.getpid(), 9)
if kind == "wait":
    time.sleep(60)
if kind == "short":
    time.sleep(1)
run.mkdir(parents=True, exist_ok=True)
record = {"experiment": "capture", "data": "synthetic", "scale": "tiny", "train_seconds": 30.0, "config_hash": "x"}
run.joinpath("config.yaml").write_text("run: {}")
run.joinpath("metrics.json").write_text(json.dumps({**record, "val": {"mAP@10": 0.25}, "test": {"mAP@10": 0.5}}))
home.joinpath("started").open("a").write(f"{run.name} end {time.time()}\\n")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are read from and runs go."""
    (tmp_path / "ablations").mkdir()
    monkeypatch.setattr(table_rows, "HOME", tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    return tmp_path


@pytest.fixture
def write(home: Path, shards: Path) -> Callable[..., None]:
    """Write the table `mine`."""

    def write_table(rows: str = ROWS, **head: object) -> None:
        about = {"title": "Mine", "data": str(shards), "scale": "tiny", "seeds": [0, 1], **head}
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in about.items())
        (home / "ablations" / "mine.yaml").write_text(f"{text}rows:{rows}")

    return write_table


def ablate(home: Path, *words: str, **kinds: str) -> int:
    """With the stub for `fit`; a row that is named in `kinds` does as it says there."""

    def command(run: PlannedRun) -> list[str]:
        stub = [sys.executable, str(home / "stub.py"), str(run.folder.root)]
        return [*stub, kinds.get(run.labels[0], "finish"), str(home)]

    return ablate_command("", ["mine", "--runs", str(home / "runs"), *words], command)


def started(home: Path) -> list[list[str]]:
    """Run, kind and time of what the stubs noted."""
    file = home / "started"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_a_dry_run_prints_the_plan_and_starts_nothing(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert ablate(home, "--dry") == 0
    text = capsys.readouterr().out
    assert "Mine: 6 runs, 0 of them finished" in text
    assert len(re.findall(r"^  to do +(?:all|CLR, alone|MLM), seed [01] +\S+/capture-synthetic-[01]-", text, re.M)) == 6
    assert "6 to run, 1 at a time: time unknown" in text
    assert not (home / "runs").exists()


def test_the_words_of_a_run_lead_to_the_folder_that_the_table_reads(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    from experiments.config import compose
    from experiments.run_commands import _run_parser
    from experiments.runs import run_folder

    write()
    plan = plan_runs(open_table("mine"), None, home / "runs")
    assert len({run.folder.root for run in plan.runs}) == 6
    for run in plan.runs:
        assert fit_command(run)[:4] == [sys.executable, "-m", "experiments", "fit"]
        options, settings = _run_parser("fit", "").parse_known_args(run.words[1:])
        composition = compose(options.exp, options.data, options.scale, options.seed, settings)
        assert run_folder(composition, Path(options.runs)) == run.folder
        assert f"[{','.join(composition.config['model']['init_args'].get('objectives', []))}]" in (
            *("[]", "[clr]", "[mlm]"),
        )


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
    assert f"all runs of the plan are finished: make table TABLE=mine SEEDS=3 ARGS='--runs {home / 'runs'}'" in text
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


def test_an_unfinished_run_goes_on_and_its_share_is_told(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("\n  - {label: all, set: {trainer.max_steps: 100}}", seeds=[0, 1])
    assert ablate(home, "--seeds", "1") == 0
    (run,) = plan_runs(open_table("mine", Choice(seeds=(0,))), None, home / "runs").runs
    write_text(run.folder.last, "")
    write_text(run.folder.history, '{"step": 0, "val/mAP@10": 0.1}\n{"step": 49, "val/mAP@10": 0.2}\n{"step": 60}\n')
    capsys.readouterr()
    assert ablate(home, "--dry") == 0
    text = capsys.readouterr().out
    assert re.search(r"  goes on   all, seed 0  \S+  \(after step 50 of 100, about 15 s\)", text)
    assert re.search(r"  finished  all, seed 1  \S+\n", text)
    write_text(run.folder.root / "run.lock", "elsewhere 12\n")
    assert ablate(home, "--dry") == 0
    assert re.search(r"  in use    all, seed 0", capsys.readouterr().out)


def test_rows_of_the_same_run_are_told_and_run_once(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        "\n  - {label: a}\n  - {label: b, set: {model.objectives: [mlm, mrm, clr]}}\n  - {label: c, set: {model.lr: 1}}"
    )
    assert ablate(home, "--seeds", "0") == 0
    text = capsys.readouterr().out
    assert "Mine [seeds 0]: 2 runs" in text
    assert re.search(r"a and b are the same run with seed 0, run once: \S+/capture-synthetic-0-\w+", text)
    assert len(started(home)) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "\n  - {label: a}\n  - {label: b, set: {model.lrr: 1}}",
            r"row 'b': unknown key model\.lrr: did you mean 'lr'",
        ),
        (
            "\n  - {label: a}\n  - {label: b, set: {model.width: wide}}",
            r"row 'b': model\.width expects int, got 'wide'",
        ),
        ("\n  - {label: b, set: {model.objectives: clr}}", r"model\.objectives expects list\[str\].*write \[clr\]"),
        ("\n  - {label: b, experiment: captur}", r"row 'b': unknown experiment 'captur': did you mean 'capture'"),
        ("\n  - {label: b, experiment: detector}", r"row 'b': detector: detection has no retrieval metrics"),
        ("\n  - {label: b, scale: tinny}", r"row 'b': unknown scale 'tinny'"),
        ("\n  - {label: b, data: nowhere}", r"row 'b': unknown data set 'nowhere'"),
        ("\n  - {label: b, set: [model.lr]}", r"b: set: expected keys and values"),
        ("\n  - {label: b, seeds: 3}", r"b: seeds: expected a list of different numbers of 0 or more, got 3"),
        ("\n  - {label: b, seeds: [1, 1]}", r"b: seeds: expected a list of different numbers"),
        ("\n  - {label: b}\n  - {label: b}", r"two rows are called 'b'"),
        ("\n  - {label: a, set: {model.x: 1}}\n  - {label: b, set: {model.y: 1}}", r"row 'a': .*; row 'b': .*y"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry"], ["--rows", "a"]])
def test_a_wrong_row_is_told_before_any_starts(
    home: Path, write: Callable[..., None], rows: str, message: str, more: list[str]
) -> None:
    if more == ["--rows", "a"] and "label: a" not in rows:
        more = []
    write(rows)
    with pytest.raises(UsageError, match=rf"mine\.yaml: .*{message}"):
        ablate(home, *more)
    assert not started(home)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], "--seeds 0,x: 'x' is no seed"),
        (["--seeds", "-1"], "seed"),
        (["--seeds", "1,1"], "given twice"),
        (["--rows", "CLR"], "mine has no row 'CLR': known: CLR, alone, MLM, all"),
        (["--jobs", "0"], "at least 1"),
        (["--jobs", "two"], "invalid int value"),
        (["--sede", "1"], "unknown argument '--sede': did you mean '--seeds'"),
    ],
)
def test_wrong_words_are_answered(home: Path, write: Callable[..., None], words: list[str], message: str) -> None:
    write()
    with pytest.raises(UsageError, match=re.escape(message)):
        ablate(home, *words)


def test_labels_may_have_commas(home: Path, write: Callable[..., None]) -> None:
    write()
    table = open_table("mine")
    assert choose_rows(table, "MLM,CLR, alone,all") == ["MLM", "CLR, alone", "all"]
    assert choose_rows(table, None) is None


def test_what_the_command_chooses_replaces_the_files_and_its_rows_own(
    home: Path, write: Callable[..., None], shards: Path
) -> None:
    write("\n  - {label: a, data: nowhere, scale: small, seeds: [7]}\n  - {label: b, set: {model.lr: 1}}")
    plan = plan_runs(open_table("mine", Choice(str(shards), "tiny", (2,))), None, home)
    assert [run.folder.run_id.rsplit("-", 1)[0] for run in plan.runs] == ["capture-synthetic-2"] * 2
    assert plan.table.title == f"Mine [data {shards}, scale tiny, seeds 2]"


def test_the_table_finds_the_runs_of_the_same_choice(
    home: Path, write: Callable[..., None], shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("\n  - {label: a}", data="nowhere", scale="small")
    choice = ["--data", str(shards), "--scale", "tiny", "--seeds", "4"]
    (run,) = plan_runs(open_table("mine", Choice(str(shards), "tiny", (4,))), None, home / "runs").runs
    about = {"seed": 4, "experiment": "capture", "git": {}, "hardware": {}, "command": "x", "feature": "f"}
    write_json(run.folder.metrics, {**about, "test": {"mAP@10": 0.5}})
    assert main(["table", "--table", "mine", "--runs", str(home / "runs"), *choice]) == 0
    text = capsys.readouterr().out
    assert "**a** (n = 1, seed 4;" in text
    assert f"### Mine [data {shards}, scale tiny, seeds 4]" in text
    assert main(["table", "--data", "x", str(run.folder.root)]) == 2
    assert "only a table's file has other runs" in capsys.readouterr().err


# A parent with two stubs that wait, to be stopped from outside.
PARENT = """
import sys
from pathlib import Path
from experiments import table_rows
from tests.experiments.test_ablate import ablate
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
    assert {name for name, kind, _ in started(home)[before:] if kind == "finish"} >= {started(home)[0][0]}
    assert len({name for name, kind, _ in started(home) if kind == "end"}) == 3


def test_a_job_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import run_pool

    monkeypatch.setattr(run_pool, "GRACE_SECONDS", 1.0)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    output, ends = tmp_path / "a.txt", []

    def stop_all(number: int) -> None:
        signal.setitimer(signal.ITIMER_REAL, 2)

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        job = Job([sys.executable, "-c", deaf], output)
        assert run_jobs([job, job], 1, stop_all, lambda number, end: ends.append((number, end))) == signal.SIGTERM
    finally:
        signal.signal(signal.SIGALRM, before)
    ((number, end),) = ends
    assert (number, end.code, end.stopped) == (0, -signal.SIGKILL, True)
    assert output.read_text() == "deaf\n"


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


def test_the_plan_and_its_errors_are_light(home: Path, write: Callable[..., None]) -> None:
    write()
    code = (
        "import sys\nfrom pathlib import Path\nfrom experiments import table_rows\nfrom experiments.cli import main\n"
        "table_rows.HOME = Path(sys.argv[1])\nassert main(['ablate', *sys.argv[2:]]) in (0, 2)\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)\n"
    )
    for words in (["mine", "--dry"], ["mine", "--rows", "x"], ["my"], []):
        words = [sys.executable, "-c", code, str(home), *words]
        start = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - start < 10  # 0.5 s on an idle machine


@pytest.mark.slow
def test_a_small_table_from_its_runs_to_its_text(
    home: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two real trainings, one of which cannot be built; then the same again with the row mended."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = {word[2:].partition("=")[0]: word.partition("=")[2] for word in SMALL}
    shared = "".join(f", {key}: {value}" for key, value in settings.items())
    rows = f"\n  - {{label: all, set: {{model.dropout: 0.1{shared}}}}}\n"
    rows += f"  - {{label: broken, set: {{model.objectives: [clrr]{shared}}}}}\n"
    write(rows, seeds=[0])
    words = ["ablate", "mine", "--runs", str(home / "runs")]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert re.search(r"\[1/2\] finished  all, seed 0  val/mAP@10 0\.\d{4}  test/mAP@10 0\.\d{4}  trained", text)
    assert re.search(r"broken, seed 0: error: .*clrr", text)
    write(rows.replace("clrr", "clr"), seeds=[0])
    assert main([*words, "--jobs", "2"]) == 0
    assert "2 runs, 1 of them finished" in capsys.readouterr().out
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
    assert re.search(r"started   all, seed 0 .*\(after step \d+ of 60\)", again.stdout)
    assert "going on from" in (run / "log.txt").read_text()
    assert json.loads((run / "metrics.json").read_text())["steps"] == 60
