"""The identical-product task against a slow transcription of its definition, and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import (
    NO_ITEM,
    UNKNOWN_ITEM,
    Ranking,
    RetrievalError,
    rank,
    same_product_metrics,
    same_product_rows,
    same_product_scores,
    without_own,
)

KS = (1, 2, 5, 10)
GALLERY = {"a1": "A", "a2": "A", "a3": "A", "b1": "B", "b2": "B", "c1": "C"}


def as_ranking(query_ids, lists, gallery_ids):
    row_of = {item: row for row, item in enumerate(gallery_ids)}
    index_QK = np.full((len(lists), max(map(len, lists))), NO_ITEM)
    for row, items in enumerate(lists):
        index_QK[row, : len(items)] = [row_of.get(item, UNKNOWN_ITEM) for item in items]
    return Ranking(np.array(query_ids), np.array(gallery_ids), index_QK, np.zeros(index_QK.shape, np.float32))


# --- the oracle: one query at a time, lists and dicts, nothing shared with the package ---


def naive(query, label, ranked, label_of, num, textbook):
    """(AP, Prec) of one query, or None where it cannot be scored."""
    ranked = [item for item in ranked if item != query]
    positives = [item for item in label_of if label_of[item] == label]
    others = [item for item in positives if item != query]
    if not others or not ranked:
        return None
    if textbook:
        k, best, divide_by = num, min(len(others), num), num
    else:
        k = min(num, len(positives), len(ranked))
        best, divide_by = None, k
    hits, total = 0, 0.0
    for place, item in enumerate(ranked[:k], 1):
        if item in positives:
            hits += 1
            total += hits / place
    return (total / (best or hits) if hits else 0.0), hits / divide_by


@st.composite
def cases(draw):
    """Few labels, so that lonely items are common; queries from the gallery or not; lists with the query or without."""
    labels = draw(st.lists(st.sampled_from("ABCDE"), min_size=1, max_size=12))
    label_of = {f"g{row}": label for row, label in enumerate(labels)}
    pool = [*label_of, "stranger"] if draw(st.booleans()) else list(label_of)
    asking = draw(st.lists(st.sampled_from([*label_of, "q1", "q2"]), min_size=1, max_size=5, unique=True))
    wanted = {query: label_of.get(query, "A") for query in asking}
    return wanted, [draw(st.permutations(pool))[: draw(st.integers(0, len(pool)))] for _ in asking], label_of


@pytest.mark.parametrize("protocol", ["official", "official-2022-04-20", "textbook"])
@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_scores_equal_the_slow_transcription(protocol, case):
    wanted, lists, label_of = case
    ranking = as_ranking(list(wanted), lists, list(label_of))
    gallery_labels = [(label, "a second label never counts") for label in label_of.values()]
    found = same_product_scores(ranking, [(label,) for label in wanted.values()], gallery_labels, KS, protocol)
    assert set(found.scores) == {f"{name}@{num}" for name in ("mAP", "Prec") for num in KS}
    for num in KS:
        rows = [
            naive(query, label, ranked, label_of, num, protocol == "textbook")
            for (query, label), ranked in zip(wanted.items(), lists, strict=True)
        ]
        expected = np.array([row or (0.0, 0.0) for row in rows])
        got = np.stack([found.scores[f"mAP@{num}"], found.scores[f"Prec@{num}"]], axis=1)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        assert found.unscorable_Q.tolist() == [row is None for row in rows]


@given(st.lists(st.sampled_from("ABC"), min_size=2, max_size=25))
@settings(deadline=None)
def test_a_perfect_ranking_is_perfect_where_k_allows(labels):
    """AP and the textbook metrics are 1; Prec too unless the query itself makes k one larger than what can be found."""
    ids = [f"g{row}" for row in range(len(labels))]
    rows = same_product_rows(labels)
    if not len(rows):
        return
    lists = [sorted((r for r in range(len(ids)) if r != q), key=lambda r: labels[r] != labels[q]) for q in rows]
    ranking = as_ranking([ids[q] for q in rows], [[ids[r] for r in found] for found in lists], ids)
    found = same_product_scores(ranking, [labels[q] for q in rows], labels, KS)
    textbook = same_product_metrics(ranking, [labels[q] for q in rows], labels, KS, "textbook")
    others = np.array([labels.count(labels[q]) - 1 for q in rows])
    for num in KS:
        assert (found.scores[f"mAP@{num}"] == 1).all()
        k = np.minimum(np.minimum(num, others + 1), len(ids) - 1)
        np.testing.assert_allclose(found.scores[f"Prec@{num}"], np.minimum(others, k) / k)
        assert textbook[f"mAP@{num}"] == pytest.approx(1.0)
        assert textbook[f"Prec@{num}"] == pytest.approx(np.minimum(others, num).mean() / num)


# --- by hand ---


def of_a1(ranked, protocol="official"):
    return same_product_metrics(
        as_ranking(["a1"], [ranked], list(GALLERY)), ["A"], list(GALLERY.values()), (10,), protocol
    )


def test_the_query_counts_among_the_positives_but_not_in_its_list():
    # The list is a2 b1 a3 b2 c1; k = min(10, 3 items of A, 5) = 3, hits at 1 and 3.
    expected = {"mAP@10": (1 + 2 / 3) / 2, "Prec@10": 2 / 3}
    assert of_a1(["a1", "a2", "b1", "a3", "b2", "c1"]) == pytest.approx(expected)
    assert of_a1(["a2", "b1", "a3", "b2", "c1"]) == pytest.approx(expected)
    # A third place that no item of A can take: perfect, and still two thirds.
    assert of_a1(["a2", "a3", "b1", "b2"]) == pytest.approx({"mAP@10": 1.0, "Prec@10": 2 / 3})
    assert of_a1(["a2", "a3", "b1"], "textbook") == pytest.approx({"mAP@10": 1.0, "Prec@10": 2 / 10})


def test_what_stands_behind_the_query_moves_up():
    ranking = as_ranking(["a1", "b2"], [["a2", "a1", "b1"], ["b2", "c1", "b1"]], list(GALLERY))
    ranking.score_QK[:] = [[0.9, 0.8, 0.7], [1.0, 0.5, 0.25]]
    left = without_own(ranking)
    assert [left.item_ids(row) for row in (0, 1)] == [["a2", "b1"], ["c1", "b1"]]
    assert left.lengths.tolist() == [2, 2]
    np.testing.assert_array_equal(left.score_QK, np.array([[0.9, 0.7, -np.inf], [0.5, 0.25, -np.inf]], np.float32))


def test_queries_are_the_items_with_another_of_their_first_label():
    labels = [("A",), ("B", "A"), ("A", "C"), (), ("C",), (), ("B",)]
    assert same_product_rows(labels).tolist() == [0, 1, 2, 6]
    assert same_product_rows(["A", "B"]).tolist() == same_product_rows([]).tolist() == []
    assert same_product_rows([(), ()]).tolist() == []


def test_a_query_without_another_item_of_its_label_counts_as_0_and_is_told():
    ranking = as_ranking(["c1", "a1"], [["a1", "b1"], ["a2", "a3"]], list(GALLERY))
    found = same_product_scores(ranking, ["C", "A"], list(GALLERY.values()))
    assert found.unscorable == 1
    assert found.means()["mAP@10"] == 0.5


def test_a_query_from_elsewhere_has_nothing_to_leave_out():
    ranking = as_ranking(["new"], [["c1", "a1"]], list(GALLERY))
    found = same_product_scores(ranking, ["C"], list(GALLERY.values()), (5,))
    assert found.means() == {"mAP@5": 1.0, "Prec@5": 1.0}
    assert found.unscorable == 0


def test_lists_from_rank_need_nothing_removed():
    generator = np.random.default_rng(0)
    vectors, ids = generator.standard_normal((30, 4)), [f"g{row}" for row in range(30)]
    labels = [str(row % 4) for row in range(30)]
    without = rank(vectors, vectors, ids, ids, k=10, exclude_self=True)
    with_own = rank(vectors, vectors, ids, ids, k=11)
    assert same_product_metrics(without, labels, labels) == same_product_metrics(with_own, labels, labels)
    assert (without_own(without).index_QK == without.index_QK).all()


def test_mistakes_are_named():
    ranking = as_ranking(["a1"], [["a2"]], list(GALLERY))
    with pytest.raises(RetrievalError, match="unknown protocol 'oficial'"):
        of_a1(["a2"], "oficial")
    with pytest.raises(RetrievalError, match="cut-offs must be positive"):
        same_product_scores(ranking, ["A"], list(GALLERY.values()), (0,))
    with pytest.raises(RetrievalError, match="6 gallery ids but 5"):
        same_product_scores(ranking, ["A"], list(GALLERY.values())[:5])
