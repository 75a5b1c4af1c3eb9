"""Every number that a run records has one definition, in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.definitions import DETECTION, LOSSES, RANKINGS, RETRIEVAL, SPEED, anchor, define, definitions, rankings
from experiments.detection_table import RECALLS
from experiments.history import read_history
from experiments.scoreboard import COLUMNS, LEVEL_COLUMNS, LEVELS, ROWS, SAME_COLUMNS

ALL = (*RETRIEVAL, *DETECTION, *LOSSES, *SPEED)


def test_every_metric_of_a_run_is_defined(record: dict[str, Any]) -> None:
    keys = {f"{split}/{key}" for split in ("val", "test") for key in record[split]}
    keys |= set(record["floors"]["test"]["tfidf"]) | set(record["throughput"])
    assert len(keys) > 100
    assert [key for key in sorted(keys) if define(key) is None] == []


def test_every_loss_in_the_curves_of_a_run_is_defined(run: Path) -> None:
    losses = {key for row in read_history(run / "history.jsonl") for key in row if key.startswith("train/loss")}
    assert len(losses) > 3
    assert [key for key in sorted(losses) if define(key) is None] == []


@pytest.mark.parametrize("key", [*COLUMNS, *LEVEL_COLUMNS, *SAME_COLUMNS, *RECALLS, "precision/IoU50", "proposals"])
def test_every_column_of_a_table_is_defined_with_how_it_is_computed(key: str) -> None:
    found = define(f"test/{key}")
    assert found is not None
    assert found.words
    assert found.formula or key == "proposals"


def test_official_and_textbook_and_the_identical_product_are_told_apart() -> None:
    keys = ["mAP@10", "textbook/mAP@10", "same/mAP@10", "textbook/same/mAP@10", "mAR@10", "textbook/mAR@10"]
    assert len(definitions(keys)) == len(keys)
    assert len({one.formula for one in definitions(keys)}) == len(keys)
    assert define("val/image->text/mAP@50") == define("feature/concat_co/mAP@10") == define("mAP@100")
    assert define("text/same/mAP@1") == define("same/mAP@5")


def test_no_key_has_two_definitions_and_no_two_share_a_place() -> None:
    keys = ["mAP@10", "same/Prec@1", "textbook/coverage@50", "recall@10", "recall@10/IoU50", "loss", "loss_mlm", "mfu"]
    for key in keys:
        assert [one.name for one in ALL if re.fullmatch(one.pattern, key)] == [define(key).name]  # type: ignore[union-attr]
    assert len({one.anchor for one in ALL}) == len(ALL)


def test_what_is_not_known_has_none() -> None:
    assert define("train/loss_of_my_own") is None
    assert anchor("no metric") == ""
    assert definitions(["train/loss_of_my_own"]) == []


def test_every_row_is_said_to_be_of_what() -> None:
    assert {*ROWS, *LEVELS.values()} <= set(RANKINGS)
    assert [name for name, _ in rankings(["mAP@10", "image only mAP@10", "TF-IDF on captions", "CAPTURE"])] == [
        "image only",
        "TF-IDF on captions",
    ]
