"""What the page of a detector's run shows: recalls of boxes, and contact sheets of the region sets it has written."""

from __future__ import annotations

from typing import Any

from experiments.detection_table import COLUMNS, cut_outs, rows
from experiments.page import data_url
from experiments.runs import RunFolder


def contents(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """What templates/detection.html.j2 wants beside the parts common to all pages."""
    return {
        "columns": COLUMNS,
        "rows": rows(record),
        "cut_outs": cut_outs(record),
        "sheets": _sheets(folder),
        "keys": list(COLUMNS),
    }


def _sheets(folder: RunFolder) -> dict[str, str]:
    """The region sets this detector has written: name -> its contact sheet as a data url."""
    files = sorted(folder.root.glob("regions-*.png"))
    return {file.stem.removeprefix("regions-"): data_url("image/png", file.read_bytes()) for file in files}
