"""Merging the lists of instances: against a slow transcription, and lists worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import NO_ITEM, UNKNOWN_ITEM, Ranking, RetrievalError, merge_instances, rank
from retrieval.instances import METHODS

GALLERY = ["d", "b", "a", "c", "e"]  # rows are not in id order


def as_ranking(lists: list[list[tuple[str, float]]], gallery: list[str] = GALLERY) -> Ranking:
    """Per instance its (item, similarity), best first; shorter lists end in NO_ITEM."""
    width = max(map(len, lists), default=0)
    index_IK = np.full((len(lists), width), NO_ITEM)
    score_IK = np.full((len(lists), width), -np.inf, np.float32)
    for row, items in enumerate(lists):
        for place, (item, score) in enumerate(items):
            index_IK[row, place], score_IK[row, place] = gallery.index(item), score
    return Ranking(np.array([f"i{n}" for n in range(len(lists))], dtype=str), np.array(gallery), index_IK, score_IK)


def merged(
    lists: list[list[tuple[str, float]]], owners: list[int], method: str, k: int = 100
) -> tuple[list[str], list[list[float]]]:
    """Each query's items as a word, and its scores."""
    queries = [f"q{n}" for n in range(max(owners) + 1)]
    found = merge_instances(as_ranking(lists), np.array(owners), queries, k, method)
    words = ["".join(found.item_ids(row)) for row in range(len(queries))]
    return words, [found.score_QK[row, : len(word)].astype(float).round(4).tolist() for row, word in enumerate(words)]


# --- the oracle: one query at a time, lists and dicts ---


def naive(lists: list[list[tuple[str, float]]], method: str, k: int) -> list[tuple[str, float]]:
    """The merged list of one query from the lists of its instances."""
    if method == "round_robin":
        found, turn = {}, 0
        for place in range(max(map(len, lists))):
            for items in lists:
                if place < len(items) and items[place][0] not in found:
                    found[items[place][0]] = -turn
                turn += 1
        return list(found.items())[:k]
    best: dict[str, float] = {}
    for items in lists:
        scores = np.array([score for _, score in items], np.float64)
        if method == "normalised" and len(items):
            equal = len(set(scores.tolist())) == 1
            scores = np.zeros(len(items)) if equal else (scores - scores.mean()) / scores.std()
        for (item, _), score in zip(items, scores.astype(np.float32).tolist(), strict=True):
            best[item] = max(best.get(item, -np.inf), score)
    return sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[str], list[list[tuple[str, float]]], list[int], int]:
    """Few items and few distinct similarities, so that ties, repeats and short lists are common."""
    gallery = draw(st.permutations([f"g{n}" for n in range(draw(st.integers(1, 9)))]))
    num_queries = draw(st.integers(1, 4))
    owners = list(range(num_queries)) + draw(st.lists(st.integers(0, num_queries - 1), max_size=8))
    owners = draw(st.permutations(owners))  # instances of a query need not stand together
    lists = []
    for _ in owners:
        items = draw(st.lists(st.sampled_from(gallery), unique=True, max_size=len(gallery)))
        scores = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]), min_size=len(items), max_size=len(items)))
        lists.append(sorted(zip(items, scores, strict=True), key=lambda pair: (-pair[1], pair[0])))
    return list(gallery), lists, list(owners), draw(st.integers(1, 12))


@pytest.mark.parametrize("method", METHODS)
@given(case=cases())
@settings(max_examples=200, deadline=None)
def test_it_equals_the_slow_transcription(method: str, case: tuple) -> None:
    gallery, lists, owners, k = case
    queries = [f"q{n}" for n in range(max(owners) + 1)]
    found = merge_instances(as_ranking(lists, gallery), np.array(owners), queries, k, method)
    assert found.index_QK.shape == found.score_QK.shape == (len(queries), min(k, len(gallery)))
    assert (found.index_QK.dtype, found.score_QK.dtype) == (np.int64, np.float32)
    assert found.query_ids.tolist() == queries
    for row in range(len(queries)):
        own = [items for items, owner in zip(lists, owners, strict=True) if owner == row]
        expected = naive(own, method, k)
        assert found.item_ids(row) == [item for item, _ in expected]
        length = len(expected)
        assert found.score_QK[row, :length].tolist() == pytest.approx([score for _, score in expected], abs=1e-6)
        assert (np.diff(found.score_QK[row, :length]) <= 0).all()
        assert (found.index_QK[row, length:] == NO_ITEM).all()
        assert (found.score_QK[row, length:] == -np.inf).all()


@pytest.mark.parametrize("method", METHODS)
@given(case=cases(), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_instances_of_other_queries_change_nothing(method: str, case: tuple, seed: int) -> None:
    gallery, lists, owners, k = case
    queries = [f"q{n}" for n in range(max(owners) + 1)]
    before = merge_instances(as_ranking(lists, gallery), np.array(owners), queries, k, method)
    others = [row for row, owner in enumerate(owners) if owner != 0]
    mine = [row for row, owner in enumerate(owners) if owner == 0]
    order = np.random.default_rng(seed).permutation(others).tolist() + mine
    after = merge_instances(
        as_ranking([lists[row] for row in order], gallery), np.array([owners[row] for row in order]), queries, k, method
    )
    assert after.index_QK[0].tolist() == before.index_QK[0].tolist()
    assert after.score_QK[0].tolist() == before.score_QK[0].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_one_instance_is_the_list_itself(method: str) -> None:
    draw = np.random.default_rng(0)
    ids = draw.permutation([f"item{n}" for n in range(40)])
    queries = [f"q{n}" for n in range(6)]
    rows_QD = draw.integers(-1, 2, (6, 4)).astype(np.float32)  # nearly everything ties
    ranking = rank(rows_QD, draw.integers(-1, 2, (40, 4)).astype(np.float32), queries, ids, k=20)
    found = merge_instances(ranking, np.arange(6), queries, k=20, method=method)
    assert (found.index_QK == ranking.index_QK).all()
    if method == "best":
        assert (found.score_QK == ranking.score_QK).all()


# --- by hand ---


def test_round_robin_passes_over_what_is_taken() -> None:
    # Turns: a b | b(taken) a(taken) | c - : the first instance's third item has turn 2·2 + 0.
    lists = [[("a", 0.9), ("b", 0.8), ("c", 0.7)], [("b", 0.1), ("a", 0.05)]]
    assert merged(lists, [0, 0], "round_robin") == (["abc"], [[0, -1, -4]])
    # The order of the rows is the order of the turns.
    assert merged(lists[::-1], [0, 0], "round_robin")[0] == ["bac"]
    assert merged(lists, [0, 0], "round_robin", k=2)[0] == ["ab"]


def test_round_robin_gives_each_instance_its_share_and_best_does_not() -> None:
    lists = [[("a", 0.9), ("b", 0.8), ("c", 0.7)], [("d", 0.3), ("e", 0.2)]]
    assert merged(lists, [0, 0], "round_robin")[0] == ["adbec"]
    assert merged(lists, [0, 0], "best") == (["abcde"], [[0.9, 0.8, 0.7, 0.3, 0.2]])


def test_best_keeps_the_best_similarity_of_an_item_and_breaks_ties_by_id() -> None:
    lists = [[("e", 0.5), ("c", 0.5)], [("d", 0.5), ("e", 0.4), ("b", 0.4)], [("b", 0.6)]]
    assert merged(lists, [0, 1, 0], "best") == (["bce", "dbe"], [[0.6, 0.5, 0.5], [0.5, 0.4, 0.4]])


def test_normalised_counts_how_far_an_item_stands_out_of_its_list() -> None:
    # The first list is high and flat: mean 0.91, deviation 0.01 · sqrt(2/3). The second is low with one clear find:
    # mean 0.3, deviation sqrt((0.16 + 0.01 + 0.09) / 3). c is on both; -0.3 of the second beats -0.01 of the first.
    flat = [("a", 0.92), ("b", 0.91), ("c", 0.90)]
    clear = [("d", 0.7), ("e", 0.2), ("c", 0.0)]
    words, scores = merged([flat, clear], [0, 0], "normalised")
    assert words == ["dabec"]
    assert scores[0] == pytest.approx([1.3587, 1.2247, 0.0, -0.3397, -1.0190], abs=1e-3)
    assert merged([flat, clear], [0, 0], "best")[0] == ["abcde"]


def test_a_list_in_which_nothing_stands_out_is_all_mean() -> None:
    one, equal, long = [("a", 0.1)], [("c", 0.3), ("b", 0.3)], [("e", 0.9), ("d", 0.1)]
    assert merged([one, equal, long], [0, 0, 0], "normalised") == (["eabcd"], [[1, 0, 0, 0, -1]])


def test_instances_of_one_query_may_lie_anywhere() -> None:
    lists = [[("a", 1.0)], [("b", 1.0)], [("c", 1.0)], [("d", 1.0)]]
    assert merged(lists, [1, 0, 1, 0], "round_robin") == (["bd", "ac"], [[0, -1], [0, -1]])


def test_a_ranking_without_scores_can_go_round() -> None:
    ranking = as_ranking([[("a", np.nan)], [("b", np.nan)]])
    assert merge_instances(ranking, [0, 0], ["q"]).item_ids(0) == ["a", "b"]
    for method in ("best", "normalised"):
        with pytest.raises(RetrievalError, match=r"instance i0: the score at rank 1 is nan.*'round_robin'"):
            merge_instances(ranking, [0, 0], ["q"], method=method)


@pytest.mark.parametrize("method", METHODS)
def test_a_query_may_have_found_nothing(method: str) -> None:
    found = merge_instances(as_ranking([[], [("a", 1.0)]]), [0, 1], ["q0", "q1"], k=2, method=method)
    assert found.index_QK.tolist() == [[NO_ITEM, NO_ITEM], [GALLERY.index("a"), NO_ITEM]]
    empty = merge_instances(as_ranking([]), np.zeros(0, np.int64), [], method=method)
    assert empty.index_QK.shape == (0, 5)


def test_mistakes_are_named() -> None:
    ranking = as_ranking([[("a", 1.0)], [("b", 0.5)]])
    with pytest.raises(RetrievalError, match=r"unknown merge method 'roundrobin': .*round_robin, best, normalised"):
        merge_instances(ranking, [0, 0], ["q"], method="roundrobin")
    with pytest.raises(RetrievalError, match=r"query q1 has no instance \(1 of 3 have none\)"):
        merge_instances(ranking, [0, 2], ["q0", "q1", "q2"])
    with pytest.raises(RetrievalError, match="instance i1 belongs to query row 1, but there are 1"):
        merge_instances(ranking, [0, 1], ["q0"])
    for wrong in ([0], [0.0, 0.0], [[0, 0]]):
        with pytest.raises(RetrievalError, match="owner_I needs one row"):
            merge_instances(ranking, wrong, ["q0"])
    with pytest.raises(RetrievalError, match="k must be at least 1"):
        merge_instances(ranking, [0, 0], ["q0"], k=0)
    unknown = ranking._replace(index_QK=np.array([[0], [UNKNOWN_ITEM]]))
    with pytest.raises(RetrievalError, match="list of instance i1 holds an item that is not in its gallery"):
        merge_instances(unknown, [0, 0], ["q0"])
