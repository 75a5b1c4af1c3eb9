"""Tables and pictures for W&B: what a run finds, its entity graph, and the table of several runs.

Each is a versioned artifact, named by what it shows: `hits-<run_id>` (type `retrieval-hits`), `table-<name>` (type
`results-table`). The same content is the same version.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments.instance_files import Instance, read_instances
from experiments.runs import RunFolder, git_state
from experiments.table_forms import PICTURES
from experiments.wandb_labels import Labels, shorten
from experiments.wandb_logger import experiments_of, finish, guarded, start

QUERIES_SHOWN = 8
HITS_SHOWN = 5
PICTURE_SIDE_PX = 160
BOXED_SIDE_PX = 320  # of a query, whose boxes must be seen
NAME_LENGTH = 120  # of an artifact; W&B takes 128 characters
ID_LENGTH = 60  # of a run; W&B takes 64


def show_hits(loggers: Sequence[Any], run: RunFolder, data: Any, result: Any) -> None:
    """Log a few queries, evenly spread, with their boxes and top hits, right ones and wrong ones marked."""

    def show(experiment: Any) -> None:
        import wandb

        table = _hits_table(run, data, result)
        with _staged_below(run.root):
            panel = wandb.Artifact(f"hits-{run.run_id}", type="retrieval-hits", metadata={"split": "test"})
            panel.add(table, "hits")
            experiment.log_artifact(panel)
            experiment.log({"test/hits": table})

    for experiment in experiments_of(loggers):
        guarded("has no table of hits", partial(show, experiment))


def show_graph(loggers: Sequence[Any], run: RunFolder) -> None:
    """Log the picture of the entity graph, where the run has one."""
    picture = run.graph.with_suffix(".png")

    def show(experiment: Any) -> None:
        import wandb

        experiment.log({"test/graph": wandb.Image(str(picture))})

    for experiment in experiments_of(loggers) if picture.is_file() else []:
        guarded("has no picture of the entity graph", partial(show, experiment))


def log_table(folder: Path, group: str, forms: Mapping[str, str], plot: Path | None, command: str) -> None:
    """A table as a run of W&B's own, of the job type `table`, in the group of the runs it is made of.

    Args:
        folder: Where W&B's files go; its name is the table's.
        group: Of the table's runs.
        forms: Its texts by their file's ending, `md`, `tex` and `csv`; the last one is also shown.
        plot: As `--plot` has it: a picture of the table, or without an ending two.
        command: What made it.
    """
    import wandb

    name, about = folder.name, {"command": command, **{f"git.{key}": value for key, value in git_state().items()}}
    labels = Labels(group, (shorten(group),))
    experiment = start(folder, shorten(f"table-{name}", ID_LENGTH), labels, "table", about)
    with _staged_below(folder), tempfile.TemporaryDirectory() as place:
        artifact = wandb.Artifact(shorten(f"table-{name}", NAME_LENGTH), type="results-table", metadata=about)
        for ending, text in forms.items():
            file = Path(place) / f"{name}.{ending}"
            file.write_text(text, encoding="utf-8")
            artifact.add_file(str(file))
        pictures = _pictures(plot)
        for file in pictures:
            artifact.add_file(str(file))
        heads, *rows = csv.reader(io.StringIO(forms["csv"]))
        cells = [[_cell(value) for value in row] for row in rows]
        experiment.log_artifact(artifact)
        shown: dict[str, Any] = {"table": wandb.Table(columns=[*heads], data=cells, allow_mixed_types=True)}
        for file in pictures:
            if file.suffix.lower() == ".png":
                shown["plot"] = wandb.Image(str(file))
        experiment.log(shown)
        finish(experiment)


def _pictures(plot: Path | None) -> list[Path]:
    if plot is None:
        return []
    return [plot] if plot.suffix else [plot.with_name(plot.name + ending) for ending in PICTURES]


def _cell(text: str) -> float | str | None:
    """A number as a number, a gap as none."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


@contextmanager
def _staged_below(folder: Path) -> Iterator[None]:
    """W&B copies an artifact's files before it uploads them: beside the run, not into somebody's home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str((folder / "wandb").resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def _hits_table(run: RunFolder, data: Any, result: Any) -> Any:
    import wandb

    queries, gallery = data.eval_splits("test")
    ranking, boxes = result.ranking, read_instances(run.rankings, "test")
    labels, item_labels, captions = data.labels(queries), data.labels(gallery), data.captions(queries)
    heads = ["query", "caption", "mAP@10", f"right of {HITS_SHOWN}", *(f"hit {n + 1}" for n in range(HITS_SHOWN))]
    table = wandb.Table(columns=[*heads])
    for row in chosen_rows(len(ranking.query_ids), QUERIES_SHOWN):
        hits = [int(item) for item in ranking.index_QK[row, :HITS_SHOWN] if item >= 0]
        right = [_is_right(item_labels[item], labels[row]) for item in hits]
        cells: list[Any] = [
            wandb.Image(
                _small(data.picture(gallery, item), PICTURE_SIDE_PX),
                caption=f"{'✓' if good else '✗'} {' | '.join(item_labels[item])}",
            )
            for item, good in zip(hits, right, strict=True)
        ]
        cells += [None] * (HITS_SHOWN - len(cells))
        query = wandb.Image(
            _small(data.picture(queries, row), BOXED_SIDE_PX),
            caption=" | ".join(labels[row]),
            boxes=_boxes(boxes.get(str(ranking.query_ids[row]), [])),
        )
        table.add_data(query, captions[row], float(result.per_query["mAP@10"][row]), sum(right), *cells)
    return table


def _boxes(instances: Sequence[Instance]) -> dict[str, Any] | None:
    """The boxes a query was read by, as W&B draws them over its picture; in fractions of it."""
    found = [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), map(float, instance.box), strict=True)),
            "class_id": 0,
            "box_caption": f"{number + 1}: {instance.score:.2f}",
            "scores": {"detector": float(instance.score)},
        }
        for number, instance in enumerate(instances)
        if instance.score > 0
    ]
    return {"instances": {"box_data": found, "class_labels": {0: "product"}}} if found else None


def chosen_rows(total: int, wanted: int) -> list[int]:
    """Rows evenly spread over a split, the same in every run."""
    return sorted({row * total // wanted for row in range(wanted)}) if total else []


def _is_right(item: Sequence[str], query: Sequence[str]) -> bool:
    return bool(item) and item[0] in query


def _small(picture: bytes, side_px: int) -> Any:
    """Upright, as the model sees it and boxes refer to."""
    from datamodules.pictures import decode_picture

    image = decode_picture(picture, side_px).image
    image.thumbnail((side_px, side_px))
    return image
