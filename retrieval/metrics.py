"""Instance-level retrieval metrics: the official definition, its first published variant, and the textbook one.

All are means over queries of scores in [0, 1]; `per_query_scores` gives the scores, for bootstraps and examples.
mAP and Prec do not reward covering all products of a query; mAR does, and coverage asks nothing else: show them
together.

Source: the evaluation scripts of the Product1M release (official) and of VIMER-UMS (textbook); coverage is this
project's own and the same number under every protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.ranking import Ranking
from retrieval.relevance import Labels, Relevance, relevance

PROTOCOLS = ("official", "official-2022-04-20", "textbook")


class QueryScores(NamedTuple):
    """Scores of each query under one protocol; the metrics are their means."""

    protocol: str
    scores: dict[str, np.ndarray]  # metric key, as "mAP@10", to float64 Q
    unscorable_Q: np.ndarray  # bool; such a query counts as 0 everywhere

    @property
    def unscorable(self) -> int:
        """Number of queries that could not be scored."""
        return int(np.count_nonzero(self.unscorable_Q))

    def means(self) -> dict[str, float]:
        """The metrics, as fractions."""
        return {key: float(score_Q.mean()) for key, score_Q in self.scores.items()}


def official_metrics(
    ranking: Ranking,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = (10, 50, 100),
    version: str = "official",
) -> dict[str, float]:
    """The metrics of the Product1M release, REFERENCE §3.

    With L the query's label multiset, pos its gallery items (again for each repeat of a label), r the list and
    k = min(N, |pos|, |r|): AP@N = sum over hit ranks i <= k of (hits so far / i) / hits within k; Prec@N = hits
    within k / k; AR@N = mean over distinct labels c of min(got, expected) / expected, expected(c) = int(N / |L|) for
    each mention of c, at most the gallery items of c, and got(c) counted within the first N. Beside them, not official:
    coverage@N = share of the distinct labels with got(c) >= 1.

    Args:
        query_labels: per query its labels, repeats kept. gallery_labels: per item; its first label counts.
        ks: the cut-offs N.
        version: "official", or "official-2022-04-20", whose AR keeps only the label retrieved last, still divided by
            the number of distinct labels (published mAR may be this one: a perfect ranking scores about 0.44).

    Returns: "mAP@N", "mAR@N", "Prec@N", "coverage@N" for each N, as fractions; a query that cannot be scored counts
        as 0.

    Raises: RetrievalError on an unknown version, no queries, or labels that do not fit the ranking.
    """
    if version == "textbook":
        raise RetrievalError("version 'textbook' is no official one: use textbook_metrics")
    return per_query_scores(ranking, query_labels, gallery_labels, ks, version).means()


def textbook_metrics(
    ranking: Ranking, query_labels: Labels, gallery_labels: Labels, ks: Sequence[int] = (10, 50, 100)
) -> dict[str, float]:
    """The usual definitions, over distinct positives: AP@N = sum over hit ranks i <= N of (hits so far / i)
    / min(positives, N); Prec@N = hits / N; AR@N = mean over distinct c of min(1, got / min(round(share x N), items
    of c)), `round` to even.

    Args, Returns, Raises: as `official_metrics`.

    Differs: where round(share x N) is 0 the definition divides by zero; one item of the label is expected then.
    """
    return per_query_scores(ranking, query_labels, gallery_labels, ks, "textbook").means()


def per_query_scores(
    ranking: Ranking,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = (10, 50, 100),
    protocol: str = "official",
) -> QueryScores:
    """Scores of each query, in the order of `ranking.query_ids`; their means are the metrics.

    Args: as `official_metrics`; protocol is one of PROTOCOLS.

    Raises: RetrievalError on an unknown protocol, no queries, or labels that do not fit the ranking.
    """
    check_request(ranking, ks, protocol)
    return scores_of(relevance(ranking, query_labels, gallery_labels), ranking.index_QK, ks, protocol)


def check_request(ranking: Ranking, ks: Sequence[int], protocol: str) -> None:
    """Raise RetrievalError on an unknown protocol, no queries, or cut-offs that are none."""
    if protocol not in PROTOCOLS:
        raise RetrievalError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if not len(ranking.query_ids):
        raise RetrievalError("there are no queries to score")
    if not ks or min(ks) < 1:
        raise RetrievalError(f"cut-offs must be positive whole numbers; got ks={tuple(ks)}")


def scores_of(seen: Relevance, index_QK: np.ndarray, ks: Sequence[int], protocol: str) -> QueryScores:
    """Scores of a ranking that has been looked up among the labels."""
    if protocol == "textbook":
        seen = _without_repeats(seen, index_QK)
    scores: dict[str, np.ndarray] = {}
    for num_ranks in ks:
        if protocol == "textbook":
            ap_Q, precision_Q = _textbook_ap_precision(seen, num_ranks)
            ar_Q = _textbook_recall(seen, num_ranks)
        else:
            ap_Q, precision_Q = _official_ap_precision(seen, num_ranks)
            ar_Q = _official_recall(seen, num_ranks, last_label_only=protocol == "official-2022-04-20")
        coverage_Q = _ratio((items_got(seen, num_ranks) > 0).sum(1), seen.num_labels)
        for name, score_Q in (("mAP", ap_Q), ("mAR", ar_Q), ("Prec", precision_Q), ("coverage", coverage_Q)):
            scores[f"{name}@{num_ranks}"] = np.where(seen.unscorable_Q, 0.0, score_Q)
    return QueryScores(protocol, scores, seen.unscorable_Q)


def _official_ap_precision(seen: Relevance, num_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    num_positives_Q = (seen.times_QL * seen.stock_QL).sum(1)
    k_Q = np.minimum(np.minimum(num_positives_Q, seen.length_Q), num_ranks)
    precision_sum_Q, hits_Q = _precision_sum(seen, k_Q)
    return _ratio(precision_sum_Q, hits_Q), _ratio(hits_Q, k_Q)


def label_recall(seen: Relevance, num_ranks: int) -> np.ndarray:
    """What official AR@N averages, float64 Q x L: min(got, expected) / expected of each of a query's labels."""
    mentions_Q = seen.times_QL.sum(1)
    each_Q = num_ranks // np.maximum(mentions_Q, 1)
    expected_QL = np.minimum(seen.times_QL * each_Q[:, None], seen.stock_QL)
    got_QL = np.minimum(items_got(seen, num_ranks), expected_QL)
    return _ratio(got_QL, expected_QL)  # nothing expected: 0, and then nothing is expected of any label


def items_got(seen: Relevance, num_ranks: int) -> np.ndarray:
    """Items of each of the query's labels among the first N, int64 Q x L."""
    num_queries, num_slots = seen.times_QL.shape
    row, column = np.nonzero(seen.slot_QK[:, :num_ranks] >= 0)
    flat = row * num_slots + seen.slot_QK[row, column]
    return np.bincount(flat, minlength=num_queries * num_slots).reshape(num_queries, num_slots)


def _official_recall(seen: Relevance, num_ranks: int, last_label_only: bool) -> np.ndarray:
    recall_QL = label_recall(seen, num_ranks)
    if last_label_only:
        recall_QL = np.where(_retrieved_last(seen, num_ranks), recall_QL, 0.0)
    recall_Q = _ratio(recall_QL.sum(1), seen.num_labels)
    return np.where(seen.unknown_QK[:, :num_ranks].any(1), 0.0, recall_Q)


def _textbook_ap_precision(seen: Relevance, num_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    num_positives_Q = seen.stock_QL.sum(1)
    precision_sum_Q, hits_Q = _precision_sum(seen, np.full(len(seen.length_Q), num_ranks))
    return _ratio(precision_sum_Q, np.minimum(num_positives_Q, num_ranks)), hits_Q / num_ranks


def _textbook_recall(seen: Relevance, num_ranks: int) -> np.ndarray:
    share_QL = _ratio(seen.times_QL, seen.times_QL.sum(1)[:, None])
    expected_QL = np.minimum(np.maximum(np.rint(share_QL * num_ranks), 1), seen.stock_QL)
    recall_QL = np.minimum(_ratio(items_got(seen, num_ranks), expected_QL), 1.0)
    return _ratio(recall_QL.sum(1), seen.num_labels)


def _precision_sum(seen: Relevance, k_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over hit ranks i <= k of (hits so far / i), and the hits within k."""
    rank_K = np.arange(1, seen.slot_QK.shape[1] + 1)
    hit_QK = (seen.slot_QK >= 0) & (rank_K <= k_Q[:, None])
    precision_QK = np.where(hit_QK, hit_QK.cumsum(1) / rank_K, 0.0)
    return precision_QK.sum(1), np.count_nonzero(hit_QK, axis=1)


def _retrieved_last(seen: Relevance, num_ranks: int) -> np.ndarray:
    """Bool Q x L: the label whose first item comes latest within the first N; none where nothing was retrieved."""
    first_QL = np.full(seen.times_QL.shape, num_ranks)
    row, column = np.nonzero(seen.slot_QK[:, :num_ranks] >= 0)
    np.minimum.at(first_QL, (row, seen.slot_QK[row, column]), column)
    retrieved_QL = first_QL < num_ranks
    latest_Q = np.where(retrieved_QL, first_QL, -1).max(axis=1, initial=-1)
    return retrieved_QL & (first_QL == latest_Q[:, None])


def _without_repeats(seen: Relevance, index_QK: np.ndarray) -> Relevance:
    """Positives are distinct items, so a list that names one twice gets no second hit for it."""
    order_QK = np.argsort(index_QK, axis=1, kind="stable")
    sorted_QK = np.take_along_axis(index_QK, order_QK, axis=1)
    again_QK = np.zeros(index_QK.shape, bool)
    np.put_along_axis(again_QK, order_QK[:, 1:], sorted_QK[:, 1:] == sorted_QK[:, :-1], axis=1)
    return seen._replace(slot_QK=np.where(again_QK, -1, seen.slot_QK))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient in float64, 0 where there is nothing to divide by."""
    denominator = np.broadcast_to(denominator, np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=np.zeros(denominator.shape), where=denominator != 0)
