"""The numbers of a retrieval run for its metrics.json (metrics, floors, intervals), and the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import instance_files, machine, scoreboard
from experiments.errors import UsageError
from experiments.graph_picture import write_graph
from experiments.output import say
from experiments.record import Outcome
from experiments.runs import SAME_FILE, atomic
from experiments.stored_scores import read_arrays

SPLITS = ("val", "test")
PerQuery = dict[str, np.ndarray]  # metric -> score of each query


def add_results(record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> Callable[[], None]:
    """Fill in `record`; what writes rankings, per-query scores and the picture of the entity graph, on rank zero.

    Args:
        training: The record of the training: floors of the untrained model, and what was timed there.
    """
    engine, val, test = outcome.engine, outcome.results["val"], outcome.results["test"]
    timed = {"embedding_ms_per_item": test.embedding_ms_per_item}
    timed["same_seconds"] = round(test.same.seconds, 3) if test.same else None
    record |= timed | {key: training[key] for key in timed if key in training}
    record["unscorable"], record["unscorable_val"] = test.unscorable, val.unscorable
    record["feature"] = test.features["product"]
    record["features"] = test.features
    if test.reranked:
        depth, cost = engine.evaluation.rerank, test.reranked
        record["rerank"] = {"depth": depth, "pairs": cost.pairs, "seconds": round(cost.seconds, 3)}
        record["rerank"]["command"] = outcome.command  # an evaluation's own, where training did not re-rank
    record["level"] = instance_files.headline(test)
    if boxes := {split: found for split in SPLITS if (found := instance_files.counts(outcome.results[split]))}:
        record["instances"] = boxes
    record |= {"val": {}, "test": {}, "floors": {}, "intervals": {}}
    scores: dict[str, PerQuery] = {}
    if machine.rank() == 0:
        scores = {split: _add_split(record, outcome, split, training) for split in SPLITS}
        if test.same:
            scores[SAME_FILE] = _add_same_product(record, outcome, training)
    return partial(_write_files, outcome, scores)


def _write_files(outcome: Outcome, scores: Mapping[str, PerQuery]) -> None:
    folder = outcome.run.rankings
    for name, per_query in scores.items():
        result = outcome.results["test"].same if name == SAME_FILE else outcome.results[name]
        _write_ranking(folder, name, result.ranking, per_query)
    for split in SPLITS:
        instance_files.write_instances(folder, split, outcome.results[split])
    write_graph(outcome.run.graph, outcome.engine.model, outcome.engine.data)


def _add_split(record: dict[str, Any], outcome: Outcome, split: str, training: dict[str, Any]) -> PerQuery:
    from experiments.floors import caption_floors

    result, folder = outcome.results[split], outcome.run.rankings
    floors, floor_scores = caption_floors(outcome.engine.data, split, outcome.engine.evaluation.ks)
    per_query = {**result.per_query, **floor_scores}
    if outcome.untrained:
        before = outcome.untrained[split]
        floors["untrained"] = before.metrics
        own = {key: score for key, score in before.per_query.items() if "/" not in key}
        per_query |= {f"untrained/{key}": score for key, score in own.items()}
    elif "untrained" in training.get("floors", {}).get(split, {}):
        floors["untrained"] = training["floors"][split]["untrained"]
        per_query |= _stored_untrained(folder / f"{split}.npz", result.ranking.query_ids)
    record[split] = result.metrics
    record["floors"][split] = floors
    levels = [f"{name}/" for name in scoreboard.LEVELS]
    record["intervals"][split] = scoreboard.intervals(per_query)
    record["intervals"][split] |= scoreboard.intervals(per_query, scoreboard.LEVEL_COLUMNS, prefixes=levels)
    return per_query


def _add_same_product(record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> PerQuery:
    """The identical-product task of the test split; val's, in its curves, has the same gallery and so the same queries.

    Floors and intervals stand beside those of the other task, lists and per-query scores in files of their own.
    """
    from experiments.floors import same_product_floors
    from retrieval.same_product import CUT_OFFS

    same, folder = outcome.results["test"].same, outcome.run.rankings
    queries = same.ranking.query_ids
    record["same"] = {"queries": len(queries), "left_out": same.left_out}
    gallery = outcome.engine.data.eval_splits("test")[1]
    floors, floor_scores = same_product_floors(outcome.engine.data, gallery, queries, CUT_OFFS)
    for name, metrics in floors.items():
        record["floors"]["test"][name] |= metrics
    per_query = {**same.per_query, **floor_scores}
    before = outcome.untrained["test"].same if outcome.untrained else None
    if before is not None:
        own = {key: score for key, score in before.per_query.items() if key.startswith("same/")}
        per_query |= {f"untrained/{key}": score for key, score in own.items()}
    elif "untrained" in training.get("floors", {}).get("test", {}):
        per_query |= _stored_untrained(folder / f"{SAME_FILE}.npz", queries)
    found = scoreboard.intervals(per_query, scoreboard.SAME_COLUMNS, scoreboard.SAME_SAMPLES)
    for rival, of_metric in found.items():
        record["intervals"]["test"].setdefault(rival, {}).update(of_metric)
    return per_query


def _write_ranking(folder: Path, name: str, ranking: Any, per_query: Mapping[str, Any]) -> None:
    from retrieval.official_lists import write_ranking

    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{name}.txt") as temporary:
        write_ranking(ranking, temporary)
    with atomic(folder / f"{name}.npz") as temporary:
        np.savez_compressed(temporary, query_ids=np.asarray(ranking.query_ids, dtype=str), **per_query)


def _stored_untrained(file: Path, query_ids: np.ndarray) -> PerQuery:
    """Per-query scores of the untrained model from an earlier record of the same queries."""
    if not file.is_file():
        return {}
    try:
        stored = read_arrays(file)
    except UsageError:
        say(f"{file} cannot be read: the untrained model's scores of each query are lost, and with them its intervals")
        return {}
    if not np.array_equal(stored.get("query_ids", ()), np.asarray(query_ids, dtype=str)):
        return {}
    return {key: values for key, values in stored.items() if key.startswith("untrained/")}
