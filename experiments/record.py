"""metrics.json and what lies beside it: the record of one run, complete enough to be put in a table years later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments import machine
from experiments.config import Composition, dump
from experiments.runs import RunFolder, config_hash, git_state, write_json, write_text


class Outcome(NamedTuple):
    """One evaluated model, as rank zero sees it."""

    run: RunFolder
    composition: Composition
    engine: Any  # experiments.engine.Engine
    command: str
    results: dict[str, Any]  # split -> what the task's evaluation found
    untrained: dict[str, Any] | None  # the same before training, where there was training


class Results(NamedTuple):
    """What is to be kept of one evaluated model."""

    record: dict[str, Any]  # the content of metrics.json
    write_files: Callable[[], None]  # the task's, beside it


# What an evaluation cannot know and takes over from the record of the training, and what was timed on its `hardware`.
FROM_TRAINING = (
    *("command", "steps", "parameters", "train_seconds", "skipped", "git", "hardware", "config_hash", "run_id"),
)
TIMED = ("samples_per_second", "throughput")


def assemble(outcome: Outcome, training: dict[str, Any]) -> Results:
    """Put the results together; nothing is written yet. Rank zero's numbers, any rank may call.

    Args:
        training: What the training said about itself (`FROM_TRAINING`, `TIMED`, what the task needs); may be empty.
    """
    from experiments.progress import trained_parameters

    composition, engine = outcome.composition, outcome.engine
    record: dict[str, Any] = {
        "run_id": outcome.run.run_id,
        "experiment": composition.experiment,
        "data": composition.data.name,
        "data_hash": composition.data.data_hash,
        "scale": composition.scale,
        "seed": composition.seed,
        "git": git_state(),
        "config_hash": config_hash(composition),
        "task": composition.task.name,
        "metric_version": composition.task.metric_version,
        "command": outcome.command,
        "hardware": hardware(engine.trainer),
        "steps": 0,
        "parameters": trained_parameters(engine.model),
        "train_seconds": 0.0,
        "samples_per_second": None,
        "throughput": {},
        "skipped": {f"build/{reason}": n for reason, n in composition.data.skipped().items()},
    }
    record |= {key: training[key] for key in (*FROM_TRAINING, *TIMED) if key in training}
    if composition.region_set_hash is not None:
        name = composition.config["data"]["init_args"]["region_set"]
        record["region_set"] = {"name": name, "hash": composition.region_set_hash}
    return Results(record, composition.task.add_results(record, outcome, training))


def write_results(run: RunFolder, results: Results) -> None:
    """metrics.json last: a run folder that has it is complete."""
    results.write_files()
    write_json(run.metrics, results.record)


def write_config(run: RunFolder, composition: Composition, config: dict[str, Any]) -> None:
    """config.yaml: every value of the run, and under `run` what it is called. Rank zero only writes."""
    if machine.rank() == 0:
        about = {
            "experiment": composition.experiment,
            "task": composition.task.name,
            "scale": composition.scale,
            "data": composition.data.name,
            "data_hash": composition.data.data_hash,
            "layers": list(composition.layers),
        }
        if composition.region_set_hash is not None:
            about["region_set_hash"] = composition.region_set_hash
        write_text(run.config, dump({"run": about, **config}))


def recorded_run(run: RunFolder) -> dict[str, Any]:
    """The `run` part of a run folder's config.yaml."""
    import yaml

    return dict(yaml.safe_load(run.config.read_text(encoding="utf-8"))["run"])


def hardware(trainer: Any) -> dict[str, Any]:
    """The machine and what of it the trainer used."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return machine.describe() | {
        "gpus": gpus,
        "accelerator": type(trainer.accelerator).__name__,
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "torch": torch.__version__,
    }
