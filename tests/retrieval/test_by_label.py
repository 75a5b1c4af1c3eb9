"""What is found of each label, and what comes instead, on lists small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval import Ranking, official_metrics
from retrieval.by_label import confusions, label_scores

GALLERY = [("tea",), ("tea",), ("milk", "tea"), ("soap",), ("salt",)]  # the third counts as milk alone


def ranking(*lists: list[int]) -> Ranking:
    index_QK = np.array(lists)
    ids = [np.array([f"{kind}{n}" for n in range(count)]) for kind, count in (("q", len(lists)), ("g", len(GALLERY)))]
    return Ranking(*ids, index_QK, np.zeros(index_QK.shape, np.float32))


def test_recall_and_found_are_of_one_label() -> None:
    found = label_scores(ranking([0, 3, 1, 4], [3, 4, 0, 1]), [("tea", "soap"), ("tea",)], GALLERY, num_ranks=2)
    tea, soap = found
    assert (tea.label, tea.queries, tea.items) == ("tea", 2, 2)
    # The first query is due int(2 / 2) = 1 and gets it; the second is due 2 and gets none.
    assert (tea.recall, tea.found) == (0.5, 0.5)
    assert (soap.label, soap.queries, soap.items, soap.recall, soap.found) == ("soap", 1, 1, 1.0, 1.0)


def test_their_means_are_the_metrics() -> None:
    draw = np.random.default_rng(0)
    names = [f"label {n}" for n in range(12)]
    gallery = [(names[n % 12],) for n in range(60)]
    queries = [tuple(draw.choice(names, 3, replace=False)) for _ in range(40)]  # as many labels each, so means are even
    index_QK = np.stack([draw.permutation(60)[:20] for _ in queries])
    found = Ranking(
        np.array([f"q{n}" for n in range(40)]),
        np.array([f"g{n}" for n in range(60)]),
        index_QK,
        np.zeros(index_QK.shape, np.float32),
    )
    scores = label_scores(found, queries, gallery, num_ranks=10)
    metrics = official_metrics(found, queries, gallery, ks=(10,))
    weights = [score.queries for score in scores]
    assert np.average([score.recall for score in scores], weights=weights) == pytest.approx(metrics["mAR@10"])
    assert np.average([score.found for score in scores], weights=weights) == pytest.approx(metrics["coverage@10"])


def test_a_query_that_cannot_be_scored_counts_as_nothing_found() -> None:
    tea, ghost = label_scores(ranking([0, 1, 3, 4]), [("tea", "ghost")], GALLERY, num_ranks=2)
    assert (tea.recall, tea.found) == (0.0, 0.0)
    assert (ghost.items, ghost.recall) == (0, 0.0)


def test_pairs_are_counted_by_queries_that_miss_the_one_and_have_the_other() -> None:
    lists = ranking([3, 3, 4, 0], [3, 0, 1, 4], [3, 4, 0, 1])
    pairs = confusions(lists, [("tea", "tea"), ("tea",), ("milk", "soap")], GALLERY, num_ranks=2)
    found = {(pair.wanted, pair.came): (pair.queries, pair.missing, pair.naming) for pair in pairs}
    # Query 0 sees soap twice and counts once; query 1 has tea; query 2 names soap, so that only salt came for its milk.
    assert found == {("tea", "soap"): (1, 1, 2), ("milk", "salt"): (1, 1, 1)}


def test_frequent_pairs_come_first_and_ties_by_share_then_name() -> None:
    lists = ranking([3, 4], [3, 4], [4, 3], [4, 2], [0, 1])
    pairs = confusions(lists, [("tea",), ("tea",), ("milk",), ("soap",), ("tea",)], GALLERY, num_ranks=1)
    assert [(pair.wanted, pair.came, pair.queries) for pair in pairs] == [
        ("tea", "soap", 2),
        ("milk", "salt", 1),
        ("soap", "salt", 1),
    ]


def test_places_without_an_item_are_no_confusion() -> None:
    assert confusions(ranking([-1, -1], [-2, -1]), [("tea",), ("milk",)], GALLERY) == []
