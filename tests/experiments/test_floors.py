"""Floors: a random order, and TF-IDF on captions against a slow transcription."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import floors

GALLERY = np.array(["g3", "g1", "g2", "g4"])
QUERIES = np.array(["q1", "q2"])


def tfidf(queries: list[str], gallery: list[str], k: int = 4) -> list[list[str]]:
    ranking = floors.tfidf_ranking(queries, gallery, QUERIES[: len(queries)], GALLERY[: len(gallery)], k)
    return GALLERY[ranking.index_QK].tolist()


def test_the_caption_with_the_same_words_comes_first() -> None:
    found = tfidf(["red silk scarf", "blue cotton shirt"], ["blue shirt", "red scarf", "green hat", "silk tie"])
    assert found[0][0] == "g1"
    assert found[1][0] == "g3"


def test_chinese_is_compared_by_characters() -> None:
    found = tfidf(["雪肌精华液官方正品"], ["玫瑰面膜", "雪肌精华", "口红", "粉底"])
    assert found[0][0] == "g1"


def test_equal_scores_go_by_id() -> None:
    assert tfidf(["hat"], ["hat", "hat", "hat", "scarf"]) == [["g1", "g2", "g3", "g4"]]


def test_scores_are_cosines_in_falling_order() -> None:
    ranking = floors.tfidf_ranking(["a red hat", "hat"], ["hat red", "hat", "red", "b"], QUERIES, GALLERY, 3)
    assert ranking.index_QK.shape == (2, 3)
    assert (np.diff(ranking.score_QK, axis=1) <= 0).all()
    assert ranking.score_QK[1, 0] == pytest.approx(1)


def test_captions_without_a_word_fall_back_to_random() -> None:
    ranking = floors.tfidf_ranking(["!", "?"], ["!", "…", "-", "."], QUERIES, GALLERY, 4)
    assert sorted(ranking.index_QK[0].tolist()) == [0, 1, 2, 3]


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12), st.integers(1, 12))
def test_top_equals_a_full_stable_sort(scores: list[float], k: int) -> None:
    score_BN = np.array([scores], np.float32)
    k = min(k, len(scores))
    assert floors._top(score_BN, k)[0].tolist() == np.argsort(-score_BN[0], kind="stable")[:k].tolist()


def test_a_random_order_is_fixed_and_without_repeats() -> None:
    ids = np.array([f"g{n}" for n in range(300)])
    first, second = (floors.random_ranking(np.array(["q"] * 50), ids, 100) for _ in range(2))
    assert (first.index_QK == second.index_QK).all()
    assert all(len(set(row)) == 100 for row in first.index_QK.tolist())
    assert 130 < first.index_QK.mean() < 170


@pytest.mark.parametrize(
    ("captions", "expected"),
    [(["玫瑰 rose 面膜正品"], True), (["rose cream 面膜"], False), (["123 !"], False), (["モイスト"], True)],
)
def test_script_is_told_by_the_majority_of_letters(captions: list[str], expected: bool) -> None:
    assert floors.mostly_cjk(captions) is expected


class Shelf:
    """A gallery of four items; the second of its label is nearly a copy."""

    def ids(self, split: str) -> np.ndarray:
        return GALLERY

    def labels(self, split: str) -> list[tuple[str, ...]]:
        return [("scarf",), ("scarf", "tie"), ("tie",), ("tie",)]

    def captions(self, split: str) -> list[str]:
        return ["red silk scarf", "red silk scarf", "blue tie", "red silk tie"]


def test_floors_of_the_identical_product_leave_the_query_out() -> None:
    metrics, per_query = floors.same_product_floors(Shelf(), "gallery", GALLERY[[0, 1, 2]], (1, 10))
    assert set(metrics) == {"random", "tfidf"}
    assert set(metrics["tfidf"]) == {f"same/{name}@{k}" for name in ("mAP", "Prec") for k in (1, 10)}
    # g3 and g1 find each other first; g2's list begins with g4.
    assert per_query["tfidf/same/mAP@1"].tolist() == [1, 1, 1]
    assert metrics["tfidf"]["same/Prec@10"] == 0.5  # k = 2, the query itself being the second
    assert per_query["random/same/mAP@10"].mean() == pytest.approx(metrics["random"]["same/mAP@10"])


def test_a_random_order_of_all_others_finds_what_there_is() -> None:
    found = floors.same_product_floors(Shelf(), "gallery", GALLERY[[2]], (10,))[1]["random/same/mAP@10"]
    assert found[0] in (0.0, 0.5, 1.0)  # one of three, within the first k = 2
