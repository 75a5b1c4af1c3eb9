"""Weights & Biases, and the only file that imports it: online with an account, offline without, never in the way.

W&B mirrors what metrics.json records. A missing, broken or unreachable W&B costs the mirror, not the run: every call
is guarded and says so once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from experiments.machine import rank
from experiments.output import say
from experiments.runs import RunFolder

PROJECT = "instance-product-retrieval"
QUERIES_SHOWN = 8
HITS_SHOWN = 5
PICTURE_SIDE_PX = 160


def open_logger(run: RunFolder, config: dict[str, Any]) -> list[Any]:
    """A Lightning logger for the run, in a list; the empty list where W&B is off or broken, and on ranks but zero.

    The run id is W&B's id, so an interrupted run goes on under the same name; files go below the run folder.
    WANDB_MODE and WANDB_PROJECT are honoured; without an account the mode is offline.
    """
    if os.environ.get("WANDB_MODE") == "disabled" or rank() != 0:
        return []
    try:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
        run.root.mkdir(parents=True, exist_ok=True)
        # Started here, where a failure can still be survived, and not by WandbLogger(offline=True), which would set
        # WANDB_MODE for the whole process.
        experiment = wandb.init(
            dir=str(run.root),
            id=run.run_id,
            name=run.run_id,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        experiment.define_metric("*", step_metric="trainer/global_step")
        if mode == "offline":
            say(f"W&B: offline, no account needed; upload later with `wandb sync {run.root}/wandb/offline-run-*`")
        return [WandbLogger(experiment=experiment)]
    except Exception as problem:  # whatever a broken wheel or a lost connection raises
        say(f"W&B is left out, it does not start: {_first_line(problem)}")
        return []


def _has_account(wandb: Any) -> bool:
    """Whether W&B finds credentials; never asks for any."""
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # before `prompt` existed
        return wandb.api.api_key is not None


def show_hits(loggers: Sequence[Any], data: Any, result: Any) -> None:
    """Log a table of a few queries, evenly spread, with the pictures of their top hits."""
    for experiment in _experiments(loggers):
        try:
            experiment.log({"test/hits": _hits_table(data, result)})
        except Exception as problem:
            say(f"W&B has no table of hits: {_first_line(problem)}")


def show_graph(loggers: Sequence[Any], run: RunFolder) -> None:
    """Log the picture of the entity graph, where the run has one."""
    picture = run.graph.with_suffix(".png")
    for experiment in _experiments(loggers) if picture.is_file() else []:
        try:
            import wandb

            experiment.log({"test/graph": wandb.Image(str(picture))})
        except Exception as problem:
            say(f"W&B has no picture of the entity graph: {_first_line(problem)}")


def close(loggers: Sequence[Any]) -> None:
    """Finish the W&B run, so that a next run in this process does not write into it."""
    for experiment in _experiments(loggers):
        try:
            experiment.finish()
        except Exception as problem:
            say(f"W&B did not finish in order: {_first_line(problem)}")


def _experiments(loggers: Sequence[Any]) -> list[Any]:
    return [logger.experiment for logger in loggers if type(logger).__name__ == "WandbLogger"] if rank() == 0 else []


def _hits_table(data: Any, result: Any) -> Any:
    import wandb

    queries, gallery = data.eval_splits("test")
    ranking = result.ranking
    labels, item_labels, captions = data.labels(queries), data.labels(gallery), data.captions(queries)
    table = wandb.Table(columns=["query", "caption", "mAP@10", *(f"hit {n + 1}" for n in range(HITS_SHOWN))])
    for row in chosen_rows(len(ranking.query_ids), QUERIES_SHOWN):
        hits = [int(item) for item in ranking.index_QK[row, :HITS_SHOWN] if item >= 0]
        cells: list[Any] = [
            wandb.Image(_small(data.picture(gallery, item)), caption=_mark(item_labels[item], labels[row]))
            for item in hits
        ]
        cells += [None] * (HITS_SHOWN - len(cells))
        query = wandb.Image(_small(data.picture(queries, row)), caption=" | ".join(labels[row]))
        table.add_data(query, captions[row], float(result.per_query["mAP@10"][row]), *cells)
    return table


def chosen_rows(total: int, wanted: int) -> list[int]:
    """Rows evenly spread over a split, the same in every run."""
    return sorted({row * total // wanted for row in range(wanted)}) if total else []


def _mark(item: Sequence[str], query: Sequence[str]) -> str:
    return f"{'✓' if item and item[0] in query else '✗'} {' | '.join(item)}"


def _small(picture: bytes) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((PICTURE_SIDE_PX, PICTURE_SIDE_PX))
    return image


def _first_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"
