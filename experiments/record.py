"""metrics.json and what lies beside it: the record of one run, complete enough to be put in a table years later."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import instance_files, machine, scoreboard
from experiments.config import Composition, dump
from experiments.graph_picture import write_graph
from experiments.runs import SAME_FILE, RunFolder, atomic, config_hash, git_state, write_json, write_text

SPLITS = ("val", "test")


class Outcome(NamedTuple):
    """One evaluated model, as rank zero sees it."""

    run: RunFolder
    composition: Composition
    engine: Any  # experiments.engine.Engine
    command: str
    results: dict[str, Any]  # split -> SplitResult
    untrained: dict[str, Any] | None  # the same before training, where there was training


# What an evaluation cannot know and takes over from the record of the training, and what was timed on its `hardware`.
FROM_TRAINING = (
    *("command", "steps", "parameters", "train_seconds", "skipped", "git", "hardware", "config_hash", "run_id"),
)
TIMED = ("samples_per_second", "throughput", "embedding_ms_per_item", "same_seconds")


def assemble(outcome: Outcome, training: dict[str, Any]) -> dict[str, Any]:
    """The content of metrics.json; also writes rankings, per-query scores and the picture of the entity graph.

    Rank zero's numbers, any rank may call.

    Args:
        training: What the training said about itself (`FROM_TRAINING`, floors of the untrained model); may be empty.
    """
    from experiments.progress import trained_parameters

    composition, engine, results = outcome.composition, outcome.engine, outcome.results
    record: dict[str, Any] = {
        "run_id": outcome.run.run_id,
        "experiment": composition.experiment,
        "data": composition.data.name,
        "data_hash": composition.data.data_hash,
        "scale": composition.scale,
        "seed": composition.seed,
        "git": git_state(),
        "config_hash": config_hash(composition),
        "metric_version": "official",
        "command": outcome.command,
        "hardware": hardware(engine.trainer),
        "steps": 0,
        "parameters": trained_parameters(engine.model),
        "train_seconds": 0.0,
        "samples_per_second": None,
        "throughput": {},
        "embedding_ms_per_item": results["test"].embedding_ms_per_item,
        "same_seconds": round(results["test"].same.seconds, 3) if results["test"].same else None,
        "skipped": {f"build/{reason}": n for reason, n in composition.data.skipped().items()},
    }
    record |= {key: training[key] for key in (*FROM_TRAINING, *TIMED) if key in training}
    record["unscorable"] = results["test"].unscorable
    record["unscorable_val"] = results["val"].unscorable
    record["feature"] = results["test"].features["product"]
    record["features"] = results["test"].features
    if results["test"].reranked:
        depth, cost = outcome.engine.evaluation.rerank, results["test"].reranked
        record["rerank"] = {"depth": depth, "pairs": cost.pairs, "seconds": round(cost.seconds, 3)}
        record["rerank"]["command"] = outcome.command  # an evaluation's own, where training did not re-rank
    record["level"] = instance_files.headline(results["test"])
    if boxes := {split: found for split in SPLITS if (found := instance_files.counts(results[split]))}:
        record["instances"] = boxes
    record |= {"val": {}, "test": {}, "floors": {}, "intervals": {}}
    if machine.rank() == 0:
        for split in SPLITS:
            _add_split(record, outcome, split, training)
        _add_same_product(record, outcome, training)
        write_graph(outcome.run.graph, engine.model, engine.data)
    return record


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
    with np.load(file, allow_pickle=False) as stored:
        if not np.array_equal(stored["query_ids"], np.asarray(query_ids, dtype=str)):
            return {}
        return {key: stored[key] for key in stored.files if key.startswith("untrained/")}


def write_results(run: RunFolder, record: dict[str, Any]) -> None:
    """metrics.json last: a run folder that has it is complete."""
    write_json(run.metrics, record)


def write_config(run: RunFolder, composition: Composition, config: dict[str, Any]) -> None:
    """config.yaml: every value of the run, and under `run` what it is called. Rank zero only writes."""
    if machine.rank() == 0:
        about = {
            "experiment": composition.experiment,
            "scale": composition.scale,
            "data": composition.data.name,
            "data_hash": composition.data.data_hash,
            "layers": list(composition.layers),
        }
        write_text(run.config, dump({"run": about, **config}))


def recorded_run(run: RunFolder) -> dict[str, Any]:
    """The `run` part of a run folder's config.yaml."""
    import yaml

    return dict(yaml.safe_load(run.config.read_text(encoding="utf-8"))["run"])


def hardware(trainer: Any) -> dict[str, Any]:
    """The machine and what of it the trainer used."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return machine.describe() | {
        "gpus": gpus,
        "accelerator": type(trainer.accelerator).__name__,
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "torch": torch.__version__,
    }
