"""The runs of a table as jobs: what is submitted to Slurm, what is refused, and jobs of submitit's local executor."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.errors import UsageError
from experiments.history import read_history
from tests.experiments.ablation_stub import ablate, started
from tests.experiments.conftest import SMALL
from tests.experiments.fake_slurm import FakeSlurm

SLURM = ("--launch", "slurm", "--cluster", "time_min=240")
TWO_ROWS = """
  - {label: all}
  - {label: MLM, set: {model.objectives: [mlm]}}
"""


@pytest.fixture
def slurm(home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SUBMITIT_EXECUTOR"):
        monkeypatch.delenv(name, raising=False)
    return FakeSlurm(home / "slurm", monkeypatch)


def test_a_table_is_one_array_with_what_the_cluster_was_asked_for(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    (home / "cluster.yaml").write_text(
        "partition: gpu\naccount: 12\ntime_min: 30\nmem_gb: 64\ncpus_per_task: 8\ngpus_per_node: 4\nnodes: 2\n"
        "tasks_per_node: 4\nsignal_delay_s: 60\nsetup: [module load cuda]\nadditional_parameters: {reservation: mine}\n"
    )
    words = ["--launch", "slurm", "--cluster", str(home / "cluster.yaml"), "--cluster", "time_min=240", "--jobs", "2"]
    assert ablate(home, *words) == 0
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", slurm.script, re.M))
    expected = {"partition": "gpu", "account": "12", "time": "240", "mem": "64GB", "cpus-per-task": "8", "nodes": "2"}
    expected |= {"gpus-per-node": "4", "ntasks-per-node": "4", "signal": "USR2@60", "array": "0-5%2"}
    expected |= {"reservation": "mine", "job-name": "mine"}
    assert {key: asked.get(key) for key in expected} == expected
    assert "module load cuda" in slurm.script
    assert len(slurm.calls("sbatch")) == 1
    assert not started(home)
    assert Path(asked["output"]).parent == home / "runs" / "cluster" / "mine"
    text = capsys.readouterr().out
    assert re.search(r"submitted  MLM, seed 1: job 471_5  \S+/capture-synthetic-1-\w+", text)
    assert "squeue --jobs 471" in text
    assert "scancel 471" in text


def test_what_is_queued_or_running_is_not_submitted_again(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO_ROWS)
    assert ablate(home, *SLURM) == 0
    slurm.queue("471_0 RUNNING\n471_1 PENDING\n471_2 PENDING\n471_3 COMPLETING\n9 RUNNING\n")
    capsys.readouterr()
    assert ablate(home, *SLURM) == 0
    text = capsys.readouterr().out
    assert "all, seed 0: job 471_0 is running" in text
    assert "all, seed 1: job 471_1 is pending" in text
    assert len(slurm.calls("sbatch")) == 1
    slurm.queue("471_1 RUNNING\n")
    assert ablate(home, *SLURM) == 0
    assert len(slurm.calls("sbatch")) == 2
    assert "#SBATCH --array=0-2%1" in slurm.script


def test_a_run_in_use_by_somebody_is_not_submitted(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO_ROWS, seeds=[0])
    assert ablate(home, *SLURM) == 0
    folder = Path(re.findall(r"job 471_0  (\S+)", capsys.readouterr().out)[0])
    folder.mkdir()
    (folder / "run.lock").write_text("elsewhere 12\n")
    assert ablate(home, *SLURM) == 0
    assert f"in use     all, seed 0: another process is at work on {folder}" in capsys.readouterr().out
    assert "--array" not in slurm.script  # the other one alone


def test_a_job_that_failed_is_told_with_its_last_error_and_submitted_again(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO_ROWS, seeds=[0])
    assert ablate(home, *SLURM) == 0
    run_id = Path(re.findall(r"job 471_1  (\S+)", capsys.readouterr().out)[0]).name
    output = home / "runs" / "output" / f"{run_id}.txt"
    output.parent.mkdir(exist_ok=True)
    output.write_text("step 1\nRuntimeError: CUDA out of memory\n")
    (home / "runs" / "cluster" / "mine" / "471_0_0_log.err").write_text("srun: error: the node has gone\n")
    assert ablate(home, *SLURM, "--dry") == 0
    text = capsys.readouterr().out
    assert re.search(r"ended +MLM, seed 0: job 471_1, before .*: RuntimeError: CUDA out of memory\n +\S+/output/", text)
    assert "srun: error: the node has gone" in text
    assert "2 would be submitted" in text
    assert len(slurm.calls("sbatch")) == 1
    assert ablate(home, *SLURM) == 0
    assert len(slurm.calls("sbatch")) == 2


def test_a_dry_run_says_what_a_job_would_ask_for_also_without_slurm(
    home: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO_ROWS, seeds=[0])
    monkeypatch.setenv("PATH", str(home))
    more = ["partition=gpu", "mem_gb=64", "additional_parameters={reservation: mine}"]
    assert ablate(home, *SLURM, *(word for one in more for word in ("--cluster", one)), "--jobs", "3", "--dry") == 0
    text = capsys.readouterr().out
    assert "2 would be submitted, 3 at a time, each with\n" in text
    told = dict(re.findall(r"^  (\w+) +(\S.*)$", text, re.M))
    expected = {"partition": "gpu", "mem_gb": "64", "timeout_min": "240", "array_parallelism": "3", "name": "mine"}
    assert {key: told.get(key) for key in expected} == expected
    assert "reservation" in told["additional_parameters"]
    assert "the first of them: " in text
    assert "no sbatch here" in text
    assert not (home / "runs" / "cluster").exists()


def test_when_slurm_does_not_answer_nothing_is_submitted(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(TWO_ROWS)
    assert ablate(home, *SLURM) == 0
    slurm.fails("slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(UsageError, match=r"nothing was submitted: .*Unable to contact"):
        ablate(home, *SLURM)
    (home / "runs" / "cluster" / "jobs").rename(home / "elsewhere")
    with pytest.raises(UsageError, match=r"the jobs were refused: .*Unable to contact"):
        ablate(home, *SLURM)
    assert not (home / "runs" / "cluster" / "jobs").exists()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UsageError, match="no sbatch here"):
        ablate(home, *SLURM)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--launch", "slrum"], "--launch slrum: did you mean 'slurm'"),
        (["--launch", "slurm"], "wants a time limit: --cluster time_min=240"),
        (["--cluster", "time_min=1"], "--cluster is for jobs: add --launch slurm"),
        ([*SLURM, "--cluster", "partitoin=gpu"], "unknown key 'partitoin': did you mean 'partition'"),
        ([*SLURM, "--cluster", "nodes=two"], "nodes expects int, got 'two'"),
        ([*SLURM, "--cluster", "nodes=0"], "nodes=0: should be at least 1"),
        ([*SLURM, "--cluster", "time_min=1.5"], "time_min expects int, got 1.5"),
        ([*SLURM, "--cluster", "setup=module load cuda"], "setup expects list of lines"),
        ([*SLURM, "--cluster", "nothing.yaml"], "nothing.yaml: no such file"),
        ([*SLURM, "--cluster", "time_min=2", "--cluster", "signal_delay_s=120"], "leaves nothing of time_min=2"),
        ([*SLURM, "--cluster", "mem_gb=[1"], "not readable as YAML"),
    ],
)
def test_bad_options_are_refused_before_anything_is_submitted(
    home: Path, write: Callable[..., None], slurm: FakeSlurm, words: list[str], problem: str
) -> None:
    write(TWO_ROWS)
    with pytest.raises(UsageError, match=re.escape(problem)):
        ablate(home, *words)
    assert not slurm.calls("sbatch")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


def test_jobs_of_the_local_executor_run_to_the_end(
    home: Path, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(TWO_ROWS, seeds=[0])
    words = ["--launch", "local", "--cluster", "time_min=10"]
    assert ablate(home, *words, MLM="fail") == 0
    jobs = home / "runs" / "cluster" / "jobs"
    assert {json.loads(file.read_text())["launch"] for file in jobs.iterdir()} == {"local"}
    wait_for(lambda: len(list(home.glob("runs/cluster/mine/*_result.pkl"))) == 2)
    wait_for(lambda: "running" not in _again(home, words, capsys))
    text = _again(home, words, capsys)
    assert "2 runs, 1 of them finished" in text
    assert re.search(r"ended +MLM, seed 0: job \d+, .*: ValueError: no such thing in capture-synthetic-0-", text)
    assert sorted(kind for _, kind, _ in started(home)) == ["end", "fail", "finish"]


@pytest.mark.parametrize("told", ["training", "job"])
def test_a_job_that_is_told_to_stop_goes_on_as_the_same_job(home: Path, write: Callable[..., None], told: str) -> None:
    """The training alone by a signal that submitit takes no notice of, or submitit by its own, which tells it."""
    write("\n  - {label: all}", seeds=[0])
    assert ablate(home, "--launch", "local", "--cluster", "time_min=10", all="told") == 0
    wait_for(lambda: (home / "waiting").exists())
    training, job = (int(word) for word in (home / "waiting").read_text().split())
    os.kill(*((training, signal.SIGTERM) if told == "training" else (job, signal.SIGUSR2)))
    wait_for(lambda: len(list(home.glob("runs/cluster/mine/*_result.pkl"))) == 1)
    assert [kind for _, kind, _ in started(home)] == ["told", "told", "end"]
    (log,) = home.glob("runs/cluster/mine/*_log.err")
    assert "Requeued job" in log.with_suffix(".out").read_text() + log.read_text()


@pytest.mark.slow
def test_a_real_training_as_a_job_is_stopped_and_goes_on_as_the_same_job(
    home: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = {word[2:].partition("=")[0]: word.partition("=")[2] for word in SMALL}
    settings |= {"trainer.max_steps": "60", "data.steps_per_epoch": "30", "trainer.log_every_n_steps": "1"}
    write(
        f"\n  - {{label: all, set: {{{', '.join(f'{key}: {value}' for key, value in settings.items())}}}}}", seeds=[0]
    )
    words = ["ablate", "mine", "--runs", str(home / "runs"), "--launch", "local", "--cluster", "time_min=10"]
    assert main(words) == 0
    wait_for(lambda: any("34" in file.read_text() for file in home.glob("runs/capture-*/history.jsonl")))
    (run,) = home.glob("runs/capture-*")
    os.kill(int((run / "run.lock").read_text().split()[1]), signal.SIGTERM)
    wait_for(lambda: (run / "metrics.json").exists())
    log = (run / "log.txt").read_text()
    assert "going on from" in log
    rows = [row for row in read_history(run / "history.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(60))
    wait_for(lambda: len(list(home.glob("runs/cluster/mine/*_result.pkl"))) == 1)
    capsys.readouterr()
    assert main(words) == 0
    assert "1 runs, 1 of them finished" in capsys.readouterr().out


def _again(home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert ablate(home, *words, "--dry") == 0
    return capsys.readouterr().out
