"""Weights & Biases: online with an account, offline without, never in the way.

W&B mirrors what metrics.json records. A missing, broken, hanging or unreachable W&B costs the mirror, not the run:
every call is guarded and says so once. How to use it: docs/wandb.md.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datamodules.redaction import redacted
from experiments.config import Composition
from experiments.machine import rank
from experiments.output import say
from experiments.runs import RunFolder, config_hash, git_state, run_folder
from experiments.tasks import task_of
from experiments.wandb_labels import Labels, labels_of
from experiments.wandb_segments import STEP, segments, told_already, trim

PROJECT = "instance-product-retrieval"
FINISH_SECONDS = 600.0  # the longest wait for an upload; what is not up by then is on disk, for `wandb sync`
GRACE_SECONDS = 30.0  # W&B gives up by itself after the former, if it still can
JobType = Literal["training", "evaluation", "table"]
COSTS = ("steps", "parameters", "train_seconds", "samples_per_second", "embedding_ms_per_item", "unscorable")


def open_logger(
    run: RunFolder,
    composition: Composition,
    step: int | None = None,
    made_for: str | None = None,
    job_type: JobType = "training",
) -> list[Any]:
    """A Lightning logger for the run, in a list; the empty list where W&B is off or broken, and on ranks but zero.

    The run id is W&B's id, so an interrupted run goes on under the same name; files go below the run folder.
    WANDB_MODE, WANDB_PROJECT and what else W&B reads are honoured; without an account the mode is offline.

    Args:
        step: Steps that the checkpoint has from which training goes on; None: it starts afresh, and takes the place of
            what W&B has under this id.
        made_for: The table whose `ablate` started the run.
    """
    if not _wanted() or composition.config["trainer"].get("logger") is False:
        return []
    try:
        told = _prepare(run, step)
        own = run_folder(composition, run.root.parent) == run  # an evaluation of other weights is in no table's row
        labels = labels_of(composition, made_for) if own else Labels(None, (f"seed {composition.seed}",))
        experiment = start(run.root, run.run_id, labels, job_type, settings_of(composition), resume=step is not None)
        experiment.define_metric("*", step_metric=STEP)
        from experiments.wandb_mirror import Mirror

        return [Mirror(experiment, told)]
    except Exception as problem:  # whatever a broken wheel, a full disk or a lost connection raises
        say(f"W&B is left out, it does not start: {first_line(problem)}")
        return []


def start(
    folder: Path, run_id: str, labels: Labels, job_type: JobType, config: Mapping[str, Any], resume: bool = False
) -> Any:
    """A run of W&B's; offline where there is no account or the server does not answer.

    Within a sweep the id is the sweep's, and the run's own its name.
    """
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
    folder.mkdir(parents=True, exist_ok=True)
    # Started here, where a failure can still be survived, and not by WandbLogger(offline=True), which would set
    # WANDB_MODE for the whole process.
    arguments: dict[str, Any] = {
        "dir": str(folder),
        "id": os.environ.get("WANDB_RUN_ID", run_id) if "WANDB_SWEEP_ID" in os.environ else run_id,
        "name": run_id,
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "group": os.environ.get("WANDB_RUN_GROUP", labels.group),
        "job_type": job_type,
        "tags": labels.tags,
        # Also offline: W&B notes it, and appends such a segment when it is synced.
        "resume": "allow" if resume else None,
        "config": dict(config),
        # No git: W&B would take the uncommitted changes along. Commit and whether there are any stand in `config`.
        "settings": wandb.Settings(silent=True, console="off", disable_git=True, finish_timeout=FINISH_SECONDS),
    }
    try:
        experiment = wandb.init(mode=mode, **arguments)
    except Exception as problem:
        if mode != "online":
            raise
        mode = "offline"
        say(f"W&B does not answer, so the run is logged offline: {first_line(problem)}")
        experiment = wandb.init(mode=mode, **arguments)
    if mode == "offline":
        say(f"W&B: offline, no account needed; upload later with `make sync RUN={folder}`")
    return experiment


def settings_of(composition: Composition) -> dict[str, Any]:
    """The configuration by the keys of the command line (`model.lr`), and what else decides a run's numbers.

    Folders stay at home: data are told by name and hash.
    """
    about: dict[str, Any] = {
        "experiment": composition.experiment,
        "task": composition.task.name,
        "metric_version": composition.task.metric_version,
        "scale": composition.scale,
        "seed": composition.seed,
        "data": composition.data.name,
        "data_hash": composition.data.data_hash,
        "region_set_hash": composition.region_set_hash,
        "config_hash": config_hash(composition),
        **{f"git.{key}": value for key, value in git_state().items()},
    }
    for section, values in composition.config.items():
        if section in ("model", "data"):
            about[f"{section}.class"] = values["class_path"].rpartition(".")[2]
            values = values.get("init_args", {})
        if isinstance(values, dict):
            about |= {f"{section}.{key}": _without_folders(value) for key, value in values.items()}
    about.pop("data.folder", None)
    return about


def _without_folders(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return os.path.basename(value) if os.path.isabs(value) else redacted(value)


def _prepare(run: RunFolder, step: int | None) -> set[tuple[int, str]]:
    """Cut what training is about to repeat off the segments on disk; of what the server has, what must not be told."""
    if step is None:
        return set()
    earlier = segments(run.root)
    for segment in earlier:
        if not segment.uploaded:
            trim(segment, step)
    return told_already(earlier, step)


def log_record(loggers: Sequence[Any], record: Mapping[str, Any]) -> None:
    """The numbers of metrics.json as the run's summary: those of the checkpoint that was tested, not the last ones."""
    summary = summary_of(record)

    def tell(experiment: Any) -> None:
        experiment.summary.update(summary)
        if "parameters" in summary:  # those that are trained are known only after training has been set up
            experiment.config.update({"parameters": summary["parameters"]})

    for experiment in experiments_of(loggers):
        guarded("takes no summary", partial(tell, experiment))


def summary_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Flat keys: `test/mAP@10`, `test/floor/tfidf/mAP@10`, `val/…`, and what the run cost."""
    found: dict[str, float] = {key: record[key] for key in COSTS if record.get(key) is not None}
    for split in task_of(record).splits:
        found |= {f"{split}/{key}": value for key, value in record.get(split, {}).items()}
        for floor, metrics in record.get("floors", {}).get(split, {}).items():
            found |= {f"{split}/floor/{floor}/{key}": value for key, value in metrics.items()}
    return found


def mirror_record(
    run: RunFolder, composition: Composition, record: Mapping[str, Any], job_type: JobType, made_for: str | None = None
) -> None:
    """A run of W&B's with the numbers of a metrics.json and no curves: of an evaluation, of a run finished before."""
    loggers = open_logger(run, composition, None, made_for, job_type)
    log_record(loggers, record)
    close(loggers)


def close(loggers: Sequence[Any]) -> None:
    """Finish the W&B run, so that a next run in this process does not write into it; wait a bounded time for it."""
    for experiment in experiments_of(loggers):
        finish(experiment)


def finish(experiment: Any, seconds: float = FINISH_SECONDS + GRACE_SECONDS) -> None:
    """End a run of W&B's. One that hangs is left, with its process, which would hold up the end of ours."""
    thread = threading.Thread(
        target=guarded, args=("did not finish in order", experiment.finish), name="wandb finish", daemon=True
    )
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        say(f"W&B did not finish within {seconds:.0f} s and is left; `make sync` uploads what it has on disk")
        guarded("cannot be stopped", _stop_service)


def _stop_service() -> None:
    from wandb.sdk import wandb_setup

    connection: Any = wandb_setup.singleton()._connection
    connection._proc._process.kill()  # W&B has no public way to end a service that does not answer


def experiments_of(loggers: Sequence[Any]) -> list[Any]:
    """The runs of W&B's behind some loggers, on rank zero."""
    return [logger.experiment for logger in loggers if type(logger).__name__ == "Mirror"] if rank() == 0 else []


_said: set[str] = set()


def guarded(failing: str, call: Callable[[], Any]) -> None:
    """Do something with W&B; whatever it raises is said, once for each thing, and costs nothing else."""
    try:
        call()
    except Exception as problem:
        if failing not in _said:
            _said.add(failing)
            say(f"W&B {failing}: {first_line(problem)}")


def first_line(problem: BaseException) -> str:
    """An exception in a line."""
    return redacted(f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}")


def _wanted() -> bool:
    return os.environ.get("WANDB_MODE") != "disabled" and rank() == 0


def _has_account(wandb: Any) -> bool:
    """Whether W&B finds credentials; never asks for any."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before `prompt` existed
        return wandb.api.api_key is not None
