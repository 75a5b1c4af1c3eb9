"""Starts trainings that fail, and compares what is left of them with trainings that did not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.history import read_history
from tests.experiments.interruption import check_same_weights

ROOT = Path(__file__).parents[2]
MEASURED = ("throughput/", "graph/seconds")  # by a clock


def drilled(words: list[str], **drill: Any) -> subprocess.CompletedProcess[str]:
    """`drilled_fit.py` with these words, in a process group of its own."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"DRILL": json.dumps(drill, default=str)}
    line = [
        sys.executable,
        str(ROOT / "tests/experiments/drilled_fit.py"),
        *words,
        "--trainer.enable_progress_bar=false",
    ]
    return subprocess.run(
        line,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
        timeout=550,
        start_new_session=True,
    )


def curves(run: Path) -> list[dict[str, float]]:
    """All logged numbers in order, but for those that a clock measures."""
    rows = [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_history(run / "history.jsonl")
    ]
    return [row for row in rows if len(row) > 1]


def samples(folder: Path) -> dict[str, dict[int, list[int]]]:
    """Rank -> step -> rows of the batch; a step that was made twice has to have had the same both times."""
    found: dict[str, dict[int, list[int]]] = {}
    for file in folder.glob("*.jsonl"):
        steps = found.setdefault(file.stem, {})
        for line in file.read_text().splitlines():
            step, rows = json.loads(line)
            assert steps.setdefault(step, rows) == rows, f"step {step} of rank {file.stem}"
    return found


def check_same_run(run: Path, other: Path) -> None:
    """Weights, all logged numbers and the final metrics of two runs are equal to the bit."""
    check_same_weights(run, other)
    assert curves(run) == curves(other)
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (run, other)]
    for key in ("run_id", "steps", "val", "test", "skipped"):
        assert records[0][key] == records[1][key], key
