"""The scripts to copy: they parse, ask for what going on needs, and start what they say."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from experiments.cluster.options import read_options
from tests.experiments.fake_slurm import FakeSlurm

SCRIPTS = Path(__file__).parents[2] / "scripts"
BATCH = sorted(SCRIPTS.glob("*.sbatch"))


def bash(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    more = os.environ | environment
    return subprocess.run(["bash", *words], capture_output=True, text=True, env=more, check=False)


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.s*")), ids=lambda path: path.name)
def test_they_parse(script: Path) -> None:
    done = bash("-n", str(script))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_a_job_is_warned_and_queued_again_with_its_log_kept(script: Path) -> None:
    options = set(re.findall(r"^#SBATCH (--\S+)", script.read_text(), re.M))
    assert {"--requeue", "--signal=SIGUSR1@120", "--open-mode=append"} <= options
    assert any(option.startswith("--ntasks-per-node=") for option in options)  # Lightning wants it


def test_they_start_a_training_under_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = FakeSlurm(tmp_path / "slurm", monkeypatch)
    job = {"SLURM_SUBMIT_DIR": str(SCRIPTS.parent), "SLURM_ARRAY_TASK_ID": "4", "PYTHON": "python"}
    for script in ("train.sbatch", "seeds.sbatch"):
        done = bash(str(SCRIPTS / script), "--exp", "clip", "--data", "a folder", **job)
        assert done.returncode == 0, done.stderr
    assert scheduler.calls("srun") == [
        "srun python -m experiments fit --exp clip --data a folder",
        "srun python -m experiments fit --seed 4 --exp clip --data a folder",
    ]


def test_several_nodes_without_a_meeting_point_are_refused() -> None:
    done = bash(str(SCRIPTS / "train_torchrun.sh"), NODES="2", PYTHON="false")
    assert done.returncode == 2
    assert "NODES=2 wants HEAD=" in done.stderr


def test_the_example_of_a_cluster_is_read() -> None:
    assert read_options([str(SCRIPTS / "cluster.yaml")], "slurm").gpus_per_node == 1
