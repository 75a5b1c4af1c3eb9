"""What only the classes themselves can say of a table's rows: values of the right type that no model takes.

It builds each row's model once, which wants torch, so it is a process of its own: `ablate` starts it before the first
run and stays light itself. Without weights from files, on the CPU: a login node has no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablation_plan import PlannedRun, name_rows
from experiments.config import HOME
from experiments.errors import UsageError, nearest
from experiments.table_rows import TableFile, compose_row

WEIGHTS = ("weights", "text_weights", "image_weights", "backbone_weights")
HERE = {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}
HERE |= {"trainer.precision": "32-true", "trainer.logger": False}


def check_rows(table: TableFile, runs: Sequence[PlannedRun]) -> None:
    """Build what the given runs would build.

    Raises:
        UsageError: Naming every row that cannot be built, or whose retrieval feature its model has not. A row whose
            building breaks down in any other way is left to its own run, which will tell more.
    """
    labels = {label for run in runs for label in run.labels}
    entries = [entry for entry in table.entries if str(entry["label"]) in labels]
    # In the present folder, so that shards are found; the package is where this file lies.
    start = f"import sys; sys.path.insert(0, {str(HOME.parent)!r}); from experiments.row_check import main; main()"
    words = [sys.executable, "-c", start]
    done = subprocess.run(words, input=json.dumps(entries), capture_output=True, text=True, check=False)
    try:
        problems: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return  # it broke down; the runs will say how
    if problems:
        told = "; ".join(f"{name_rows(rows)}: {problem}" for problem, rows in problems.items())
        raise UsageError(f"{table.file}: {told}; nothing was started")


def main() -> None:
    """The process: entries as JSON in, the rows of each problem as JSON in the last line out."""
    problems: dict[str, list[str]] = {}
    built: dict[str, set[str]] = {}  # rows that differ in their retrieval feature alone have one model
    for entry in json.load(sys.stdin):
        problem = _problem(entry, built)
        if problem:
            problems.setdefault(problem, []).append(str(entry["label"]))
    print("\n" + json.dumps(problems))


def _problem(entry: dict[str, Any], built: dict[str, set[str]]) -> str | None:
    from experiments.cli import is_user_error, one_line

    what = json.dumps([entry["experiment"], entry["data"], entry["scale"], entry.get("set")], sort_keys=True)
    try:
        known = built[what] = built.get(what) or _features(_build(entry))
    except Exception as problem:
        return one_line(problem).rstrip(".") if is_user_error(problem) else None
    for key in ("feature", "own_feature"):
        if entry.get(key) and entry[key] not in known:
            return f"{key} {entry[key]}: {nearest(str(entry[key]), known)}"
    return None


def _features(model: Any) -> set[str]:
    """All that its product embedding, and one modality alone, can be."""
    return {*model.candidate_features, *(name for names in model.modalities.values() for name in names)}


def _build(entry: dict[str, Any]) -> Any:
    from experiments import config, schema
    from experiments.engine import build
    from experiments.runs import run_folder

    own = entry.get("set") or {}
    known = schema.signature(config.classes_of(str(entry["experiment"]))["model"])
    light = {**HERE, **{f"model.{name}": None for name in WEIGHTS if name in known}}
    settings = {**light, **{key: own[key] for key in own if key not in HERE}}
    composition = compose_row({**entry, "set": settings}, int(entry["seeds"][0]))
    engine = build(composition, run_folder(composition, Path("runs")))
    engine.model.check_training(engine.trainer, engine.data.batch_size)
    return engine.model
