"""Which step of a training is tested: the best of its intervals by `checkpoint.monitor` and `checkpoint.mode`.

Its weights are one file, `best.ckpt`, until a better interval's take its place. Nothing else can be chosen.
"""

from __future__ import annotations

from typing import Any

from experiments import schema
from experiments.config import Composition, base
from experiments.errors import UsageError
from experiments.tasks import COMMON_CLASSES, Task

CHOOSING = ("monitor", "mode")
HARMLESS = ("verbose", "save_weights_only", "auto_insert_metric_name")


def choice(config: dict[str, Any], task: Task) -> dict[str, Any]:
    """What of the choice is another than the task's: part of a run's identity."""
    return {key: value for key, value in _differing(config, task).items() if key in CHOOSING}


def check_choice(composition: Composition) -> None:
    """Refuse what would leave a training without its best weights, or without the metric they are chosen by.

    Raises:
        UsageError: Naming the key and the remedy.
    """
    for key, value in _differing(composition.config, composition.task).items():
        if key not in CHOOSING + HARMLESS:
            raise UsageError(
                f"checkpoint.{key}={value}: a run keeps the weights of its best interval, in checkpoints/best.ckpt; "
                f"leave checkpoint.{key} out, and choose by checkpoint.monitor and checkpoint.mode"
            )
    composition.task.check_measured(composition.config)


def _differing(config: dict[str, Any], task: Task) -> dict[str, Any]:
    own, known = base(task.name)["checkpoint"], schema.signature(COMMON_CLASSES["checkpoint"])
    found = config.get("checkpoint", {})
    return {key: value for key, value in found.items() if value != own.get(key, known[key].default)}
