"""Fit, then test the best checkpoint: the whole life of a run, from an empty folder to its metrics.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng

from experiments import machine, wandb_logger
from experiments.checkpoint_files import Resume, check_readable, remove_unfinished, resume_point, step_of
from experiments.config import Composition
from experiments.engine import Engine, build
from experiments.evaluate import measure
from experiments.history_logger import History
from experiments.output import say
from experiments.progress import all_skipped
from experiments.record import Outcome, Results, assemble, write_config, write_results
from experiments.runs import RunFolder, git_state
from experiments.stop_signals import Stopped, StopSignals


def train(
    composition: Composition, run: RunFolder, command: str, table: str | None = None, fresh: bool = False
) -> dict[str, Any]:
    """Train, test and record. An interrupted run goes on from its last checkpoint.

    Args:
        table: The table the run is made for, if any: its group in W&B.
        fresh: Start over: what is in the run folder is about to be deleted, or is already.

    Returns:
        The content of metrics.json.

    Raises:
        Stopped: A stop signal came, and there is a checkpoint of the step that was in progress.
        RunError: Another rank or a loader's worker is gone, or a loss was not finite.
    """
    with StopSignals() as signals:
        return _train(composition, run, command, table, fresh, signals)


def _train(
    composition: Composition, run: RunFolder, command: str, table: str | None, fresh: bool, signals: StopSignals
) -> dict[str, Any]:
    git = git_state()  # of the code that trains: it may be another one by the end
    machine.check_devices(composition.config["trainer"])
    if machine.rank() == 0:
        remove_unfinished(run)
    resume = None if fresh else resume_point(run)
    engine = build(composition, run, signals)
    signals.pass_on = lambda number: _tell_children(engine, number)
    _check(engine)
    engine.trainer.loggers = _loggers(composition, run, resume, table)  # only now: a refused run leaves none behind
    try:
        return _run(composition, run, engine, command, resume, git)
    except Stopped:
        wandb_logger.close(engine.trainer.loggers)
        raise
    except (RuntimeError, ConnectionError, EOFError) as problem:
        explained = engine.ranks.explained(problem, engine.trainer)
        if explained is None:
            raise
        raise explained from problem


def _run(
    composition: Composition,
    run: RunFolder,
    engine: Engine,
    command: str,
    resume: Resume | None,
    git: dict[str, Any],
) -> dict[str, Any]:
    write_config(run, composition, engine.config)
    untrained = _before_training(engine, again=resume is not None) if composition.task.has_untrained_floor else None
    if resume:
        say(f"going on from {resume.checkpoint}, step {resume.step}")
        _tell_of_other_ranks(resume, engine)
    start = resume.checkpoint if resume else None
    engine.trainer.fit(engine.model, datamodule=engine.data, ckpt_path=start, weights_only=True)
    best = _best(engine, run)
    results = _results(composition, run, engine, command, untrained, best, git)
    record = results.record
    if machine.rank() == 0:
        write_results(run, results)
        composition.task.log_results(engine, run, record)
        wandb_logger.log_record(engine.trainer.loggers, record)
        wandb_logger.close(engine.trainer.loggers)
    return record


def _tell_children(engine: Engine, number: int) -> None:
    """The ranks that Lightning has started itself are told by rank zero alone; of others it knows none."""
    launcher = engine.trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(number)


def _tell_of_other_ranks(resume: Resume, engine: Engine) -> None:
    before, now, batch_size = resume.processes, engine.trainer.world_size, engine.data.batch_size
    if before not in (None, now):
        say(
            f"warning: {resume.checkpoint} was written by {before} process(es), this run has {now}: a step is on "
            f"{now} × {batch_size} samples instead of {before} × {batch_size}, in another order, and dropout draws "
            "other numbers"
        )


def _loggers(composition: Composition, run: RunFolder, resume: Resume | None, table: str | None) -> list[Any]:
    step = resume.step if resume else None
    return [History(run.history, step), *wandb_logger.open_logger(run, composition, step, table)]


def _check(engine: Engine) -> None:
    """Everything that can be refused without computing: before files are written and the untrained model evaluated."""
    engine.model.check_training(engine.trainer, engine.data.batch_size)
    engine.data.trainer = engine.trainer  # as `fit` will: the data count its processes
    engine.evaluation.setup(engine.trainer, engine.model, "fit")
    engine.data.setup()  # all splits: one that is missing at the test would cost the whole training


def _before_training(engine: Engine, again: bool) -> dict[str, Any]:
    """Results of the untrained model; drawing none of the random numbers that training will draw."""
    say("evaluating the untrained model, a floor that training must leave behind")
    with isolate_rng():
        results = measure(engine, None)
    if machine.rank() == 0 and not again:  # a run that goes on has this in its curves
        metrics = engine.task.numbers(results, "val")[1]
        shown = {key: metrics[key] for key in engine.task.interval_metrics}
        for logger in engine.trainer.loggers:
            logger.log_metrics(shown, step=0)
    return results


def _best(engine: Engine, run: RunFolder) -> Path:
    """The best checkpoint by `checkpoint.monitor`; where no interval was completed, the weights as they are."""
    steps = engine.trainer.global_step
    if not engine.checkpoint.best_model_path:
        say(
            f"no interval was completed in {steps} steps, so the final weights are tested: raise --trainer.max_steps, "
            "or lower --data.steps_per_epoch, the steps of an interval"
        )
        engine.trainer.save_checkpoint(run.best)
        return run.best
    if engine.interval_line.last_step != steps:
        left = steps - engine.interval_line.last_step
        say(f"the last {left} steps fill no interval and were not evaluated (data.steps_per_epoch)")
    check_readable(run.best, "its weights are lost; train again with --fresh")
    say(f"tested: step {step_of(run.best)} of {steps}, best by {engine.checkpoint.monitor}")
    return run.best


def _results(
    composition: Composition,
    run: RunFolder,
    engine: Engine,
    command: str,
    untrained: dict[str, Any] | None,
    best: Path,
    git: dict[str, Any],
) -> Results:
    steps = engine.trainer.global_step
    training = {f"training/{reason}": n for reason, n in all_skipped(engine.trainer).items()}
    if engine.non_finite.steps:
        training["training/non_finite_steps"] = engine.non_finite.steps
    skipped = {f"build/{reason}": n for reason, n in composition.data.skipped().items()} | training
    seconds = engine.throughput.seconds  # before a checkpoint is loaded, which restores its own
    pace = {name: round(value, 3) for name, value in engine.throughput.whole_run().items()}
    results = measure(engine, best)
    about = {
        "steps": steps,
        "train_seconds": round(seconds, 1),
        "samples_per_second": pace.get("samples_per_second"),
        "throughput": pace,
        "skipped": skipped,
        "git": git,
    }
    say("skipped samples: " + (", ".join(f"{reason} {n}" for reason, n in sorted(skipped.items())) or "none"))
    return assemble(Outcome(run, composition, engine, command, results, untrained), about)
