"""Which labels are found and which are not, and what comes instead: one ranking looked at label by label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval.metrics import items_got, label_recall
from retrieval.ranking import Ranking
from retrieval.relevance import Labels, relevance


class LabelScore(NamedTuple):
    """How well one label is found by the queries that name it. Queries that cannot be scored count as 0."""

    label: str
    queries: int  # that name it
    items: int  # of it in the gallery
    recall: float  # mean over these queries of min(got, expected) / expected, of this label alone: what mAR averages
    found: float  # share of these queries with at least one item of it among the first N: what coverage averages


class Confusion(NamedTuple):
    """A label that was wanted and not found, and one that nobody asked for and that came."""

    wanted: str
    came: str
    queries: int  # that miss the one and have the other among their first N
    missing: int  # queries that miss the wanted one
    naming: int  # queries that name the wanted one


def label_scores(
    ranking: Ranking, query_labels: Labels, gallery_labels: Labels, num_ranks: int = 10
) -> list[LabelScore]:
    """Scores of every label that a query names, in order of first mention; official definition.

    Args:
        query_labels, gallery_labels: as `official_metrics`.
        num_ranks: the cut-off N.

    Raises: RetrievalError where labels and ranking do not fit.
    """
    seen = relevance(ranking, query_labels, gallery_labels)
    scorable_Q1 = ~(seen.unscorable_Q | seen.unknown_QK[:, :num_ranks].any(1))[:, None]
    recall_QL = np.where(scorable_Q1, label_recall(seen, num_ranks), 0.0)
    found_QL = np.where(~seen.unscorable_Q[:, None], items_got(seen, num_ranks) > 0, False)
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for query, labels in enumerate(query_labels):
        for slot, label in enumerate(_distinct(labels)):
            places[label].append((query, slot))
    scores = []
    for label, of_label in places.items():
        rows, slots = np.array(of_label).T
        recall, found = float(recall_QL[rows, slots].mean()), float(found_QL[rows, slots].mean())
        scores.append(LabelScore(label, len(rows), int(seen.stock_QL[rows[0], slots[0]]), recall, found))
    return scores


def confusions(ranking: Ranking, query_labels: Labels, gallery_labels: Labels, num_ranks: int = 10) -> list[Confusion]:
    """Pairs of labels: a query names the first and has no item of it among its first N, but one of the second.

    The second is none of the query's own labels. A query counts once for a pair, and for several pairs where it misses
    several labels or several others came. Most queries first; ties: the larger share of those that name it, then names.

    Args: as `label_scores`.
    """
    firsts = [_distinct(labels)[:1] for labels in gallery_labels]
    together: dict[tuple[str, str], int] = defaultdict(int)
    missing: dict[str, int] = defaultdict(int)
    naming: dict[str, int] = defaultdict(int)
    for labels, index_K in zip(query_labels, ranking.index_QK[:, :num_ranks].tolist(), strict=True):
        wanted = _distinct(labels)
        came = list(dict.fromkeys(label for index in index_K if index >= 0 for label in firsts[index]))
        strangers = [label for label in came if label not in wanted]
        for label in wanted:
            naming[label] += 1
            if label not in came:
                missing[label] += 1
                for stranger in strangers:
                    together[label, stranger] += 1
    found = [
        Confusion(wanted, came, queries, missing[wanted], naming[wanted])
        for (wanted, came), queries in together.items()
    ]
    return sorted(found, key=lambda pair: (-pair.queries, -pair.queries / pair.naming, pair.wanted, pair.came))


def _distinct(labels: str | Sequence[str]) -> list[str]:
    return [labels] if isinstance(labels, str) else list(dict.fromkeys(labels))
