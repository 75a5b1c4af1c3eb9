"""Detection: how many of a picture's true boxes a class-agnostic detector covers with its first proposals."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.detection_table import COLUMNS, cut_outs, rows
from experiments.tasks import Task

if TYPE_CHECKING:
    from experiments.config import Composition
    from experiments.record import Outcome
    from experiments.runs import RunFolder


class DetectionTask(Task):
    """Trained on pasted pictures; one table of recalls, no floors."""

    name = "detection"
    metric_version = "detection"
    model_base = "lightning_modules.InstanceDetector"
    own_classes = {  # noqa: RUF012  (declared as a ClassVar in Task)
        "evaluation": "lightning_modules.callbacks.detection_evaluation.DetectionEvaluation",
    }
    splits = ("pasted", "val", "test")
    interval_metrics = tuple(f"{split}/recall@10/IoU{iou}" for split in ("pasted", "val") for iou in (50, 75))
    curves = interval_metrics
    has_untrained_floor = False

    def callbacks(self) -> list[Any]:
        return []

    def connect(self, model: Any, data: Any) -> None:
        data.use_image_size(model.image_size_px)

    def add_results(self, record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> Callable[[], None]:
        record["unscorable"] = 0
        # A folder whose queries have no true boxes has nothing to say of them.
        record |= {split: dict(outcome.results.get(split, {})) for split in self.splits}
        # Those it was trained on: an evaluation on other data pastes pictures of other ones.
        record["cut_outs"] = dict(training.get("cut_outs") or outcome.engine.data.cut_outs)
        return lambda: None  # the numbers are all there is

    def log_results(self, engine: Any, run: RunFolder, record: dict[str, Any]) -> None:
        final = {f"test/{key}": value for key, value in record["test"].items()}
        for logger in engine.trainer.loggers:
            logger.log_metrics(final, step=record["steps"])

    def numbers(self, results: Mapping[str, Any], split: str) -> tuple[str, dict[str, float]]:
        shown = ("pasted", "val") if split == "val" else (split,)
        metrics = {f"{name}/{key}": value for name in shown for key, value in results.get(name, {}).items()}
        return "recall of boxes", metrics

    def check_measured(self, config: dict[str, Any]) -> None:
        """Left to the evaluation, which knows its overlaps and refuses before anything is written."""

    def predict(
        self, composition: Composition, home: Path, checkpoint: str | None, name: str | None = None, fresh: bool = False
    ) -> Path:
        from experiments.predict_regions import predict_regions

        return predict_regions(composition, home, checkpoint, name, fresh)

    def render(self, record: dict[str, Any], split: str = "test") -> str:
        from rich.console import Console
        from rich.table import Table

        from experiments.scoreboard import weights

        table = Table(title=f"{record['run_id']} · detection{weights(record)}", title_justify="left")
        table.add_column("", no_wrap=True)
        for column in COLUMNS.values():
            table.add_column(column, justify="right")
        for row in rows(record):
            table.add_row(row["label"], *map(str, row["cells"]))
        buffer = io.StringIO()
        Console(file=buffer, width=118).print(table)
        return "\n".join([buffer.getvalue().rstrip(), cut_outs(record)]).rstrip()

    def page(self, folder: RunFolder, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        from experiments.detection_page import contents

        return "detection.html.j2", contents(folder, record)


TASK = DetectionTask()
