"""Retrieval: embeddings of queries and gallery, ranked, scored, and set beside their floors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import schema
from experiments.errors import UsageError
from experiments.tasks import Task

if TYPE_CHECKING:
    from experiments.config import Composition
    from experiments.record import Outcome
    from experiments.runs import RunFolder

# What a training logs: losses, and metrics of val, at cut-offs that are chosen (`k`) or those of the identical product.
LOGGED = re.compile(
    r"train/.+|val/(?!rerank/)(?:.+?/)??(?:(?P<same>same/(?:mAP|Prec)@(?:1|5|10))|(?:mAP|mAR|Prec|coverage)@(?P<k>\d+)"
    r"|zero_vectors|false_negatives_per_batch)"
)


class RetrievalTask(Task):
    """The task of every experiment that names no other."""

    name = "retrieval"
    metric_version = "official"
    model_base = "lightning_modules.RetrievalModule"
    own_classes = {  # noqa: RUF012  (declared as a ClassVar in Task)
        "evaluation": "lightning_modules.callbacks.retrieval_evaluation.RetrievalEvaluation",
        "graph_refresh": "lightning_modules.callbacks.graph_refresh.GraphRefresh",
    }
    splits = ("val", "test")  # val chooses the feature, so it comes first
    interval_metrics = ("val/mAP@10", "val/mAR@10")
    curves = interval_metrics
    has_untrained_floor = True

    def callbacks(self) -> list[Any]:
        from lightning_modules.callbacks.fit_whitening import FitWhitening

        return [FitWhitening()]

    def connect(self, model: Any, data: Any) -> None:
        data.use_input_spec(model.input_spec())

    def add_results(self, record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> Callable[[], None]:
        from experiments.retrieval_record import add_results

        return add_results(record, outcome, training)

    def log_results(self, engine: Any, run: RunFolder, record: dict[str, Any]) -> None:
        from experiments import scoreboard, wandb_artifacts

        loggers = engine.trainer.loggers
        final = {f"test/{key}": value for key, value in record["test"].items()}
        for floor, metrics in record["floors"]["test"].items():
            shown = [*scoreboard.COLUMNS, *(key for key in scoreboard.SAME_COLUMNS if key in metrics)]
            final |= {f"test/floor/{floor}/{key}": metrics[key] for key in shown}
        for logger in loggers:
            logger.log_metrics(final, step=record["steps"])
        wandb_artifacts.show_hits(loggers, run, engine.data, engine.evaluation.results["test"])
        wandb_artifacts.show_graph(loggers, run)

    def numbers(self, results: Mapping[str, Any], split: str) -> tuple[str, dict[str, float]]:
        metrics = {f"{split}/{key}": value for key, value in results[split].metrics.items()}
        return f"feature {results[split].features['product']}", metrics

    def check_measured(self, config: dict[str, Any]) -> None:
        evaluation, known = config.get("evaluation", {}), schema.signature(self.own_classes["evaluation"])
        ks, same = (evaluation.get(key, known[key].default) for key in ("ks", "same"))
        monitor = config["checkpoint"].get("monitor")
        for name in filter(None, (monitor, *self.interval_metrics)):
            what = f"checkpoint.monitor={name}" if name == monitor else f"{name}, which every training shows,"
            found = LOGGED.fullmatch(name)
            if not found:
                raise UsageError(f"{what} is no metric: one is called val/mAP@10, val/image/mAR@10 or val/same/mAP@10")
            if found["k"] and int(found["k"]) not in ks:
                raise UsageError(
                    f"{what} is not measured by evaluation.ks={list(ks)}: add {found['k']} to evaluation.ks"
                )
            if found["same"] and not same:
                raise UsageError(
                    f"{what} is not measured with evaluation.same=false: choose another, or leave that out"
                )

    def predict(
        self, composition: Composition, home: Path, checkpoint: str | None, name: str | None = None, fresh: bool = False
    ) -> Path:
        if name is not None or fresh:
            raise UsageError("--name and --fresh: predict takes them with a detector (--exp detector) only")
        from experiments.embeddings import write_embeddings

        return write_embeddings(composition, home, checkpoint)

    def render(self, record: dict[str, Any], split: str = "test") -> str:
        from experiments import scoreboard

        return scoreboard.render(record, split)

    def page(self, folder: RunFolder, record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        from experiments.retrieval_page import contents

        return "retrieval.html.j2", contents(folder, record)


TASK = RetrievalTask()
