"""What an experiment is about: `task: detection` in its file, or retrieval, which needs no word.

A task says which classes its sections stand for, what an evaluation leaves in metrics.json and how that is shown. All
else (layers, seeds, resuming, checkpoints, logs, the run folder) is the same for every task and knows none of them.
Naming a task imports no torch.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.errors import UsageError, nearest

if TYPE_CHECKING:
    from experiments.config import Composition
    from experiments.record import Outcome
    from experiments.runs import RunFolder

DEFAULT_TASK = "retrieval"
_TASKS = {"retrieval": "experiments.retrieval_task", "detection": "experiments.detection_task"}
# Sections of every task that are one class's constructor arguments; model and data name their own class.
COMMON_CLASSES = {
    "trainer": "lightning.pytorch.Trainer",
    "checkpoint": "lightning.pytorch.callbacks.ModelCheckpoint",
    "speed": "lightning_modules.callbacks.speed.Speed",
    "non_finite": "experiments.non_finite.NonFinite",
    "ranks": "experiments.ranks.Ranks",
}


class Task(ABC):
    """One kind of experiment. Methods that compute import what they need themselves."""

    name: ClassVar[str]
    metric_version: ClassVar[str]  # how the numbers are defined, for metrics.json
    model_base: ClassVar[str]  # class path; model.class_path must name a subclass
    own_classes: ClassVar[Mapping[str, str]]  # sections beside `COMMON_CLASSES`: `evaluation` at least
    splits: ClassVar[tuple[str, ...]]  # of metrics.json, in the order they are measured
    interval_metrics: ClassVar[tuple[str, ...]]  # shown after each interval
    curves: ClassVar[tuple[str, ...]]  # validation metrics drawn over steps
    has_untrained_floor: ClassVar[bool]  # the model before training is a number to beat

    @property
    def fixed_classes(self) -> dict[str, str]:
        """Sections that are one class's constructor arguments."""
        return {**COMMON_CLASSES, **self.own_classes}

    @property
    def sections(self) -> tuple[str, ...]:
        """All keys at the top of a configuration."""
        return ("seed_everything", "trainer", "model", "data", *self.fixed_classes)

    @abstractmethod
    def callbacks(self) -> list[Any]:
        """Callbacks of this task beside `evaluation`."""

    @abstractmethod
    def connect(self, model: Any, data: Any) -> None:
        """Tell the DataModule what the model wants of its batches; before `setup`."""

    @abstractmethod
    def add_results(self, record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> Callable[[], None]:
        """Put what was measured into metrics.json; what writes the files beside it, on rank zero."""

    @abstractmethod
    def log_results(self, engine: Any, run: RunFolder, record: dict[str, Any]) -> None:
        """Hand the final numbers to the loggers; the run is safe on disk by now."""

    @abstractmethod
    def numbers(self, results: Mapping[str, Any], split: str) -> tuple[str, dict[str, float]]:
        """Of an evaluation of "val" or "test": words about it, and its metrics by the names they are logged under."""

    @abstractmethod
    def check_measured(self, config: dict[str, Any]) -> None:
        """Raise `UsageError` if a training would not measure what it shows, or what `checkpoint.monitor` names."""

    @abstractmethod
    def predict(
        self, composition: Composition, home: Path, checkpoint: str | None, name: str | None = None, fresh: bool = False
    ) -> Path:
        """Write what the model says of every item; where to.

        Args:
            name: Of what is written, where there can be several; `fresh` writes it over.
        """

    @abstractmethod
    def render(self, record: dict[str, Any], split: str = "test") -> str:
        """The tables of one run as text, for terminal and log."""

    @abstractmethod
    def page(self, folder: RunFolder, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The report's template, and what it needs beside the parts common to all reports."""


def task_named(name: Any) -> Task:
    """The task of a name.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in _TASKS:
        raise UsageError(f"unknown task {name!r}: {nearest(str(name), _TASKS)}")
    found: Task = importlib.import_module(_TASKS[name]).TASK
    return found


def task_names() -> list[str]:
    """All tasks."""
    return sorted(_TASKS)


def task_of(record: Mapping[str, Any]) -> Task:
    """The task of a metrics.json; one that names none is older than tasks, and of retrieval."""
    return task_named(record.get("task", DEFAULT_TASK))
