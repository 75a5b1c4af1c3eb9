"""What stands at each rank, in terms of the query's own labels: the ground the metrics are computed on.

Labels are compared as strings once, here; everything after works on small integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.ranking import UNKNOWN_ITEM, Ranking, check_ranking

Labels = Sequence[str] | Sequence[Sequence[str]]  # one entry per item: a label, or all its labels


class Relevance(NamedTuple):
    """A ranking seen through the labels of its queries. A slot is one distinct label of a query."""

    slot_QK: np.ndarray  # int64, slot of the item at this rank, -1 = not relevant (or no item)
    unknown_QK: np.ndarray  # bool, an id that is not in the gallery
    length_Q: np.ndarray  # int64, items in the list
    times_QL: np.ndarray  # int64, how often the query names the label; 0 = no such slot
    stock_QL: np.ndarray  # int64, gallery items of the label
    unscorable_Q: np.ndarray  # bool: no label, a label without gallery items, or an empty list

    @property
    def num_labels(self) -> np.ndarray:
        """Distinct labels of each query, int Q."""
        return np.count_nonzero(self.times_QL, axis=1)


def relevance(ranking: Ranking, query_labels: Labels, gallery_labels: Labels) -> Relevance:
    """Look up each ranked item among the labels of its query.

    Args:
        query_labels: per row of `ranking.query_ids` its labels, repeats kept.
        gallery_labels: per row of `ranking.gallery_ids` its labels; an item counts for the **first** one only.

    Raises: RetrievalError when labels and ids differ in number.
    """
    ranking = check_ranking(ranking)
    _check_count("query", len(ranking.query_ids), len(query_labels))
    _check_count("gallery", len(ranking.gallery_ids), len(gallery_labels))
    code_of: dict[str, int] = {}
    code_N = np.array([_first_code(labels, code_of) for labels in gallery_labels], np.int64)
    code_QL, times_QL = _query_slots(query_labels, code_of)
    stock = np.bincount(code_N[code_N >= 0], minlength=len(code_of))
    stock_QL = np.where(times_QL > 0, stock[np.maximum(code_QL, 0)] if stock.size else 0, 0)

    item_code_QK = np.full(ranking.index_QK.shape, -1, np.int64)
    known_QK = ranking.index_QK >= 0
    item_code_QK[known_QK] = code_N[ranking.index_QK[known_QK]]
    slot_QK = np.full_like(item_code_QK, -1)
    for slot in range(code_QL.shape[1]):  # labels of a query are few: a loop over them beats a Q x K x L table
        slot_QK[(item_code_QK == code_QL[:, slot, None]) & (item_code_QK >= 0)] = slot
    length_Q = ranking.lengths
    unscorable_Q = (times_QL.sum(1) == 0) | ((times_QL > 0) & (stock_QL == 0)).any(1) | (length_Q == 0)
    return Relevance(slot_QK, ranking.index_QK == UNKNOWN_ITEM, length_Q, times_QL, stock_QL, unscorable_Q)


def _check_count(what: str, num_ids: int, num_labels: int) -> None:
    if num_ids != num_labels:
        raise RetrievalError(f"the ranking has {num_ids} {what} ids but {num_labels} {what} label entries were given")


def _first_code(labels: str | Sequence[str], code_of: dict[str, int]) -> int:
    """Code of an item's label; -1 for an item without one, which is never relevant."""
    if not isinstance(labels, str):
        if not len(labels):
            return -1
        labels = labels[0]
    return code_of.setdefault(labels, len(code_of))


def _query_slots(query_labels: Labels, code_of: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct label codes of each query in order of first mention, and how often each is named."""
    counts = [Counter([labels] if isinstance(labels, str) else labels) for labels in query_labels]
    num_slots = max((len(count) for count in counts), default=0)
    code_QL = np.full((len(counts), num_slots), -1, np.int64)
    times_QL = np.zeros((len(counts), num_slots), np.int64)
    filled_QL = np.arange(num_slots) < np.array([len(count) for count in counts], np.int64)[:, None]
    for label in chain.from_iterable(counts):
        code_of.setdefault(label, len(code_of))
    code_QL[filled_QL] = [code_of[label] for count in counts for label in count]
    times_QL[filled_QL] = [times for count in counts for times in count.values()]
    return code_QL, times_QL
