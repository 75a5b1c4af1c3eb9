"""The numbers of a retrieval run for its metrics.json (metrics, floors, intervals), and the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import instance_files, machine, scoreboard
from experiments.graph_picture import write_graph
from experiments.record import Outcome
from experiments.runs import SAME_FILE, atomic
from experiments.stored_scores import read_arrays

SPLITS = ("val", "test")


def add_results(record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> None:
    """Fill in `record`; on rank zero also write rankings, per-query scores and the picture of the entity graph.

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
    if machine.rank() == 0:
        for split in SPLITS:
            _add_split(record, outcome, split, training)
        _add_same_product(record, outcome, training)
        write_graph(outcome.run.graph, engine.model, engine.data)


def _add_split(record: dict[str, Any], outcome: Outcome, split: str, training: dict[str, Any]) -> None:
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

    _write_ranking(folder, split, result.ranking, per_query)
    instance_files.write_instances(folder, split, result)


def _add_same_product(record: dict[str, Any], outcome: Outcome, training: dict[str, Any]) -> None:
    """The identical-product task of the test split; val's, in its curves, has the same gallery and so the same queries.

    Floors and intervals stand beside those of the other task, lists and per-query scores in files of their own.
    """
    from experiments.floors import same_product_floors
    from retrieval.same_product import CUT_OFFS

    same, folder = outcome.results["test"].same, outcome.run.rankings
    if same is None:
        return
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
    _write_ranking(folder, SAME_FILE, same.ranking, per_query)


def _write_ranking(folder: Path, name: str, ranking: Any, per_query: dict[str, Any]) -> None:
    from retrieval.official_lists import write_ranking

    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{name}.txt") as temporary:
        write_ranking(ranking, temporary)
    with atomic(folder / f"{name}.npz") as temporary:
        np.savez_compressed(temporary, query_ids=np.asarray(ranking.query_ids, dtype=str), **per_query)


def _stored_untrained(file: Any, query_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Per-query scores of the untrained model from an earlier record of the same queries."""
    if not file.is_file():
        return {}
    stored = read_arrays(file)
    if not np.array_equal(stored.get("query_ids", ()), np.asarray(query_ids, dtype=str)):
        return {}
    return {key: values for key, values in stored.items() if key.startswith("untrained/")}
