"""What a run keeps of its queries' instances reads back as it was, and goes when it no longer holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.instance_files import Instance, counts, headline, read_instances, write_instances
from retrieval import NO_ITEM, Ranking, read_ranking


class Lists(NamedTuple):
    ranking: Ranking
    owner_I: np.ndarray
    boxes_I4: np.ndarray
    scores_I: np.ndarray
    without: int


class Level(NamedTuple):
    ranking: Ranking
    instances: Lists | None


class Result(NamedTuple):
    levels: dict[str, Level]


def ranking(ids: list[str], index: list[list[int]]) -> Ranking:
    index_QK = np.array(index)
    return Ranking(np.array(ids), np.array(["g0", "g1", "g2"]), index_QK, np.zeros(index_QK.shape, np.float32))


@pytest.fixture
def result() -> Result:
    """Two queries: the first of two instances, the second of the whole picture, as nothing was found."""
    merged = ranking(["q.a", "q"], [[0, 1], [2, 1]])
    lists = ranking(["q.a.0", "q.a.1", "q.0"], [[0, 2], [1, NO_ITEM], [NO_ITEM, NO_ITEM]])
    boxes_I4 = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]], np.float32)
    found = Lists(lists, np.array([0, 0, 1]), boxes_I4, np.array([0.75, 0.5, 0], np.float32), 1)
    return Result({"detected": Level(merged, found), "whole": Level(merged, None)})


def test_the_instances_of_the_headline_are_kept(result: Result, tmp_path: Path) -> None:
    write_instances(tmp_path, "test", result)
    assert read_instances(tmp_path, "test") == {
        "q.a": [Instance((0, 0, 0.5, 1), 0.75, ["g0", "g2"]), Instance((0.5, 0, 1, 1), 0.5, ["g1"])],
        "q": [Instance((0, 0, 1, 1), 0, [])],
    }
    official = read_ranking(tmp_path / "test-instances.txt", ["g0", "g1", "g2"])
    assert official.query_ids.tolist() == ["q.a.0", "q.a.1", "q.0"]
    assert read_instances(tmp_path, "val") == {}


def test_they_are_counted_by_level(result: Result) -> None:
    assert headline(result) == "detected"
    assert counts(result) == {"detected": {"rows": 3, "mean": 1.5, "without": 1}}
    assert (headline(Result({})), counts(Result({}))) == ("whole", {})


def test_an_evaluation_without_them_leaves_none_behind(result: Result, tmp_path: Path) -> None:
    write_instances(tmp_path, "test", result)
    whole: Any = Result({"whole": result.levels["whole"], "detected": result.levels["detected"]})
    write_instances(tmp_path, "test", whole)
    assert list(tmp_path.iterdir()) == []
