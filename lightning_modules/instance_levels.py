"""Queries read at several levels: their picture as one, or each product in it with a list of its own.

Shape legend beside the project's: I instances, those of all queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_modules.embedding_store import InstanceStore
from lightning_modules.errors import ModelError, is_unknown
from lightning_modules.split_search import SplitSearch
from retrieval import Ranking, merge_instances, per_query_scores

WHOLE = "whole"  # the picture as one
DETECTED = "detected"  # the boxes of a detector
TRUE = "true"  # the known boxes: an upper bound, by which nothing may be chosen
HEADLINES = (WHOLE, DETECTED)

# (vector of the queries, of the gallery) -> one list per query
Search = Callable[[str, str], Ranking]
Labels = tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]  # of queries, of gallery items


class InstanceLists(NamedTuple):
    """Each instance with its own list, before they are merged."""

    ranking: Ranking  # one row per instance, "<query id>.<number>", numbers from 0, best first
    owner_I: np.ndarray  # int64, row of the query
    boxes_I4: np.ndarray  # float32: x1, y1, x2, y2 in [0, 1] of the picture
    scores_I: np.ndarray  # float32, the detector's; 1 = true box; 0 = nothing found, the row is the whole picture
    without: int  # queries in which nothing was found


class LevelResult(NamedTuple):
    """What one level found; every list is one per query."""

    metrics: dict[str, float]  # official
    ranking: Ranking
    per_query: dict[str, np.ndarray]  # the numbers behind the means, in the ranking's query order
    feature: str  # the vector by which it ranks
    instances: InstanceLists | None  # of levels but the whole picture


class InstanceSearch:
    """Ranks each instance of a query, and merges the lists into one per query; every rank calls and gets the same.

    Args:
        search: Over instances; its `query_ids` are those of the queries.
        method: Of `retrieval.merge_instances`.
    """

    def __init__(self, search: SplitSearch, method: str) -> None:
        assert isinstance(search.queries, InstanceStore)
        self.query_ids = search.query_ids
        self.owner_I, self.boxes_I4, self.scores_I = search.queries.about(search.device)
        self.search = search.of_queries(_instance_ids(self.query_ids, self.owner_I))
        self.method = method

    def __call__(self, query_name: str, gallery_name: str) -> Ranking:
        """All queries of the split."""
        ranking = self.search(query_name, gallery_name)
        return merge_instances(ranking, self.owner_I, self.query_ids, self.search.depth, self.method)

    def zero_vectors(self, name: str) -> int:
        """Instances and gallery items of all ranks whose embedding is exactly zero."""
        return self.search.zero_vectors(name)

    def lists(self, name: str) -> InstanceLists:
        """The list of each instance, by one vector."""
        without = int(np.count_nonzero(self.scores_I == 0))
        return InstanceLists(self.search(name, name), self.owner_I, self.boxes_I4, self.scores_I, without)


def level_result(
    search: SplitSearch | InstanceSearch, name: str, labels: Labels, ks: Sequence[int], ranking: Ranking | None = None
) -> LevelResult:
    """Score a level by one vector.

    Args:
        ranking: By that vector, where it is known already.
    """
    ranking = search(name, name) if ranking is None else ranking
    found = per_query_scores(ranking, *labels, ks=ks)
    metrics, instances = found.means(), None
    if isinstance(search, InstanceSearch):
        instances = search.lists(name)
        metrics["instances/without"] = float(instances.without)
        metrics["instances/per_query"] = len(instances.owner_I) / len(search.query_ids)
    return LevelResult(metrics, ranking, found.scores, name, instances)


def best_feature(search: Search, names: Sequence[str], labels: Labels, metric: str) -> str:
    """The vector with the highest `metric` (as "mAP@10") at a level; the first on a tie."""
    k = int(metric.rpartition("@")[2])
    scores = {name: per_query_scores(search(name, name), *labels, ks=(k,)).means() for name in names}
    return max(names, key=lambda name: scores[name][metric])


def check_headline(level: str | None) -> None:
    """Raise `ModelError` unless checkpoints and features may be chosen by a level; None is for the data to say."""
    if level == TRUE:
        raise ModelError(
            f"evaluation.level={TRUE}: true boxes are an upper bound and must not choose a checkpoint or a feature; "
            f"they are reported as {TRUE}/… beside {' or '.join(HEADLINES)}"
        )
    if level is not None and level not in HEADLINES:
        raise is_unknown("evaluation.level", level, HEADLINES)


def headline(level: str | None, levels: Sequence[str]) -> str:
    """The level whose metrics have no prefix: the one asked for, else the detector's boxes where they are read.

    Raises:
        ModelError: the data are not read at the level asked for.
    """
    level = level or (DETECTED if DETECTED in levels else WHOLE)
    if level not in levels:
        raise ModelError(f"evaluation.level={level}: queries are not read so; set data.instances=[{level}] as well")
    return level


def levels_of(data: Any, stage: str) -> tuple[str, ...]:
    """Levels at which a DataModule reads the queries of a stage: the whole picture, and what its loaders add."""
    return tuple(data.levels(stage)) if hasattr(data, "levels") else (WHOLE,)


def _instance_ids(query_ids: np.ndarray, owner_I: np.ndarray) -> np.ndarray:
    """Names "<query id>.<number>"; the instances of a query stand together."""
    number_I = np.arange(len(owner_I)) - np.searchsorted(owner_I, owner_I)
    ids = [f"{query_ids[owner]}.{number}" for owner, number in zip(owner_I.tolist(), number_I.tolist(), strict=True)]
    return np.array(ids, dtype=np.str_)
