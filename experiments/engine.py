"""LightningCLI as the engine: a composed configuration in, model, DataModule and Trainer out, types checked in full."""

from __future__ import annotations

import importlib
import re
from typing import Any, NamedTuple

import lightning
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from experiments.checkpoint_files import MovedRun, WholeFiles
from experiments.config import Composition
from experiments.errors import UsageError
from experiments.history_logger import StepLabels
from experiments.non_finite import NonFinite
from experiments.preemption import StopInOrder
from experiments.progress import IntervalLine, ThroughputBar
from experiments.randomness import RandomState
from experiments.ranks import Ranks
from experiments.runs import RunFolder
from experiments.stop_signals import StopSignals
from experiments.tasks import Task
from lightning_modules.callbacks.graph_refresh import graph_of
from lightning_modules.callbacks.throughput import Throughput


class Engine(NamedTuple):
    """Everything one run needs, built."""

    task: Task
    model: Any  # of the task's `model_base`
    data: Any  # the LightningDataModule of SPEC: ids, labels, captions, picture beside the loaders
    trainer: lightning.Trainer
    evaluation: Any  # the task's, with the `results` of each split
    checkpoint: ModelCheckpoint
    throughput: Throughput
    interval_line: IntervalLine
    non_finite: NonFinite
    ranks: Ranks
    config: dict[str, Any]  # with every default spelt out


def build(composition: Composition, run: RunFolder, signals: StopSignals | None = None) -> Engine:
    """Check types, seed, and build the classes of a configuration; the Trainer has no loggers yet.

    Args:
        signals: What asks a training to stop; None where nothing is trained.

    Raises:
        UsageError: If a value does not fit its argument's type, or Lightning refuses the combination.
    """
    throughput = Throughput()
    config, task = composition.config, composition.task
    line = IntervalLine(throughput, task.interval_metrics)
    extra: list[Any] = [throughput, line, RandomState(), StepLabels(), MovedRun(), *task.callbacks()]
    extra.append(_last_checkpoint(run))
    if config["trainer"].get("enable_progress_bar") is not False:
        extra.append(ThroughputBar(throughput))
    if signals is not None:
        extra.append(StopInOrder(signals, run))
    try:
        cli = _ExperimentCLI(config, task, run, extra)
    except (ArgumentError, ValueError, MisconfigurationException) as problem:
        raise UsageError(_said(problem)) from problem
    task.connect(cli.model, cli.datamodule)
    callbacks = cli.config_init
    built = cli.model, cli.datamodule, cli.trainer, callbacks.evaluation, callbacks.checkpoint
    return Engine(task, *built, throughput, line, callbacks.non_finite, callbacks.ranks, cli.resolved())


class _ExperimentCLI(LightningCLI):
    """LightningCLI over a composed mapping instead of the command line's words."""

    def __init__(self, config: dict[str, Any], task: Task, run: RunFolder, callbacks: list[Any]) -> None:
        self.task, self.run = task, run
        super().__init__(
            _class(task.model_base),
            lightning.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,  # the run folder's config.yaml is written before training starts
            trainer_defaults={"callbacks": callbacks},
            parser_kwargs={"exit_on_error": False},
            args=config,
            run=False,
            auto_configure_optimizers=False,  # the models configure their own
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for section, class_path in self.task.fixed_classes.items():
            if section == "graph_refresh":  # a callback of models with a graph only
                parser.add_class_arguments(_class(class_path), section)
            elif section != "trainer":  # LightningCLI's own
                parser.add_lightning_class_args(_class(class_path), section)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(args)  # the base method warns about words in sys.argv, which are ours

    def before_instantiate_classes(self) -> None:
        self.config.checkpoint.dirpath = str(self.run.checkpoints)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        if graph_of(self.model) is not None:
            self.trainer_defaults["callbacks"].append(self.config_init.graph_refresh)
        self.config_init.non_finite.file = self.run.non_finite
        trainer = super().instantiate_trainer(logger=False, plugins=[WholeFiles(self.run)], **kwargs)
        self.config_init.ranks.limit(trainer.strategy)
        return trainer

    def resolved(self) -> dict[str, Any]:
        """The configuration with all defaults, as plain YAML values; the run folder's own path left out."""
        import yaml

        config: Namespace = self.config.clone()
        config.checkpoint.dirpath = None
        found = yaml.safe_load(self.parser.dump(config, skip_none=False, format="yaml"))
        found.pop("config", None)
        return dict(found)


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _last_checkpoint(run: RunFolder) -> ModelCheckpoint:
    """The state after each interval, for going on; the best one is the configured `checkpoint`."""
    return ModelCheckpoint(
        run.checkpoints,
        filename=run.last.stem,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def shorten(message: str) -> str:
    """The one sentence of a jsonargparse or Lightning message that says which key is wrong and why.

    jsonargparse lists every type of a union with its own complaint and prints the whole value; "Expected NoneType"
    is always among them and never what was meant.
    """
    lines = [line.strip().removeprefix("- ") for line in message.strip().splitlines() if line.strip()]
    if len(lines) < 2:
        return lines[0] if lines else "the configuration was refused without a reason"
    keys = re.findall(r'key "([\w.]+)"', message)
    expected, others, got = [], [], ""
    for line in lines:
        typed = re.match(r"Expected an? (.+?)(?:\. Got value: (.*))?$", line)
        if typed:
            expected.append(re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", typed[1]).replace("typing.", ""))
            got = typed[2] or got
        elif line.startswith("Given value: "):
            got = got or line.removeprefix("Given value: ")
        elif not re.match(r"Parser key|Does not validate|Subtypes:|Errors:|Given value type|Problem with", line):
            others.append(line)
    expected = [name for name in expected if name != "NoneType"]
    reason = f"expected {' or '.join(expected)}, got {got[:60]}" if expected else " ".join(others)
    return f"{'.'.join(keys)}: {reason}" if keys else reason


def _said(problem: BaseException) -> str:
    """The message for the user: our own error where jsonargparse has wrapped one, else the shortened outer one."""
    inner: BaseException | None = problem
    while inner is not None:
        if type(inner).__name__ in ("ModelError", "DataError"):
            return str(inner)
        inner = inner.__cause__ or inner.__context__
    return shorten(str(problem))
