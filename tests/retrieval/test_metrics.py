"""Metrics against a slow transcription of the definitions, and against numbers worked out by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import (
    NO_ITEM,
    UNKNOWN_ITEM,
    Ranking,
    RetrievalError,
    official_metrics,
    per_query_scores,
    read_annotations,
    textbook_metrics,
)

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
KS = (1, 2, 3, 5, 10)


# --- the oracle: one query at a time, ids and dicts, nothing shared with the package ---


def naive_official(query_labels, ranked, label_of, last_only, num):
    """(AP, AR, Prec) of one query, or None where it cannot be scored."""
    items_of = {}
    for item, label in label_of.items():
        items_of.setdefault(label, []).append(item)
    positives = []
    for label in query_labels:
        if label not in items_of:
            return None
        positives = positives + items_of[label]
    if not query_labels or not ranked:
        return None
    k = min(num, len(positives), len(ranked))
    hits, total = 0, 0.0
    for i in range(k):
        if ranked[i] in positives:
            hits += 1
            total += hits / (i + 1)
    ap = total / hits if hits else 0.0
    return ap, naive_recall(query_labels, ranked[:num], label_of, items_of, last_only, num), hits / k


def naive_recall(query_labels, ranked, label_of, items_of, last_only, num):
    expected = {}
    for label in query_labels:
        expected[label] = expected.get(label, 0) + int(num / len(query_labels))
    for label in expected:
        expected[label] = min(expected[label], len(items_of[label]))
    got = {}  # a dict remembers the order of first retrieval
    for item in ranked:
        if item not in label_of:
            return 0.0
        if label_of[item] in query_labels:
            got[label_of[item]] = got.get(label_of[item], 0) + 1
    recall = 0.0
    for label, number in got.items():
        if expected[label] == 0:
            return 0.0
        part = min(number, expected[label]) / expected[label]
        recall = part if last_only else recall + part
    return recall / len(set(query_labels))


def naive_textbook(query_labels, ranked, label_of, num):
    items_of = {}
    for item, label in label_of.items():
        items_of.setdefault(label, set()).add(item)
    if not query_labels or not ranked or any(label not in items_of for label in query_labels):
        return None
    positives = set().union(*(items_of[label] for label in query_labels))
    hits, total = 0, 0.0
    for i, item in enumerate(ranked[:num]):
        if item in positives:
            hits += 1
            total += hits / (i + 1)
    recalls = []
    for label in set(query_labels):
        share = query_labels.count(label) / len(query_labels)
        expected = min(max(1, round(share * num)), len(items_of[label]))
        got = sum(item in items_of[label] for item in ranked[:num])
        recalls.append(min(1.0, got / expected))
    return total / min(len(positives), num), sum(recalls) / len(recalls), hits / num


def naive_coverage(query_labels, ranked, label_of, num):
    retrieved = {label_of.get(item) for item in ranked[:num]}
    return len(set(query_labels) & retrieved) / len(set(query_labels))


def naive_scores(protocol, queries, rankings, label_of, num):
    rows, unscorable = [], []
    for query_labels, ranked in zip(queries, rankings, strict=True):
        if protocol == "textbook":
            row = naive_textbook(list(query_labels), ranked, label_of, num)
        else:
            row = naive_official(list(query_labels), ranked, label_of, protocol == "official-2022-04-20", num)
        unscorable.append(row is None)
        rows.append(row or (0.0, 0.0, 0.0))
    return np.array(rows), unscorable


def as_ranking(rankings, gallery):
    """Lists of ids to a Ranking; ids outside the gallery become UNKNOWN_ITEM."""
    row_of = {item: row for row, item in enumerate(gallery)}
    width = max(map(len, rankings), default=0)
    index_QK = np.full((len(rankings), width), NO_ITEM)
    for row, ranked in enumerate(rankings):
        index_QK[row, : len(ranked)] = [row_of.get(item, UNKNOWN_ITEM) for item in ranked]
    scores = np.zeros(index_QK.shape, np.float32)
    return Ranking(np.array([f"q{i}" for i in range(len(rankings))]), np.array(gallery), index_QK, scores)


@st.composite
def cases(draw):
    """Few labels and short lists, so that repeats, empty labels, exhausted positives and unknown ids are common."""
    labels = st.sampled_from("ABCDE")
    gallery = draw(st.lists(labels, min_size=1, max_size=14))
    items = [f"g{i}" for i in range(len(gallery))]
    pool = [*items, "stranger1", "stranger2"] if draw(st.booleans()) else items
    queries = draw(st.lists(st.lists(labels, max_size=13), min_size=1, max_size=4))
    rankings = [draw(st.permutations(pool))[: draw(st.integers(0, len(pool)))] for _ in queries]
    return queries, rankings, dict(zip(items, gallery, strict=True))


@pytest.mark.parametrize("protocol", ["official", "official-2022-04-20", "textbook"])
@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_scores_equal_the_slow_transcription(protocol, case):
    queries, rankings, label_of = case
    ranking = as_ranking(rankings, list(label_of))
    gallery_labels = [(label, "a second label never counts") for label in label_of.values()]
    scored = per_query_scores(ranking, queries, gallery_labels, KS, protocol)
    for num in KS:
        expected, unscorable = naive_scores(protocol, queries, rankings, label_of, num)
        got = np.stack([scored.scores[f"{name}@{num}"] for name in ("mAP", "mAR", "Prec")], axis=1)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        covered = [
            0.0 if cannot else naive_coverage(labels, ranked, label_of, num)
            for labels, ranked, cannot in zip(queries, rankings, unscorable, strict=True)
        ]
        np.testing.assert_allclose(scored.scores[f"coverage@{num}"], covered, atol=1e-12)
        assert scored.unscorable_Q.tolist() == unscorable
        assert scored.means()[f"mAP@{num}"] == pytest.approx(expected[:, 0].mean())


# --- by hand ---

GALLERY = {"a1": "A", "a2": "A", "a3": "A", "b1": "B", "b2": "B", "c1": "C"}


def scores_of(query_labels, ranked, num=10, protocol="official", gallery=GALLERY):
    scored = per_query_scores(
        as_ranking([ranked], list(gallery)), [query_labels], list(gallery.values()), (num,), protocol
    )
    return tuple(float(scored.scores[f"{name}@{num}"][0]) for name in ("mAP", "mAR", "Prec"))


def test_ap_divides_by_the_hits_within_k_not_by_the_positives():
    # k = min(10, 3, 5) = 3; hits at ranks 1 and 3: (1/1 + 2/3) / 2; a2 at rank 4 lies beyond k.
    # AR: expected = min(10, 3) = 3 of A, all three within the first 10.
    assert scores_of(["A"], ["a1", "b1", "a3", "a2", "c1"]) == pytest.approx(((1 + 2 / 3) / 2, 1.0, 2 / 3))


def test_a_list_without_a_hit_scores_0_but_is_scorable():
    assert scores_of(["C"], ["a1", "b1"]) == (0.0, 0.0, 0.0)


def test_a_repeated_label_adds_its_items_again():
    # pos = a1 a2 a3 + b1 b2 + b1 b2 = 7, k = min(10, 7, 6) = 6, hits a a a b b at ranks 1-4 and 6.
    ap = (1 + 1 + 1 + 1 + 5 / 6) / 5
    # AR at 10: int(10/3) = 3 for A, 6 for B, capped at 3 and 2: all found.
    got = scores_of(["A", "B", "B"], ["a1", "a2", "b1", "a3", "c1", "b2"])
    assert got == pytest.approx((ap, 1.0, 5 / 6))
    # Without the repeat k = 5: the hit at rank 6 no longer counts.
    assert scores_of(["A", "B"], ["a1", "a2", "b1", "a3", "c1", "b2"]) == pytest.approx((1.0, 1.0, 4 / 5))


def test_recall_counts_each_label_against_its_share():
    # N = 4, |L| = 2: two of A and two of B are expected; three of A and one of B came: (2/2 + 1/2) / 2.
    assert scores_of(["A", "B"], ["a1", "a2", "a3", "b1", "b2"], num=4)[1] == pytest.approx(0.75)


def test_first_published_variant_keeps_only_the_label_retrieved_last():
    # A comes first, B last: B's recall 1/2 over 2 labels. With B first, A's 2/2 over 2.
    assert scores_of(["A", "B"], ["a1", "a2", "b1", "a3"], 4, "official-2022-04-20")[1] == pytest.approx(0.25)
    assert scores_of(["A", "B"], ["b1", "a1", "a2", "a3"], 4, "official-2022-04-20")[1] == pytest.approx(0.5)


def test_more_labels_than_ranks_makes_only_the_recall_0():
    # int(2 / 3) = 0 is expected of each label, and A is retrieved.
    assert scores_of(["A", "B", "C"], ["a1", "b1"], num=2) == (1.0, 0.0, 1.0)


def test_an_unknown_id_makes_only_the_recall_0_and_only_within_the_cut_off():
    assert scores_of(["A"], ["a1", "stranger", "a2", "a3"], num=2) == pytest.approx((1.0, 0.0, 0.5))
    assert scores_of(["A"], ["a1", "a2", "stranger"], num=2) == pytest.approx((1.0, 1.0, 1.0))


def test_mean_counts_an_unscorable_query_as_0_and_reports_it():
    ranking = as_ranking([["a1"], ["a1"]], list(GALLERY))
    scored = per_query_scores(ranking, [["A"], ["A", "nowhere"]], list(GALLERY.values()), (10,))
    assert scored.unscorable == 1
    assert scored.means() == pytest.approx({"mAP@10": 0.5, "mAR@10": (1 / 3) / 2, "Prec@10": 0.5, "coverage@10": 0.5})


def test_list_shorter_than_the_positives_is_judged_on_its_length():
    assert scores_of(["A"], ["a1"]) == pytest.approx((1.0, 1 / 3, 1.0))


def test_a_gallery_item_counts_for_its_first_label_only():
    ranking = as_ranking([["x", "y"]], ["x", "y"])
    means = official_metrics(ranking, [["A"]], [("B", "A"), ("A",)], (10,))
    # k = 1: y at rank 2 is beyond it for AP and Prec
    assert means == pytest.approx({"mAP@10": 0.0, "mAR@10": 1.0, "Prec@10": 0.0, "coverage@10": 1.0})


def test_an_item_without_labels_is_never_relevant():
    ranking = as_ranking([["x", "y"]], ["x", "y"])
    assert official_metrics(ranking, [["A"]], [(), ("A",)], (10,))["Prec@10"] == 0.0
    assert per_query_scores(ranking, [[]], [(), ("A",)], (10,)).unscorable == 1


@pytest.mark.parametrize("protocol", ["official", "official-2022-04-20", "textbook"])
def test_coverage_is_the_share_of_distinct_labels_that_were_hit(protocol):
    def coverage(query_labels, ranked, num):
        ranking = as_ranking([ranked], list(GALLERY))
        scored = per_query_scores(ranking, [query_labels], list(GALLERY.values()), (num,), protocol)
        return float(scored.scores[f"coverage@{num}"][0])

    assert coverage(["A", "B", "C"], ["a1", "a2", "b1", "c1"], 3) == pytest.approx(2 / 3)  # of A one is enough
    assert coverage(["A", "B", "C"], ["a1", "a2", "b1", "c1"], 4) == 1.0
    assert coverage(["A", "A", "A", "B"], ["a1", "a2"], 10) == 0.5  # labels count once, however often named
    assert coverage(["A", "B"], ["stranger", "a1"], 10) == 0.5  # an unknown id makes the official recall 0, not this
    assert coverage(["A", "B", "C"], ["a1", "b1"], 2) == pytest.approx(2 / 3)  # more labels than ranks: nor does this
    assert coverage(["A", "nowhere"], ["a1"], 10) == 0.0  # cannot be scored


def test_textbook_by_hand():
    # Positives 5, N = 4: hits at 1, 2, 4 -> (1 + 1 + 3/4) / 4; Prec 3/4; A: 2 of round(2/3*4)=3, B: 1 of 1.
    got = scores_of(["A", "A", "B"], ["a1", "b1", "c1", "a2"], 4, "textbook")
    assert got == pytest.approx(((1 + 1 + 3 / 4) / 4, (2 / 3 + 1) / 2, 3 / 4))


def test_textbook_share_rounds_halves_to_even():
    gallery = {f"{label}{i}": label for label in "AB" for i in range(10)}
    # Share 1/4 of 10 = 2.5 -> 2, found 2: full recall of B; A: round(7.5) = 8, found 4.
    ranked = ["B0", "B1", "A0", "A1", "A2", "A3"]
    assert scores_of(["A", "A", "A", "B"], ranked, 10, "textbook", gallery)[1] == pytest.approx((4 / 8 + 1) / 2)


def test_textbook_gives_no_second_hit_for_the_same_item():
    assert scores_of(["C"], ["c1", "c1", "c1"], 3, "textbook") == pytest.approx((1.0, 1.0, 1 / 3))


# --- mistakes ---


def test_mistakes_are_named():
    ranking = as_ranking([["a1"]], list(GALLERY))
    labels = list(GALLERY.values())
    with pytest.raises(RetrievalError, match="6 gallery ids but 5"):
        official_metrics(ranking, [["A"]], labels[:5])
    with pytest.raises(RetrievalError, match="unknown protocol 'oficial'"):
        official_metrics(ranking, [["A"]], labels, version="oficial")
    with pytest.raises(RetrievalError, match="textbook_metrics"):
        official_metrics(ranking, [["A"]], labels, version="textbook")
    with pytest.raises(RetrievalError, match="no queries"):
        textbook_metrics(as_ranking([], list(GALLERY)), [], labels)
    with pytest.raises(RetrievalError, match="gallery row 7"):
        official_metrics(ranking._replace(index_QK=np.array([[7]])), [["A"]], labels)
    gap = ranking._replace(index_QK=np.array([[NO_ITEM, 2]]), score_QK=np.zeros((1, 2), np.float32))
    with pytest.raises(RetrievalError, match="goes on"):
        official_metrics(gap, [["A"]], labels)


# --- at the size of Product1M ---


def perfect_list(query_labels, items_of, cut_offs=(10, 50, 100)):
    """The list that meets every expected(c) at each cut-off in turn, then goes on with the query's items."""
    ranked, taken = [], dict.fromkeys(query_labels, 0)
    for num in cut_offs:
        for label in taken:
            goal = min(query_labels.count(label) * (num // len(query_labels)), len(items_of[label]))
            ranked += items_of[label][taken[label] : goal]
            taken[label] = max(goal, taken[label])
        rest = ((label, i) for label in taken for i in range(taken[label], len(items_of[label])))
        for label, i in list(rest)[: max(0, num - len(ranked))]:
            if i == taken[label]:
                ranked.append(items_of[label][i])
                taken[label] += 1
    return ranked[:100]


@pytest.mark.parametrize("name", ["dev", "test"])
def test_perfect_ranking_on_the_real_labels(name):
    path = SHARED / "product1m" / f"product1m_{name}_ossurl_v2.txt"
    if not path.exists():
        pytest.skip(f"no {path}")
    query_labels = read_annotations(path).labels
    vocabulary = sorted({label for labels in query_labels for label in labels})
    items_of = {label: [f"{code}-{i}" for i in range(100)] for code, label in enumerate(vocabulary)}
    gallery = {item: label for label, items in items_of.items() for item in items}
    ranking = as_ranking([perfect_list(list(labels), items_of) for labels in query_labels], list(gallery))
    gallery_labels = list(gallery.values())

    full = official_metrics(ranking, query_labels, gallery_labels)
    first = official_metrics(ranking, query_labels, gallery_labels, version="official-2022-04-20")
    for num in (10, 50, 100):
        assert full[f"mAP@{num}"] == full[f"Prec@{num}"] == 1.0
        assert full[f"mAR@{num}"] == pytest.approx(1.0, abs=0.002)  # two queries have more than 10 labels
        assert first[f"mAR@{num}"] == pytest.approx(0.44, abs=0.005)
    assert len(vocabulary) == (392 if name == "test" else 295)
