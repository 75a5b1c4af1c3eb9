"""A table of three rows, and a process that stands in for the training of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.ablate import ablate_command
from experiments.ablation_plan import PlannedRun

ROOT = Path(__file__).parents[2]
ROWS = """
  - {label: all}
  - {label: "CLR, alone", set: {model.objectives: [clr]}}
  - {label: MLM, set: {model.objectives: [mlm]}}
"""
# Stands in for `fit`: notes that it was there, and leaves what a finished run leaves.
STUB = """
import json, os, pathlib, signal, sys, time
run, kind, home = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
home.joinpath("started").open("a").write(f"{run.name} {kind} {time.time()}\\n")
print("some words of a training", flush=True)
if kind == "fail":
    raise ValueError(f"no such thing in {run.name}")
if kind == "kill":
    os.kill(os.getpid(), 9)
if kind == "wait":
    time.sleep(60)
waiting = home.joinpath("waiting")
if kind == "told" and not waiting.exists():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(75))
    home.joinpath("new").write_text(f"{os.getpid()} {os.getppid()}")
    home.joinpath("new").rename(waiting)
    time.sleep(60)
if kind == "short":
    time.sleep(1)
run.mkdir(parents=True, exist_ok=True)
record = {"experiment": "capture", "data": "synthetic", "scale": "tiny", "train_seconds": 30.0, "config_hash": "x"}
run.joinpath("config.yaml").write_text("run: {}")
run.joinpath("metrics.json").write_text(json.dumps({**record, "val": {"mAP@10": 0.25}, "test": {"mAP@10": 0.5}}))
home.joinpath("started").open("a").write(f"{run.name} end {time.time()}\\n")
"""


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
