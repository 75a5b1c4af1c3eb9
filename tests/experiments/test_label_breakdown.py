"""A large set of labels is cut to its two ends, with enough queries behind each."""

from __future__ import annotations

from experiments.label_breakdown import SHOWN, both_ends
from retrieval.by_label import LabelScore


def score(number: int, queries: int, recall: float) -> LabelScore:
    return LabelScore(f"label {number:03d}", queries, 3, recall, recall)


def test_labels_of_few_queries_are_left_out_where_enough_others_are_there() -> None:
    scores = [score(n, 1, 1.0) for n in range(100)] + [score(100 + n, 5 + n % 3, n / 40) for n in range(40)]
    best, worst, least = both_ends(scores)
    assert least == 5
    assert [one.recall for one in best] == [n / 40 for n in range(39, 39 - SHOWN, -1)]
    assert [one.recall for one in worst] == [n / 40 for n in range(SHOWN)]


def test_where_few_have_many_queries_fewer_are_asked_for() -> None:
    scores = [score(n, 3, n / 30) for n in range(30)] + [score(100, 50, 0.5)]
    assert both_ends(scores)[2] == 3
    assert both_ends([score(n, 2, 0.5) for n in range(30)])[2] == 1


def test_no_label_is_at_both_ends_and_equal_ones_stand_by_their_queries() -> None:
    best, worst, _ = both_ends(
        [score(1, 2, 0.0), score(2, 9, 0.0), score(3, 4, 1.0), score(4, 6, 1.0), score(5, 1, 0.5)]
    )
    assert [one.label[-1] for one in best] == ["4", "3"]
    assert [one.label[-1] for one in worst] == ["2", "1", "5"]
    assert both_ends([]) == ([], [], 1)
