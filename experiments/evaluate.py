"""Evaluating a checkpoint: first val, which chooses (a feature, say), then test, which reports it. Never reversed."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import machine
from experiments.config import HOME, Composition, Loader, finish, merge, overlays, parse_overrides
from experiments.data_folder import find_data
from experiments.errors import UsageError
from experiments.output import say
from experiments.run_lock import opened
from experiments.runs import RunFolder, open_run, read_metrics, run_folder, write_json, write_text
from experiments.tasks import DEFAULT_TASK

if TYPE_CHECKING:
    from experiments.record import Results

TOLERANCE = 1e-6  # between two evaluations of one checkpoint, on one process or several
# What queries are read by, and what a detector's boxes must score. Other values give other numbers, which belong in a
# run folder of their own.
READ_BY = {
    "data": ("region_set", "instances", "instance_min_score", "max_instances", "instance_nms_iou", "crop_margin"),
    "evaluation": ("level", "merge", "choose_by", "min_score"),
}


def measure(engine: Any, checkpoint: Path | None) -> dict[str, Any]:
    """Results of val and test by split, as the task's evaluation gives them; the loggers hear nothing of it.

    Called by all ranks.

    Args:
        checkpoint: Weights to load; None evaluates the model as it stands.
    """
    path = str(checkpoint) if checkpoint else None
    with _silent(engine.trainer), _naming(path):
        # Loaded once: the checkpoint's choice of a vector would take the place of what val has just chosen.
        for evaluate, weights in ((engine.trainer.validate, path), (engine.trainer.test, None)):
            evaluate(engine.model, datamodule=engine.data, ckpt_path=weights, verbose=False, weights_only=True)
    return dict(engine.evaluation.results)


@contextmanager
def _silent(trainer: Any) -> Iterator[None]:
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


@contextmanager
def _naming(checkpoint: str | None) -> Iterator[None]:
    """Say which checkpoint it was whose weights do not fit."""
    try:
        yield
    except Exception as problem:
        if checkpoint is None or type(problem).__name__ != "ModelError":
            raise
        raise UsageError(f"{checkpoint}: {problem}") from problem


def evaluate_run(path: str, data: str | None, overrides: list[str], command: str) -> dict[str, Any]:
    """Re-evaluate a run's best checkpoint in its own folder; on other data, or queries read otherwise, in a new one.

    Raises:
        UsageError: If the run has no checkpoint, or its shards or region set are no longer the ones it was trained on.
        RuntimeError: If the numbers differ from the recorded ones.
    """
    from experiments.record import recorded_run

    source = open_run(path)
    before, unfinished = _recorded(source)
    composition = reopen(source, data, overrides)
    trained = recorded_run(source)
    own = data is None or composition.data.data_hash == trained.get("data_hash")
    own = own and composition.region_set_hash == trained.get("region_set_hash")
    own = own and not (overrides and _read_by(composition) != _read_by(reopen(source, data, [])))
    if not source.best.is_file() and before.get("steps") != 0:
        how = "train again with --fresh" if "test" in before else "`make train` again writes it"
        raise UsageError(f"{source.best}: missing, so there is nothing to evaluate; {how}")
    if unfinished:
        from experiments.checkpoint_files import check_readable, step_of

        check_readable(source.best, "the training goes on from its last checkpoint, or begins again with --fresh")
        before = {"steps": step_of(source.best)}
        say(f"{unfinished}; what is evaluated is its best checkpoint so far, step {before['steps']}")
    if unfinished and not own:
        raise UsageError(
            f"{source.root} has not finished: on other data, or read otherwise, it would stand in tables as if it had. "
            f"Finish it, or print numbers with `python -m experiments test --exp … --data … --ckpt_path {source.best}`"
        )
    if unfinished:
        return _evaluate_unfinished(source, composition, command, before)
    if own:
        return _evaluate_own(source, composition, command, before, in_part=bool(overrides))
    target = run_folder(composition, source.root.parent, {"weights_of": _without_seed(source.run_id)})
    before = {key: before[key] for key in ("steps", "parameters", "cut_outs") if key in before}
    return _evaluate_into(target, composition, source.best if source.best.is_file() else None, command, before)


def _recorded(run: RunFolder) -> tuple[dict[str, Any], str]:
    """What metrics.json says of a run, and why it says nothing of one whose training was begun here; "" where it does.

    Raises:
        UsageError: It is unreadable, and no training can write it again.
    """
    if not run.history.is_file():  # imported, or evaluated only
        return read_metrics(run) if run.metrics.is_file() else {}, ""
    try:
        return read_metrics(run), ""
    except UsageError as problem:
        return {}, str(problem)


def _read_by(composition: Composition) -> list[Any]:
    config = composition.config
    sections = {"data": config["data"]["init_args"], "evaluation": config.get("evaluation", {})}
    return [sections[section].get(key) for section, keys in READ_BY.items() for key in keys]


def _without_seed(run_id: str) -> str:
    """A run's name that its seeds share: evaluated again in the same way, they are one row of a table."""
    return re.sub(r"-\d+-([0-9a-f]{8})$", r"-\1", run_id)


def _share(file: Path, copy: Path) -> None:
    """The same file under a second name, copied where the file system has no links."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.unlink(missing_ok=True)
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


def evaluate_untrained(composition: Composition, home: Path, command: str) -> dict[str, Any]:
    """Evaluate an experiment as it is built, nothing trained: a pretrained model, say. Leaves a normal run folder."""
    composition.config["trainer"]["max_steps"] = 0  # a run of its own, not the trained one
    run = run_folder(composition, home)
    return _evaluate_into(run, composition, None, command, {"steps": 0})


def reopen(source: RunFolder, data: str | None, overrides: list[str]) -> Composition:
    """The configuration of an existing run, on its own or other data."""
    import yaml

    try:
        config = yaml.load(source.config.read_text(encoding="utf-8"), Loader)
        about = config.pop("run")
        stored = config["data"]["init_args"]["folder"]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{source.config}: not the configuration of a run") from None
    if data is None and about["data_hash"] is None:
        raise UsageError(f"{source.root}: imported, not trained here, so it has no data of its own: name it with DATA=")
    folder = find_data(data or stored, overlays("data"))
    if data is None and folder.data_hash != about["data_hash"]:
        raise UsageError(
            f"{stored}: the shards have changed since the run (hash {about['data_hash']}, now {folder.data_hash}); "
            f"name the data with DATA={stored} to evaluate on them as they are"
        )
    if folder.data_hash != about["data_hash"] and config["model"]["init_args"].get("tokenizer") == "shards":
        config["model"]["init_args"]["tokenizer"] = str(_keep_tokenizer(source, Path(stored)))
    config["task"] = about.get("task", DEFAULT_TASK)
    region_set = config["data"]["init_args"].get("region_set")
    if config.get("trainer", {}).get("num_nodes", 1) != 1:  # those of the training are not there for an evaluation
        config["trainer"]["num_nodes"] = 1
    config = merge(merge(config, {"trainer": machine.launched_settings()}), parse_overrides(overrides, config))
    composition = finish(config, about["experiment"], about["scale"], folder, [str(source.config)] * 2)
    before, now = about.get("region_set_hash"), composition.region_set_hash
    if data is None and config["data"]["init_args"].get("region_set") == region_set and now != before:
        raise UsageError(
            f"{stored}: region set '{region_set}' has changed since the run (hash {before}, now {now}); name the data "
            f"with DATA={stored} to evaluate on the regions as they are"
        )
    return composition


def _keep_tokenizer(source: RunFolder, shards: Path) -> Path:
    """The tokenizer a run was trained with, as a Hugging Face folder in it: other shards number words otherwise."""
    folder, stored = source.root / "tokenizer", shards / "tokenizer.json"
    if not (folder / "tokenizer.json").is_file():
        if not stored.is_file():
            raise UsageError(f"{stored}: missing, and other data has to be read with the tokenizer of the training")
        special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
        write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
        write_text(folder / "tokenizer.json", stored.read_text(encoding="utf-8"))
    return folder


def _evaluate_own(
    run: RunFolder, composition: Composition, command: str, before: dict[str, Any], in_part: bool
) -> dict[str, Any]:
    """Re-evaluate in the run's own folder; recorded numbers stay, and a difference is an error.

    Args:
        in_part: Settings may have left out some of the numbers that are recorded.
    """
    from experiments.record import write_results

    recorded = before if "test" in before else None
    with opened(run):
        results = _measured(run, composition, run.best if run.best.is_file() else None, command, before)
        record = results.record
        if machine.rank() != 0:
            return record
        differences = _differences(recorded, record, composition.task.splits) if recorded else {}
        left_out = [key for key, value in differences.items() if in_part and math.isinf(value)]
        for key in left_out:
            del differences[key]
        key = max(differences, key=differences.__getitem__, default="")
        difference = differences.get(key, 0.0)
        if difference > TOLERANCE:
            raise RuntimeError(
                f"{key} differs from the recorded value by {difference:.2g}; {run.metrics} and the lists beside it are "
                f"kept, the new numbers are in {_write_beside(run, record)}"
            )
        if not left_out:
            write_results(run, results)
        say(composition.task.render(record))
        if "rerank" in record and not left_out:
            say(f"re-ranked: rerank/… under test in {run.metrics}; its cost and command: rerank")
        if recorded:
            say(f"equals what training reported: {len(differences)} numbers, largest difference {difference:.1g}")
        if left_out:
            say(
                f"{len(left_out)} recorded numbers were not asked for, so {run.metrics} and the lists beside it stay "
                f"as they are; the new numbers are in {_write_beside(run, record)}"
            )
    return record


def _evaluate_unfinished(
    run: RunFolder, composition: Composition, command: str, before: dict[str, Any]
) -> dict[str, Any]:
    """Show the numbers of a training that goes on, and leave all that a finished run has to its end."""
    with opened(run):
        record = _measured(run, composition, run.best, command, before).record
        if machine.rank() == 0:
            say(composition.task.render(record))
            file = _write_beside(run, record)
            say(f"the run has not finished, so {run.metrics} is left to its training; these numbers are in {file}")
    return record


def _write_beside(run: RunFolder, record: dict[str, Any]) -> Path:
    """Keep numbers where no table reads them; the file."""
    file = run.root / "metrics-eval.json"
    write_json(file, record)
    return file


def _evaluate_into(
    run: RunFolder, composition: Composition, checkpoint: Path | None, command: str, before: dict[str, Any]
) -> dict[str, Any]:
    from experiments.record import write_config, write_results
    from experiments.wandb_logger import mirror_record

    with opened(run):
        results = _measured(run, composition, checkpoint, command, before)
        if checkpoint and machine.rank() == 0:
            _share(checkpoint, run.best)  # a normal run folder: it can be evaluated again
        write_config(run, composition, composition.config)
        if machine.rank() == 0:
            write_results(run, results)
            say(composition.task.render(results.record))
            mirror_record(run, composition, results.record, "evaluation")
    return results.record


def _measured(
    run: RunFolder, composition: Composition, checkpoint: Path | None, command: str, before: dict[str, Any]
) -> Results:
    """Build, evaluate, and put the record together; what only training knows is taken from `before`."""
    from experiments.checkpoint_files import check_readable
    from experiments.engine import build
    from experiments.record import Outcome, assemble

    machine.check_devices(composition.config["trainer"])
    if checkpoint:
        check_readable(checkpoint, "put a copy in its place, or train again with --fresh")
    engine = build(composition, run)
    random = checkpoint is None and not getattr(engine.model, "starts_trained", False)
    if random:
        kind = type(engine.model).__name__
        say(f"{kind} starts from random weights here: these numbers are those of an untrained model (`make train`)")
    measured = measure(engine, checkpoint)
    results = assemble(Outcome(run, composition, engine, command, measured, untrained=None), before)
    return results._replace(record=results.record | ({"random_weights": True} if random else {}))


def _differences(recorded: dict[str, Any], now: dict[str, Any], splits: Sequence[str]) -> dict[str, float]:
    """Of all recorded numbers, infinite where one is lacking now; of a re-ranking only where it is as deep."""
    same = recorded.get("rerank", {}).get("depth") == now.get("rerank", {}).get("depth")
    return {
        f"{split}/{key}": abs(value - now[split].get(key, math.inf))
        for split in splits
        for key, value in recorded[split].items()
        if same or not key.startswith("rerank/")
    }


def show_split(composition: Composition, home: Path, split: str, checkpoint: str | None) -> dict[str, float]:
    """`validate` and `test`: metrics of one split, printed and not kept.

    The weights are those of `checkpoint`, else of the configuration's own run where it has been trained.
    """
    from experiments.engine import build

    machine.check_devices(composition.config["trainer"])
    run = run_folder(composition, home)
    path = checkpoint_of(run, checkpoint)
    engine = build(composition, run)
    run_split = engine.trainer.validate if split == "val" else engine.trainer.test
    with _silent(engine.trainer):
        run_split(engine.model, datamodule=engine.data, ckpt_path=path, verbose=False, weights_only=True)
    about, metrics = composition.task.numbers(engine.evaluation.results, split)
    say(f"{split} of {path or 'the untrained model'}, {about}")
    return {key.removeprefix(f"{split}/"): value for key, value in metrics.items()}


def checkpoint_of(run: RunFolder, given: str | None) -> str | None:
    """The checkpoint a command means: the one given, else the run's best, else none."""
    if given and not os.path.isfile(given):
        raise UsageError(f"--ckpt_path {given}: no such file")
    if not given and not run.best.is_file():
        return None
    from experiments.checkpoint_files import check_readable

    path, other = (Path(given), "") if given else (run.best, ", or train again with --fresh")
    check_readable(path, f"give another one with --ckpt_path{other}")
    return str(path)


__all__ = ["HOME", "checkpoint_of", "evaluate_run", "evaluate_untrained", "measure", "reopen", "show_split"]
