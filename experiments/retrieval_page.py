"""What the page of a retrieval run shows: numbers beside their floors, and what the model finds."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import RunFolder
from experiments.scoreboard import COLUMNS, ROWS, SAME_COLUMNS, interval_of, is_product_itself, same_queries, value_of

QUERIES_SHOWN = 10
HITS_SHOWN = 5
PICTURE_SIDE_PX = 200
CUTOFFS = (10, 50, 100)


def contents(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """What templates/report.html.j2 wants beside the parts common to all pages."""
    queries, problem = _queries(folder, record)
    return {
        "columns": COLUMNS,
        "floors": _floor_rows(record, COLUMNS),
        "same_columns": SAME_COLUMNS,
        "same_floors": _floor_rows(record, SAME_COLUMNS),
        "same_queries": same_queries(record) if record.get("same") else "",
        "cutoffs": _cutoffs(record),
        "graph": _graph(folder),
        "queries": queries,
        "problem": problem,
    }


def _floor_rows(record: dict[str, Any], columns: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for label, prefix in ROWS.items():
        if is_product_itself(record, prefix):
            continue
        cells = []
        for column in columns:
            value = value_of(record, "test", prefix, column)
            interval = interval_of(record, "test", prefix, column)
            cells += ["–" if value is None else f"{value:.4f}"]
            cells += ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval) if interval else ""]
        if any(cell not in ("–", "") for cell in cells):
            rows.append({"label": label, "cells": cells})
    return rows


def _cutoffs(record: dict[str, Any]) -> dict[str, Any]:
    columns = [f"{name}@{k}" for k in CUTOFFS for name in ("mAP", "mAR", "Prec")]
    kinds = {"official": "", "textbook": "textbook/", "image only": "image/", "text only": "text/"}
    kinds |= {"image → text": "image->text/", "text → image": "text->image/"}
    rows = [
        {"label": label, "cells": [f"{record['test'][prefix + c]:.4f}" for c in columns]}
        for label, prefix in kinds.items()
        if all(prefix + column in record["test"] for column in columns)
    ]
    return {"columns": columns, "rows": rows}


def _graph(folder: RunFolder) -> str:
    """The picture of the entity graph as a data url, "" where there is none.

    As a picture, not as markup of the page: the names in it come from strangers.
    """
    file = folder.graph.with_suffix(".svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""


def _queries(folder: RunFolder, record: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Some queries with their top hits, and why there are none if there are none."""
    import yaml

    from datamodules.errors import DataError
    from datamodules.shard_folder import ShardFolder

    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    shards = ShardFolder(Path(config["data"]["init_args"]["folder"]))
    try:
        if shards.manifest["data_hash"] != record["data_hash"]:
            return [], f"{shards.path} has changed since the run"
        return _shown(folder, shards), ""
    except (DataError, OSError) as problem:
        return [], str(problem)


def _shown(folder: RunFolder, shards: Any) -> list[dict[str, Any]]:
    lines = (folder.rankings / "test.txt").read_text(encoding="utf-8").splitlines()
    with np.load(folder.rankings / "test.npz", allow_pickle=False) as stored:
        score_of = dict(zip(stored["query_ids"].tolist(), stored["mAP@10"].tolist(), strict=True))
    row_of = {row.id: number for number, row in enumerate(shards.annotations("test"))}
    item_of = {row.id: number for number, row in enumerate(shards.annotations("gallery"))}
    shown = []
    for line in lines[:: max(1, len(lines) // QUERIES_SHOWN)][:QUERIES_SHOWN]:
        query_id, *hit_ids = line.split(",")
        query = shards.annotations("test")[row_of[query_id]]
        hits = [
            _hit(shards, item_of[hit_id], shards.annotations("gallery")[item_of[hit_id]], query.labels)
            for hit_id in hit_ids[:HITS_SHOWN]
        ]
        picture = _embedded(shards.picture("test", row_of[query_id]))
        about = {"id": query.id, "caption": query.caption, "labels": query.labels, "picture": picture, "hits": hits}
        shown.append({**about, "score": f"{score_of[query_id]:.2f}"})
    return shown


def _hit(shards: Any, number: int, item: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    label = item.labels[0] if item.labels else ""
    picture = _embedded(shards.picture("gallery", number))
    return {"id": item.id, "label": label, "right": label in wanted, "picture": picture}


def _embedded(picture: bytes) -> str:
    """A small JPEG as a data url."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((PICTURE_SIDE_PX, PICTURE_SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
