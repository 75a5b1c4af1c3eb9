"""Labels of a run's test split: the best found, the worst found, and pairs that are taken for each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.errors import UsageError
from experiments.run_shards import RunShards
from experiments.runs import SAME_FILE, RunFolder
from retrieval.by_label import Confusion, LabelScore, confusions, label_scores
from retrieval.official_lists import read_ranking

NUM_RANKS = 10
SHOWN = 10  # labels at either end, and pairs
# A label is ranked by at least so many queries: the first number that enough labels have.
LEAST_QUERIES = (5, 3, 1)
LEAST_PAIRS = 2  # queries behind a pair: one alone says nothing


class Breakdown(NamedTuple):
    """What the page shows of a run's labels; large label sets are cut to both ends."""

    num_labels: int
    num_ranked: int  # named by `least_queries` or more
    least_queries: int
    never_found: int  # of the ranked
    best: list[LabelScore]
    worst: list[LabelScore]
    confused: list[Confusion]
    same_confused: list[Confusion]  # of the identical-product task, by the first hit; empty where it was not asked
    num_ranks: int = NUM_RANKS


def breakdown(folder: RunFolder, shards: RunShards) -> Breakdown:
    """Labels of the test split, from the lists the run has written.

    Raises:
        RetrievalError: If a list is missing or no ranking.
        UsageError: If it has a query that the shards do not have.
    """
    gallery_ids, gallery_labels = [row.id for row in shards.gallery], [row.labels for row in shards.gallery]
    ranking = read_ranking(folder.rankings / "test.txt", gallery_ids)
    labels_of = {row.id: row.labels for row in shards.test}
    unknown = [query for query in ranking.query_ids.tolist() if query not in labels_of]
    if unknown:
        raise UsageError(f"{folder.rankings / 'test.txt'}: {shards.path} has no query {unknown[0]!r}")
    query_labels = [labels_of[query] for query in ranking.query_ids.tolist()]
    scores = label_scores(ranking, query_labels, gallery_labels, NUM_RANKS)
    best, worst, least = both_ends(scores)
    ranked = [score for score in scores if score.queries >= least]
    never = sum(score.found == 0 for score in ranked)
    pairs = _often(confusions(ranking, query_labels, gallery_labels, NUM_RANKS))
    return Breakdown(len(scores), len(ranked), least, never, best, worst, pairs, _same(folder, shards))


def both_ends(scores: Sequence[LabelScore]) -> tuple[list[LabelScore], list[LabelScore], int]:
    """The labels with the highest and the lowest recall, none in both; and the queries that a label must have.

    Equal labels stand by how many queries name them.
    """
    least = next((n for n in LEAST_QUERIES if sum(s.queries >= n for s in scores) >= 2 * SHOWN), LEAST_QUERIES[-1])
    ranked = [score for score in scores if score.queries >= least]
    half = min(SHOWN, len(ranked) // 2)
    best = sorted(ranked, key=lambda score: (-score.recall, -score.found, -score.queries, score.label))[:half]
    rest = [score for score in ranked if score not in best]
    worst = sorted(rest, key=lambda score: (score.recall, score.found, -score.queries, score.label))[:SHOWN]
    return best, worst, least


def _same(folder: RunFolder, shards: RunShards) -> list[Confusion]:
    lists = folder.rankings / f"{SAME_FILE}.txt"
    if not lists.is_file():
        return []
    ranking = read_ranking(lists, [row.id for row in shards.gallery])
    first_of: dict[str, Any] = {row.id: row.labels[:1] for row in shards.gallery}
    wanted = [first_of[query] for query in ranking.query_ids.tolist()]
    from retrieval.same_product import without_own

    return _often(confusions(without_own(ranking), wanted, [row.labels for row in shards.gallery], num_ranks=1))


def _often(pairs: Sequence[Confusion]) -> list[Confusion]:
    return [pair for pair in pairs if pair.queries >= LEAST_PAIRS][:SHOWN]
