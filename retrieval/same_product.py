"""The identical-product task (price comparison): single against single, the query's own item removed.

Queries are the gallery's own items, each ranked against the gallery without itself. Each has one product, so there is
neither mAR nor coverage of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from retrieval.metrics import QueryScores, check_request, scores_of
from retrieval.ranking import NO_ITEM, Ranking, check_ranking, own_rows
from retrieval.relevance import Labels, Relevance, relevance

CUT_OFFS = (1, 5, 10)


def same_product_rows(gallery_labels: Labels) -> np.ndarray:
    """Rows (int64, ascending) of the items that can be queries: another item has the same label, the first of each."""
    firsts = [labels if isinstance(labels, str) else next(iter(labels), None) for labels in gallery_labels]
    times = Counter(firsts)
    return np.array([row for row, label in enumerate(firsts) if label is not None and times[label] > 1], np.int64)


def without_own(ranking: Ranking) -> Ranking:
    """The lists without the query's own item; what stands behind it moves up, and the list ends earlier."""
    ranking = check_ranking(ranking)
    own_Q1 = own_rows(ranking.query_ids, ranking.gallery_ids)[:, None]
    is_own_QK = (ranking.index_QK == own_Q1) & (own_Q1 >= 0)
    order_QK = np.argsort(is_own_QK, axis=1, kind="stable")
    index_QK = np.where(is_own_QK, np.int64(NO_ITEM), ranking.index_QK)
    score_QK = np.where(is_own_QK, np.float32(-np.inf), ranking.score_QK)
    return ranking._replace(
        index_QK=np.take_along_axis(index_QK, order_QK, axis=1), score_QK=np.take_along_axis(score_QK, order_QK, axis=1)
    )


def same_product_scores(
    ranking: Ranking,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = CUT_OFFS,
    protocol: str = "official",
) -> QueryScores:
    """Scores of each query, "mAP@N" and "Prec@N", in the order of `ranking.query_ids`.

    Officially the query's own item is gone from its list but still among its positives, so k can be one too large:
    with one other item of the label, a perfect list has Prec@5 = 1/2. In "textbook" it is no positive either. A query
    without another item of one of its labels cannot be scored and counts as 0.

    Args: as `per_query_scores`; the lists may hold the query's own item or not.

    Raises: as `per_query_scores`.
    """
    check_request(ranking, ks, protocol)
    ranking = without_own(ranking)
    seen = relevance(ranking, query_labels, gallery_labels)
    others_QL = seen.stock_QL - _own_in_slot(ranking, seen, query_labels, gallery_labels)
    lonely_Q = ((seen.times_QL > 0) & (others_QL == 0)).any(1)
    seen = seen._replace(
        unscorable_Q=seen.unscorable_Q | lonely_Q, stock_QL=others_QL if protocol == "textbook" else seen.stock_QL
    )
    found = scores_of(seen, ranking.index_QK, ks, protocol)
    scores = {key: score for key, score in found.scores.items() if key.startswith(("mAP", "Prec"))}
    return found._replace(scores=scores)


def same_product_metrics(
    ranking: Ranking,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = CUT_OFFS,
    protocol: str = "official",
) -> dict[str, float]:
    """Means of `same_product_scores`: "mAP@N" and "Prec@N", as fractions."""
    return same_product_scores(ranking, query_labels, gallery_labels, ks, protocol).means()


def _own_in_slot(ranking: Ranking, seen: Relevance, query_labels: Labels, gallery_labels: Labels) -> np.ndarray:
    """1 at the label that the query's own gallery item has, int64 Q x L."""
    own_QL = np.zeros_like(seen.stock_QL)
    own_Q1 = own_rows(ranking.query_ids, ranking.gallery_ids)[:, None]
    itself = Ranking(ranking.query_ids, ranking.gallery_ids, own_Q1, np.zeros(own_Q1.shape, np.float32))
    slot_Q = relevance(itself, query_labels, gallery_labels).slot_QK[:, 0]
    has_Q = np.flatnonzero(slot_Q >= 0)
    own_QL[has_Q, slot_Q[has_Q]] = 1
    return own_QL
