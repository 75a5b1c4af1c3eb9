"""The official files: fields, places of pictures, what is skipped and what is refused."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from datamodules.catalogues import open_catalogue
from datamodules.catalogues.official_lines import parse_line
from datamodules.catalogues.record import SPLITS, Skipped, iterate
from datamodules.errors import DataError
from tests.datamodules.tiny_shops import SHARED, official, photo, write_product1m


@pytest.fixture
def raw(tmp_path):
    return write_product1m(tmp_path / "product1m")


def add(raw, split, line):
    with (raw / f"product1m_{split}_ossurl_v2.txt").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_pictures_labels_and_kinds(raw):
    catalogue = pickle.loads(pickle.dumps(open_catalogue("product1m", raw)))
    records = {split: list(iterate(catalogue, split)) for split in SPLITS}
    assert [record.kind for split in SPLITS for record in records[split]] == ["unknown"] * 2 + ["multi"] * 4 + [
        "single"
    ] * 2
    assert records["val"][0].labels == ("a", "b", "a")
    assert records["train"][0].labels == ()
    assert records["train"][0].image == photo(0)  # images/<id>.png, as found
    assert records["train"][1].image == photo(1)  # its relative url
    assert records["test"][1].caption == "标题 test1"


def test_a_plan_can_be_sliced_and_holds_no_text(raw):
    plan = open_catalogue("product1m", raw).plan("test")
    assert len(plan[1:]) == 1
    assert plan[1:][0] == plan[1]
    assert b"test1" not in pickle.dumps(plan)


def test_line_ends_and_byte_order_mark_do_not_matter(raw):
    path = raw / "product1m_test_ossurl_v2.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    catalogue = open_catalogue("product1m", raw)
    assert [record.id for record in iterate(catalogue, "test")] == ["test0", "test1"]
    assert {record.labels for record in iterate(catalogue, "test")} == {("a", "b")}


def test_unusable_samples_are_skipped_with_their_reason(raw):
    (raw / "images/torn.jpg").write_bytes(photo(50, (400, 400))[:2000])
    (raw / "images/page.jpg").write_bytes(b"<html>not found</html>")
    (raw / "images/mute.jpg").write_bytes(photo(51))
    (raw / "images/huge.jpg").write_bytes(photo(52, (1100, 1000)))
    (raw.parent / "outside.jpg").write_bytes(photo(53))
    for item_id in ("torn", "page", "huge", "gone"):
        add(raw, "train", official(item_id, "标题", "x", None))
    add(raw, "train", official("mute", "  ", "x", None))
    add(raw, "train", official("escape", "标题", "../outside.jpg", None))
    catalogue = open_catalogue("product1m", raw, max_megapixels=1)
    reasons = {record.id: record.reason for record in iterate(catalogue, "train") if isinstance(record, Skipped)}
    assert reasons == {
        "torn": "undecodable_picture", "page": "html_page", "huge": "oversized_picture",
        "gone": "missing_picture", "mute": "empty_caption", "escape": "missing_picture",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("split", "line", "words"),
    [
        ("test", official("x1", "标题", "u", None), ["product1m_test_ossurl_v2.txt:3", "4 fields"]),
        ("train", "x1#####标题", ["product1m_train_ossurl_v2.txt:3", "2 fields"]),
        ("gallery", official("x1", "标题", "u", ""), ["product1m_gallery_ossurl_v2.txt:3", "label"]),
        ("gallery", official("x1", "标题", "u", "a#;#"), ["product1m_gallery_ossurl_v2.txt:3", "empty label"]),
        ("train", official("a/b", "标题", "u", None), ["product1m_train_ossurl_v2.txt:3", "a/b"]),
    ],
)
def test_bad_lines_name_file_and_line(raw, split, line, words):
    add(raw, split, line)
    with pytest.raises(DataError) as error:
        open_catalogue("product1m", raw).plan({"dev": "val"}.get(split, split))
    assert all(word in str(error.value) for word in words)


def test_an_id_counts_once_and_training_gives_way_to_the_evaluation(raw):
    add(raw, "gallery", official("gallery0", "又", "u", "a"))
    for item_id in ("train1", "test0"):
        add(raw, "train", official(item_id, "又", "u", None))
    catalogue = open_catalogue("product1m", raw)
    skipped = {s: [one for one in iterate(catalogue, s) if isinstance(one, Skipped)] for s in ("gallery", "train")}
    assert [(one.id, one.reason) for one in skipped["train"]] == [
        ("train1", "duplicate_id"),
        ("test0", "duplicate_id"),
    ]
    assert skipped["gallery"] == [Skipped("gallery0", "duplicate_id", "line 3, also in line 1")]
    assert list(catalogue.plan("train").absent_N) == [False, False, True, True]


def test_an_id_in_two_lists_for_evaluation_is_refused_with_both_places(raw):
    add(raw, "gallery", official("test0", "标题", "u", "a"))
    with pytest.raises(DataError, match=r"test0 stands in .*test_ossurl_v2\.txt:1 and in .*gallery_ossurl_v2\.txt:3"):
        open_catalogue("product1m", raw).plan("train")


def test_text_that_is_not_utf8_names_file_and_line(raw):
    with (raw / "product1m_test_ossurl_v2.txt").open("ab") as file:
        file.write("x1#####标题#####u#####u#####a\n".encode("gbk"))
    with pytest.raises(DataError, match=r"test_ossurl_v2\.txt:3: not UTF-8"):
        open_catalogue("product1m", raw).plan("test")


def test_a_missing_list_is_named(raw):
    (raw / "product1m_gallery_ossurl_v2.txt").unlink()
    with pytest.raises(DataError, match=r"product1m_gallery_ossurl_v2\.txt not found"):
        open_catalogue("product1m", raw)


@pytest.mark.skipif(not (SHARED / "product1m").is_dir(), reason="the real Product1M lists are not in ../shared")
def test_the_real_lists_parse():
    counts = {}
    for split in ("dev", "test"):
        path = SHARED / f"product1m/product1m_{split}_ossurl_v2.txt"
        lines = path.read_text(encoding="utf-8").splitlines()
        parsed = [parse_line(line, f"{path}:{number}", True) for number, line in enumerate(lines, 1)]
        counts[split] = len(parsed)
        assert max(Counter(line.id for line in parsed).values()) == 1
        assert max(len(line.labels) for line in parsed) <= 12
    assert counts == {"dev": 2673, "test": 6547}
