"""What a run keeps of its queries' instances: how many there were, and each one's box and list of hits.

`rankings/<split>-instances.txt` is in the official list format, one line per instance, `<query>.<n>`; beside it,
`<split>-instances.npz` with rows in the same order: `ids`, `owners` (query ids), `boxes` (x1, y1, x2, y2 in [0, 1] of
the picture) and `scores` (the detector's; 0 = nothing found, the box is the whole picture). Both are of the level that
the product feature is of, since that is what the report shows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import UsageError
from experiments.runs import atomic
from experiments.stored_scores import read_arrays

COLUMNS = ("ids", "owners", "boxes", "scores")  # of the table


class Instance(NamedTuple):
    """One instance of a query as it was written."""

    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in [0, 1] of the picture
    score: float  # the detector's; 0 = nothing found
    hits: list[str]  # item ids, best first


def headline(result: Any) -> str:
    """The level whose metrics have no prefix: a SplitResult's `levels` begin with it."""
    return next(iter(result.levels), "whole")


def counts(result: Any) -> dict[str, dict[str, float]]:
    """Per level with boxes: rows of all queries, rows per query, and queries without a box, which count as one row."""
    return {
        name: {
            "rows": len(level.instances.owner_I),
            "mean": round(len(level.instances.owner_I) / max(1, len(level.ranking.query_ids)), 4),
            "without": int(level.instances.without),
        }
        for name, level in result.levels.items()
        if level.instances is not None
    }


def write_instances(folder: Path, split: str, result: Any) -> None:
    """Write the headline's instances; where it has none, remove those of an earlier evaluation."""
    from retrieval.official_lists import write_ranking

    lists, table = (folder / f"{split}-instances.{ending}" for ending in ("txt", "npz"))
    level = result.levels.get(headline(result))
    if level is None or level.instances is None:
        lists.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
        return
    found = level.instances
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(lists) as temporary:
        write_ranking(found.ranking, temporary)
    with atomic(table) as temporary:
        np.savez_compressed(
            temporary,
            ids=np.asarray(found.ranking.query_ids, dtype=str),
            owners=np.asarray(level.ranking.query_ids, dtype=str)[found.owner_I],
            boxes=np.asarray(found.boxes_I4, dtype=np.float32),
            scores=np.asarray(found.scores_I, dtype=np.float32),
        )


def read_instances(folder: Path, split: str) -> dict[str, list[Instance]]:
    """Query id -> its instances in order; empty where a run has none.

    Raises:
        UsageError: The files are damaged, or do not belong together.
    """
    lists, table = (folder / f"{split}-instances.{ending}" for ending in ("txt", "npz"))
    if not lists.is_file() or not table.is_file():
        return {}
    try:
        hits_of = dict(line.partition(",")[::2] for line in lists.read_text(encoding="utf-8").splitlines())
    except ValueError as problem:
        raise UsageError(f"{lists}: not UTF-8 ({problem}); `make eval` writes it again") from None
    stored = read_arrays(table, COLUMNS)
    if not _belong_together(stored, hits_of):
        raise UsageError(f"{table}: does not fit {lists.name}; `make eval` writes both again")
    found: dict[str, list[Instance]] = {}
    for instance, owner, box, score in zip(*(stored[key].tolist() for key in COLUMNS), strict=True):
        hits = [item for item in hits_of[instance].split(",") if item]
        found.setdefault(owner, []).append(Instance(tuple(box), score, hits))
    return found


def _belong_together(stored: dict[str, np.ndarray], lists: Collection[str]) -> bool:
    """Whether there is a box in the picture, a score and a list for each instance."""
    if stored.keys() != set(COLUMNS):
        return False
    ids_I, owners_I, boxes_I4, scores_I = (stored[key] for key in COLUMNS)
    num = ids_I.size
    return (
        all(part.ndim == 1 and part.dtype.kind == "U" for part in (ids_I, owners_I))
        and all(part.dtype.kind == "f" for part in (boxes_I4, scores_I))
        and (owners_I.shape, boxes_I4.shape, scores_I.shape) == ((num,), (num, 4), (num,))
        and bool(((boxes_I4 >= 0) & (boxes_I4 <= 1)).all() and np.isfinite(scores_I).all())
        and set(ids_I.tolist()) <= set(lists)
    )
