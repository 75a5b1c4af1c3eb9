"""A run on two processes, and its checkpoint evaluated on one: the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments.conftest import fit_words

ROOT = Path(__file__).parents[2]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "experiments", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=500)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("experiment", ["capture", "uniter"])  # the latter trains one objective per step
def test_two_processes_write_one_run_that_one_process_reproduces(experiment: str, shards: Path, tmp_path: Path) -> None:
    words = fit_words(shards, tmp_path, "--trainer.devices=2", "--trainer.strategy=ddp")
    if experiment != "capture":
        of_capture = ("--model.text_ffn", "--model.image_ffn", "--model.cross_width")
        words = [word for word in words if not word.startswith(of_capture)]
        words[words.index("capture")] = experiment
    done = command(*words)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "metrics.json").read_text())
    assert record["hardware"]["devices"] == 2
    assert {"mAP@10", "mAR@10", "image/mAP@10", "text/mAP@10"} <= set(record["test"])
    lines = (folder / "rankings" / "test.txt").read_text().splitlines()
    assert len(lines) == len({line.split(",")[0] for line in lines}) == 12
    assert (folder / "log.txt").read_text().count("skipped samples: none") == 1

    done = command("eval", "--run", str(folder), "--trainer.devices=1", "--trainer.strategy=auto")
    assert done.returncode == 0, done.stderr
    assert "equals what training reported" in done.stdout
