"""score_files: from text files to the JSON of `score`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retrieval import RetrievalError, official_metrics, rank, score_files, textbook_metrics, write_ranking

LINE = "{}#####caption#####u#####u#####{}\n"
QUERIES = "".join(LINE.format(*row) for row in (("q1", "A"), ("q2", "A#;#B"), ("q3", "nowhere"), ("q4", "B")))
GALLERY = "".join(LINE.format(*row) for row in (("a1", "A"), ("a2", "A#;#B"), ("b1", "B")))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "queries.txt").write_text(QUERIES)
    (tmp_path / "gallery.txt").write_text(GALLERY)

    def score(ranking, protocol="official"):
        (tmp_path / "ranking.txt").write_text(ranking)
        return score_files(tmp_path / "ranking.txt", tmp_path / "queries.txt", tmp_path / "gallery.txt", protocol)

    return score


def test_counts_and_metrics_by_hand(files):
    # q1: k = 2, both hit. q2: k = 3, hits at 1 and 3, x unknown: AR 0. q3 cannot be scored. q4 is missing.
    answer = files("q1,a1,a2,b1\nq2,b1,x,a1\nq3,a1\n")
    assert json.loads(json.dumps(answer)) == answer
    assert list(answer)[:6] == ["protocol", "queries", "unscorable", "missing", "unknown_queries", "unknown_items"]
    assert [answer[key] for key in list(answer)[:6]] == ["official", 3, 1, 1, 0, 1]
    names = ("mAP", "mAR", "Prec", "coverage")
    assert list(answer)[6:] == [f"{name}@{num}" for num in (10, 50, 100) for name in names]
    assert answer["coverage@10"] == pytest.approx((1 + 1 + 0) / 3)  # an unknown item takes no label away
    assert answer["mAP@10"] == pytest.approx((1 + (1 + 2 / 3) / 2 + 0) / 3)
    assert answer["mAR@100"] == pytest.approx(1 / 3)
    assert answer["Prec@50"] == pytest.approx((1 + 2 / 3) / 3)


def test_a_line_for_an_unknown_query_counts_as_unscorable(files):
    answer = files("q1,a1,a2\nstranger,a1\n")
    assert (answer["queries"], answer["unscorable"], answer["unknown_queries"], answer["missing"]) == (2, 1, 1, 3)
    assert answer["mAP@10"] == 0.5


def test_protocols_differ_where_they_should(files):
    ranking = "q2,b1,a1,a2\n"
    assert files(ranking)["mAR@10"] == 1.0
    assert files(ranking, "official-2022-04-20")["mAR@10"] == 0.5
    assert files(ranking, "textbook")["Prec@10"] == pytest.approx(3 / 10)


def test_a_written_ranking_scores_as_in_memory(tmp_path):
    generator = np.random.default_rng(0)
    labels = [f"L{i}" for i in generator.integers(0, 9, 80)]
    ids = [f"g{i}" for i in range(80)]
    queries = [[labels[i], labels[i + 1]] for i in range(12)]
    ranking = rank(
        generator.standard_normal((12, 6)), generator.standard_normal((80, 6)), [f"q{i}" for i in range(12)], ids
    )
    write_ranking(ranking, tmp_path / "r.txt")
    (tmp_path / "q.txt").write_text("".join(LINE.format(f"q{i}", "#;#".join(x)) for i, x in enumerate(queries)))
    (tmp_path / "g.txt").write_text("".join(LINE.format(i, x) for i, x in zip(ids, labels, strict=True)))
    for protocol, metrics in (("official", official_metrics), ("textbook", textbook_metrics)):
        answer = score_files(tmp_path / "r.txt", tmp_path / "q.txt", tmp_path / "g.txt", protocol)
        in_memory = metrics(ranking, queries, labels)
        assert {key: answer[key] for key in in_memory} == in_memory


def test_mistakes_are_named(files, tmp_path):
    with pytest.raises(RetrievalError, match="unknown protocol 'oficial'"):
        files("q1,a1\n", "oficial")
    with pytest.raises(RetrievalError, match=r"ranking.txt: no query of it is in .*queries.txt"):
        files("stranger,a1\n")
    with pytest.raises(RetrievalError, match=r"ranking.txt: no item of it is in .*gallery.txt"):
        files("q1,stranger\n")
    (tmp_path / "gallery.txt").write_text(GALLERY + LINE.format("a1", "A"))
    with pytest.raises(RetrievalError, match=r"gallery.txt, line 4: duplicate item id a1, first seen in line 1"):
        files("q1,a1\n")
    (tmp_path / "gallery.txt").write_text("a1#####c#####u#####u\n")
    with pytest.raises(RetrievalError, match=r"gallery.txt: no line has labels"):
        files("q1,a1\n")


def test_the_identical_product_task_takes_the_gallery_as_queries(tmp_path):
    rows = (("a1", "A"), ("a2", "A"), ("a3", "A#;#B"), ("b1", "B"), ("b2", "B"), ("c1", "C"))
    (tmp_path / "gallery.txt").write_text("".join(LINE.format(*row) for row in rows))
    (tmp_path / "ranking.txt").write_text("a1,a1,a2,b1,a3\nb1,a1,b2\nc1,a1,c1\n")
    files = tmp_path / "ranking.txt", tmp_path / "gallery.txt", tmp_path / "gallery.txt"
    answer = score_files(*files, same=True)
    # a1: k = 3, hits at 1 and 3. b1: k = 2, a hit at 2. c1 has no other item of C.
    assert [answer[key] for key in ("queries", "missing", "unscorable")] == [3, 3, 1]
    assert [key for key in answer if "@" in key] == [
        f"same/{name}@{num}" for num in (1, 5, 10) for name in ("mAP", "Prec")
    ]
    assert answer["same/mAP@10"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 3)
    assert answer["same/Prec@10"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert answer["same/mAP@1"] == answer["same/Prec@1"] == pytest.approx(1 / 3)
    textbook = score_files(*files, "textbook", same=True)
    assert textbook["same/mAP@5"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 3)
    assert textbook["same/Prec@5"] == pytest.approx((2 / 5 + 1 / 5) / 3)
