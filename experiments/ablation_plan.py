"""What there is to run of a table: rows × seeds, checked and looked up before the first starts. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from experiments import machine
from experiments.cli import is_user_error, one_line
from experiments.config import Composition
from experiments.errors import UsageError
from experiments.history import read_history
from experiments.run_lock import check_free
from experiments.runs import RunFolder, config_hash, run_folder
from experiments.table_rows import TableFile, compose_row, row_settings
from experiments.tested_step import check_choice

LABELS_SHOWN = 2  # of a run that stands in several rows
FINISHED, GOES_ON, IN_USE, TO_DO = "finished", "goes on", "in use", "to do"
RECORDED = "recorded"  # finished, by what the repository keeps of it
QUIET = "--trainer.enable_progress_bar=false"  # no part of a run's identity; nobody watches the bars of several runs


class PlannedRun(NamedTuple):
    """One run, and the rows it stands in."""

    labels: list[str]  # of the rows; several where they resolve to the same run
    seed: int
    folder: RunFolder
    words: list[str]  # of the command line that makes it, after `python -m experiments`
    state: str  # FINISHED, RECORDED, GOES_ON, IN_USE or TO_DO
    step: int  # the last one evaluated so far
    max_steps: int | None
    seconds: float | None  # expected from here on; None: nothing to go by

    @property
    def name(self) -> str:
        """As a reader of the table knows it."""
        rest = len(self.labels) - LABELS_SHOWN
        labels = " = ".join(self.labels[:LABELS_SHOWN]) + (f" and {rest} more rows" if rest > 0 else "")
        return f"{labels}, seed {self.seed}"


class AblationPlan(NamedTuple):
    """All runs of a table, each once."""

    table: TableFile
    runs: list[PlannedRun]

    @property
    def missing(self) -> list[PlannedRun]:
        """Those to start or to go on with."""
        return [run for run in self.runs if run.state not in (FINISHED, RECORDED)]

    @property
    def shared(self) -> list[PlannedRun]:
        """Those that several rows resolve to, unless these show different features of it."""
        features = {str(entry["label"]): entry.get("feature") for entry in self.table.entries}
        return [run for run in self.runs if len({features[label] for label in run.labels}) < len(run.labels)]


def plan_runs(
    table: TableFile,
    labels: Sequence[str] | None,
    home: Path,
    check_machine: bool = True,
    recorded: Path | None = None,
) -> AblationPlan:
    """Compose every chosen row with each of its seeds, and look up what is there already.

    Args:
        labels: Rows wanted; None: all. Rows that are not wanted are checked all the same.
        home: Where run folders are.
        check_machine: Also refuse devices that are not there.
        recorded: Where else finished runs count.

    Raises:
        UsageError: Naming every row that is wrong: an unknown key, a value of the wrong type, missing shards.
    """
    composed: list[tuple[dict[str, Any], Composition]] = []
    problems: dict[str, list[str]] = {}
    for entry in table.entries:
        label = str(entry["label"])
        for seed in entry["seeds"]:
            try:
                composition = compose_row(entry, int(seed))
                if check_machine:
                    machine.check_devices(composition.config["trainer"])
                check_choice(composition)
            except Exception as problem:
                if not is_user_error(problem):
                    raise
                problems.setdefault(one_line(problem).rstrip("."), []).append(label)
                break  # another seed would say it again
            if labels is None or label in labels:
                composed.append((entry, composition))
    if problems:
        told = "; ".join(f"{name_rows(labels)}: {problem}" for problem, labels in problems.items())
        raise UsageError(f"{table.file}: {told}; nothing was started")
    return AblationPlan(table, _once_each(composed, home, recorded, table.file.stem))


def name_rows(labels: Sequence[str]) -> str:
    """For messages: `row 'a'`, `rows 'a', 'b'`."""
    return f"row{'s' if len(labels) > 1 else ''} {', '.join(map(repr, labels))}"


def _once_each(
    composed: Sequence[tuple[dict[str, Any], Composition]], home: Path, recorded: Path | None, table: str
) -> list[PlannedRun]:
    """The runs in the order of the table, a run that several rows resolve to with all their labels."""
    found: dict[Path, PlannedRun] = {}
    past = _finished_runs(home)
    for entry, composition in composed:
        folder = run_folder(composition, home)
        label = str(entry["label"])
        if folder.root in found:
            found[folder.root].labels.append(label)
            continue
        state, step = _state(folder)
        if recorded and state != FINISHED and RunFolder(recorded / folder.run_id).finished():
            state, step = RECORDED, 0
        steps = composition.config["trainer"].get("max_steps")
        seconds = _expected_seconds(composition, past)
        if seconds is not None and steps and steps > 0:
            seconds *= max(0.0, 1 - step / steps)
        words = ["fit", "--exp", composition.experiment, "--data", str(entry["data"]), "--scale", composition.scale]
        words += ["--seed", str(composition.seed), "--runs", str(home), "--table", table, QUIET, *row_settings(entry)]
        found[folder.root] = PlannedRun([label], composition.seed, folder, words, state, step, steps, seconds)
    return list(found.values())


def _state(folder: RunFolder) -> tuple[str, int]:
    """How far a run is, and the step it goes on after."""
    with suppress(UsageError):  # a metrics.json that is damaged is written again by the run's own command
        if folder.finished():
            return FINISHED, 0
    evaluated = [int(row["step"]) for row in read_history(folder.history) if any(key.startswith("val/") for key in row)]
    last = max(evaluated, default=0) if folder.last.is_file() else 0
    step = last + 1 if last else 0  # curves count from 0
    try:
        check_free(folder)
    except UsageError:
        return IN_USE, step
    return (GOES_ON if folder.last.is_file() else TO_DO), step


def _finished_runs(home: Path) -> list[dict[str, Any]]:
    """The records of all trainings below `home`; unreadable ones are nothing to go by."""
    found = []
    for file in sorted(home.glob("*/metrics.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("train_seconds") and "test" in record:
            found.append(record)
    return found


def _expected_seconds(composition: Composition, past: Sequence[dict[str, Any]]) -> float | None:
    """Mean training time of finished runs of the same settings, else of the same experiment, scale and data, for as
    many steps."""
    about = {"experiment": composition.experiment, "scale": composition.scale, "data": composition.data.name}
    alike = [record for record in past if all(record.get(key) == value for key, value in about.items())]
    same = [record for record in alike if record.get("config_hash") == config_hash(composition)]
    times = [float(record["train_seconds"]) * _share(composition, record) for record in same or alike]
    return fmean(times) if times else None


def _share(composition: Composition, record: dict[str, Any]) -> float:
    """Of the recorded run's steps, those to be made; 1 where either does not say."""
    steps, past = composition.config["trainer"].get("max_steps"), record.get("steps")
    return steps / past if steps and steps > 0 and past else 1.0
