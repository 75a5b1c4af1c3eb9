"""Cells of a table: means over seeds, and differences paired by seed and query with their intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from experiments.errors import UsageError
from experiments.runs import SAME_FILE, RunFolder
from experiments.scoreboard import interval_of, value_of
from experiments.stored_scores import read_arrays
from experiments.table_document import NOTHING, Cell, Difference, Number
from experiments.table_rows import Row
from retrieval.significance import paired_bootstrap

BOOTSTRAP_SAMPLES = 2000  # per interval; ten intervals a row, and a table should not keep anybody waiting
SPLIT = "test"


def mean_std(values: Sequence[float | None], digits: int = 4) -> Cell:
    """Mean ± standard deviation; a dash where a value is missing: never averaged over what happens to be there."""
    found = [value for value in values if value is not None]
    if len(found) < len(values) or not found:
        return NOTHING
    return Number(statistics.fmean(found), None if len(found) == 1 else statistics.stdev(found), digits)


def metric(row: Row, prefix: str, column: str) -> Cell:
    """A metric of metrics.json over the row's seeds; the product's is that of the row's `feature`, if it names one."""
    prefix = prefix or of_feature(row)
    return mean_std([value_of(record, SPLIT, prefix, column) for record in row.records])


def against_own(row: Row, prefix: str, column: str) -> Cell:
    """The row's product feature minus one of its floors or modalities."""
    if len(row.records) == 1 and (stored := interval_of(row.records[0], SPLIT, prefix, column)):
        return Difference(stored[0], stored[1], stored[2])
    return _paired([(_scores(run, column), _scores(run, prefix + column)) for run in row.runs])


def against_base(base: Row, row: Row, measure: str) -> Cell:
    """Base minus row, over the seeds that have finished in both."""
    seeds = {record["seed"] for record in base.records} & {record["seed"] for record in row.records}
    names = [of_feature(side) + measure for side in (base, row)]
    return _paired(
        [(_scores(_run_of(base, seed), names[0]), _scores(_run_of(row, seed), names[1])) for seed in sorted(seeds)]
    )


def over_queries(run: RunFolder, measure: str) -> tuple[float, float] | None:
    """The 95 % interval of a run's metric if its queries were drawn again; None without scores per query."""
    found = _scores(run, measure)
    if found is None:
        return None
    drawn = paired_bootstrap(found[1], np.zeros_like(found[1]), samples=BOOTSTRAP_SAMPLES)
    return drawn.low, drawn.high


def of_feature(row: Row) -> str:
    """What stands before the metrics of a row's product embedding: "", or the candidate that the row names."""
    return f"feature/{row.feature}/" if row.feature else ""


Scores = tuple[np.ndarray, np.ndarray]


def _paired(pairs: list[tuple[Scores | None, Scores | None]]) -> Cell:
    """A dash where there is no pair, a side is missing or the queries differ."""
    found = []
    for ours, theirs in pairs:
        if ours is None or theirs is None or not np.array_equal(ours[0], theirs[0]):
            return NOTHING
        found.append((ours[1], theirs[1]))
    if not found:
        return NOTHING
    a_SQ, b_SQ = (np.stack(side) for side in zip(*found, strict=True))
    return Difference(*paired_bootstrap(a_SQ, b_SQ, samples=BOOTSTRAP_SAMPLES)[:3])


def _run_of(row: Row, seed: int) -> RunFolder:
    return next(run for run, record in zip(row.runs, row.records, strict=True) if record["seed"] == seed)


def _scores(run: RunFolder, measure: str) -> Scores | None:
    """Query ids in order, and their scores."""
    name = SAME_FILE if "same/" in measure else SPLIT  # the tasks have different queries
    file = run.rankings / f"{name}.npz"
    if not file.is_file():
        return None
    stored = read_arrays(file, ("query_ids", measure))
    if measure not in stored:
        return None
    query_ids = stored.get("query_ids")
    if query_ids is None or query_ids.ndim != 1 or query_ids.shape != stored[measure].shape:
        raise UsageError(f"{file}: its {measure} are not those of its query_ids; `make eval` writes it again")
    by_id = np.argsort(query_ids)  # the same order in every run
    return query_ids[by_id], stored[measure][by_id]
