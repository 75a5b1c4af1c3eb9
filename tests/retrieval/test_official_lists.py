"""Official annotation and ranking files: what is read, and how a bad line is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import (
    NO_ITEM,
    UNKNOWN_ITEM,
    Annotations,
    Ranking,
    RetrievalError,
    rank,
    read_annotations,
    read_ranking,
    write_annotations,
    write_ranking,
)

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def file(folder, content, name="list.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_five_fields_repeats_kept_blanks_dropped(tmp_path):
    path = file(tmp_path, "a1#####一 瓶#####u#####u#####AHC 水#;# AHC 霜#;#AHC 水 \nb2#####两#####v#####v\n")
    read = read_annotations(path)
    assert read.ids.tolist() == ["a1", "b2"]
    assert read.captions == ["一 瓶", "两"]
    assert read.labels == [("AHC 水", "AHC 霜", "AHC 水"), ()]
    assert read.urls == ["u", "v"]


def test_byte_order_mark_carriage_returns_and_blank_lines_do_no_harm(tmp_path):
    plain = "a#####x#####u#####u#####L\nb#####y#####u#####u#####M\n"
    dressed = b"\xef\xbb\xbf" + plain.replace("\n", "\r\n\r\n").encode()
    assert read_annotations(file(tmp_path, dressed)).labels == read_annotations(file(tmp_path, plain, "b")).labels
    ranking = read_ranking(file(tmp_path, b"\xef\xbb\xbfq,b,a\r\n\r\nr,a\r\n"), ["a", "b"])
    assert ranking.query_ids.tolist() == ["q", "r"]
    assert ranking.index_QK.tolist() == [[1, 0], [0, NO_ITEM]]


def test_only_line_feeds_end_a_line(tmp_path):
    path = file(tmp_path, "a#####one\u2028two\x0bthree\x85four#####u#####u#####L\n")
    assert read_annotations(path).captions == ["one\u2028two\x0bthree\x85four"]


@pytest.mark.parametrize("caption", ["新品#", "#口红#", "a#####b", "##", ""])
def test_captions_with_hashes_are_read(tmp_path, caption):
    path = file(tmp_path, f"a#####{caption}#####images/a.jpg#####images/a.jpg#####L#;#M\n")
    read = read_annotations(path)
    assert (read.captions, read.labels, read.urls) == ([caption], [("L", "M")], ["images/a.jpg"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a#####c#####u#####u#####L\nb#####c#####u\n", "line 2: expected item_id, caption, url, url.*found 3"),
        (
            b"a#####c#####u#####u#####L\n\na#####c#####u#####u#####L\n",
            "line 3: duplicate item id a, first seen in line 1",
        ),
        (b"a#####c#####u#####u#####L\nb#####\xff\xfe#####u#####u#####L\n", "line 2: not valid UTF-8"),
        (b"\xef\xbb\xbf\xff\n", "line 1: not valid UTF-8"),
        (b"a b#####c#####u#####u#####L\n", "line 1: item id 'a b' must"),
        (b" \r\n\n", "the file holds no lines"),
    ],
)
def test_a_bad_annotation_file_is_named_with_its_line(tmp_path, content, message):
    path = file(tmp_path, content)
    with pytest.raises(RetrievalError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q,a\nr,a,,b\n", "line 2: empty id"),
        (b",a\n", "line 1: empty id"),
        (b"q,a\nr,a\0\n", "line 2: a NUL character"),
        (b"q,a\nr,b\nq,b\n", "line 3: duplicate query q, first seen in line 1"),
        (b"q,a\nr,\xff\n", "line 2: not valid UTF-8"),
        (b"", "the file holds no lines"),
    ],
)
def test_a_bad_ranking_file_is_named_with_its_line(tmp_path, content, message):
    path = file(tmp_path, content)
    with pytest.raises(RetrievalError, match=message) as caught:
        read_ranking(path, ["a", "b"])
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path):
    for read in (read_annotations, read_ranking):
        with pytest.raises(RetrievalError, match=r"nowhere.txt: cannot be read \(No such file"):
            read(tmp_path / "nowhere.txt")
        with pytest.raises(RetrievalError, match="cannot be read"):
            read(tmp_path)


def test_ids_outside_the_gallery_are_marked(tmp_path):
    path = file(tmp_path, "q,x,b\nr\n")
    assert read_ranking(path, ["a", "b"]).index_QK.tolist() == [[UNKNOWN_ITEM, 1], [NO_ITEM, NO_ITEM]]
    alone = read_ranking(path)
    assert alone.gallery_ids.tolist() == ["b", "x"]
    assert alone.item_ids(0) == ["x", "b"]


def test_a_written_ranking_reads_back(tmp_path):
    rows = np.random.default_rng(0).standard_normal((30, 4))
    ids = [f"id{i}" for i in range(30)]
    ranking = rank(rows, rows, ids, ids, k=40, exclude_self=True)
    write_ranking(ranking, tmp_path / "r.txt")
    read = read_ranking(tmp_path / "r.txt", ids)
    assert (read.index_QK == ranking.index_QK[:, : read.index_QK.shape[1]]).all()
    assert read.lengths.tolist() == [29] * 30
    assert (tmp_path / "r.txt").read_text().splitlines()[3].split(",") == ["id3", *ranking.item_ids(3)]
    unknown = Ranking(np.array(["q"]), np.array(["a"]), np.array([[UNKNOWN_ITEM]]), np.zeros((1, 1), np.float32))
    with pytest.raises(RetrievalError, match="outside its gallery"):
        write_ranking(unknown, tmp_path / "u.txt")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(rows=st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_annotations_read_back_as_written_or_are_refused(tmp_path, rows):
    ids = np.array([f"id{i}.jpg" for i in range(len(rows))])
    written = Annotations(
        ids, [caption for caption, _ in rows], [tuple(labels) for _, labels in rows], ["u"] * len(rows)
    )
    texts = [text for caption, labels in rows for text in (caption, *labels)]
    safe = not any(sign in text for text in texts for sign in "#\r\n")
    safe = safe and all(label and label == label.strip() for _, labels in rows for label in labels)
    try:
        write_annotations(written, tmp_path / "a.txt")
    except RetrievalError:
        assert not safe, "nothing in these rows stands in the way of the format"
        return
    read = read_annotations(tmp_path / "a.txt")
    assert read.ids.tolist() == ids.tolist()
    assert read[1:] == written[1:]


def test_reads_the_real_lists():
    path = SHARED / "product1m" / "product1m_test_ossurl_v2.txt"
    if not path.exists():
        pytest.skip(f"no {path}")
    read = read_annotations(path)
    assert len(read.ids) == 6547
    assert max(map(len, read.labels)) == 12
    assert read.captions[0] == "香港直邮韩国AHC黄金水乳霜套盒蜗牛玻尿酸水精华面霜眼霜三件套"
