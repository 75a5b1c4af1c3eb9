"""Photos from any list: the split, the composites, the captions, and bad lists."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.catalogues import open_catalogue
from datamodules.catalogues.photo_lists import PhotoRow
from datamodules.catalogues.photo_splits import MIN_PICTURES, split_photos
from datamodules.catalogues.photo_titles import PhotoTitle
from datamodules.catalogues.record import SPLITS, Skipped, iterate
from datamodules.catalogues.seeding import stream
from datamodules.errors import DataError
from tests.datamodules.tiny_shops import SHARED, official, photo, write_photos

SMALL = {"image_size_px": 96, "num_train_composites": 4, "num_val": 4, "num_test": 6}


@pytest.fixture
def raw(tmp_path):
    return write_photos(tmp_path / "shop", num_labels=8, per_label=8)


def shown(catalogue):
    return {split: {row.id for item in catalogue.plan(split) for row in item.rows} for split in SPLITS}


def test_splits_share_no_photo_and_every_query_label_is_in_the_gallery(raw):
    catalogue = open_catalogue("photos", raw, **SMALL)
    photos = shown(catalogue)
    for one in SPLITS:
        for two in SPLITS:
            assert one == two or not photos[one] & photos[two]
    gallery = {record.labels[0] for record in iterate(catalogue, "gallery")}
    for split in ("val", "test"):
        asked = {label for record in iterate(catalogue, split) for label in record.labels}
        assert asked
        assert asked <= gallery


def test_single_photos_keep_their_bytes_and_composites_have_boxes(raw):
    catalogue = open_catalogue("photos", raw, **SMALL)
    for record in iterate(catalogue, "gallery"):
        assert record.image == (raw / f"images/{record.id}.jpg").read_bytes()
        assert record.kind == "single"
    for record in iterate(catalogue, "test"):
        assert Image.open(io.BytesIO(record.image)).size == (96, 96)
        assert record.kind == "multi"
        assert 2 <= len(record.boxes) == len(record.labels) <= 5
        for left, top, right, bottom in record.boxes:
            assert 0 <= left < right <= 96
            assert 0 <= top < bottom <= 96


def test_same_seed_same_bytes_and_other_seeds_differ(raw):
    one, two = (open_catalogue("photos", raw, **SMALL) for _ in range(2))
    assert list(iterate(one, "test")) == list(iterate(two, "test"))
    other = open_catalogue("photos", raw, seed=1, **SMALL)
    assert shown(other) != shown(one)
    assert not {r.image for r in iterate(one, "val")} & {r.image for r in iterate(other, "val")}


def test_copies_of_a_picture_stay_on_one_side(raw):
    """Every photo gets a re-encoded copy under another id."""
    lines = (raw / "products.txt").read_text().splitlines()
    for line in lines.copy():
        item_id, caption, url, _, label = line.split("#####")
        Image.open(raw / url).save(raw / f"images/copy-{item_id}.jpg", quality=80)
        lines.append(official(f"copy-{item_id}", caption, f"images/copy-{item_id}.jpg", label))
    (raw / "products.txt").write_text("\n".join(lines))
    photos = shown(open_catalogue("photos", raw, **SMALL))
    split_of = {key: split for split, keys in photos.items() for key in keys}
    assert len(photos["gallery"]) >= 16
    paired = [key for key in split_of if f"copy-{key}" in split_of]
    assert len(paired) > 40
    assert all(split_of[key] == split_of[f"copy-{key}"] for key in paired)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10),
)
def test_any_list_splits_so_that_queries_can_be_answered(sizes, seed, same_pictures):
    rows = [PhotoRow(f"{label}-{n}", "t", (), f"label{label}") for label, size in enumerate(sizes) for n in range(size)]
    groups = {row.id: row.id for row in rows}
    for one, two in same_pictures:
        kept, moved = (groups[rows[number % len(rows)].id] for number in (one, two))
        groups = {key: kept if group == moved else group for key, group in groups.items()}
    splits = split_photos(rows, groups, seed)
    assert splits.keys() == groups.keys()
    for one in splits:
        assert all(splits[two] == splits[one] for two in splits if groups[two] == groups[one])
    labels = {split: {row.label for row in rows if splits[row.id] == split} for split in SPLITS}
    assert labels["val"] | labels["test"] <= labels["gallery"]
    for label in labels["gallery"]:
        assert sum(row.label == label for row in rows) >= MIN_PICTURES
        assert label in labels["train"]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["Puma Men Black Tshirts", "雅诗黛正品面霜 滋润", "Red Bag"]), st.integers(0, 1000))
def test_a_vague_title_is_neither_empty_nor_the_title(title, seed):
    words = PhotoTitle(title).vague(stream(seed))
    assert words
    assert title not in words


def test_exact_title_is_missing_in_about_a_third(raw):
    catalogue = open_catalogue("photos", raw, **{**SMALL, "num_test": 300})
    missing = []
    for item in catalogue.plan("test"):
        title = catalogue.make("test", item).caption
        missing.append(not any(row.caption in title for row in item.rows))
    assert 0.25 <= sum(missing) / len(missing) <= 0.42


def rows_of(raw):
    lines = (line.split("#####") for line in (raw / "products.txt").read_text().splitlines())
    return [{"id": f[0], "caption": f[1], "image": f[2], "label": f[4]} for f in lines]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_csv_and_jsonl_are_read_like_official_lines(raw, kind):
    expected = list(iterate(open_catalogue("photos", raw, **SMALL), "test"))
    rows = rows_of(raw)
    (raw / "products.txt").unlink()
    with (raw / f"mine.{kind}").open("w", encoding="utf-8", newline="") as file:
        if kind == "csv":
            writer = csv.DictWriter(file, ["label", "id", "caption", "image"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    assert list(iterate(open_catalogue("photos", raw, **SMALL), "test")) == expected


def test_several_lists_ask_for_one(raw):
    (raw / "other.csv").write_text("id,caption,image,label\n1,a,images/1.jpg,x\n")
    with pytest.raises(DataError, match=r"several lists.*other\.csv, products\.txt.*list_file"):
        open_catalogue("photos", raw)
    assert open_catalogue("photos", raw, list_file="products.txt").settings()["list_file"] == "products.txt"
    with pytest.raises(DataError, match=r"list_file 'mine\.csv' is not in"):
        open_catalogue("photos", raw, list_file="mine.csv")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "id,title,image,label\n1,a,b,c\n", ["a.csv:1", "'caption'"]),
        ("a.csv", "id,caption,images,label\n1,a,b,c\n", ["a.csv:1", "'image'", "did you mean 'images'"]),
        ("a.jsonl", '{"id": 1}\n', ["a.jsonl:1", "'caption'"]),
        ("a.jsonl", "{id: 1}\n", ["a.jsonl:1", "not JSON"]),
        ("a.jsonl", "[1]\n", ["a.jsonl:1", "object"]),
        ("products.txt", "1#####cap\n", ["products.txt:1", "2 fields"]),
        ("products.txt", official("1", "c", "u", "a#;#b"), ["products.txt:1", "2 labels", "product1m"]),
        ("products.txt", official("1", "c", "u", "a") + "\n" + official("1", "d", "u", "a"), ["1", "line 1", "line 2"]),
        ("a.csv", "id,caption,image,label\n1 2,a,b,c\n", ["a.csv:2", "'1 2'"]),
        ("products.txt", "", ["products.txt", "empty"]),
        ("note.md", "", ["no list in", "products.txt"]),
    ],
)
def test_bad_lists_say_where_and_what(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        open_catalogue("photos", tmp_path)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_labels_that_never_repeat_are_refused(tmp_path):
    raw = write_photos(tmp_path / "shop", num_labels=3, per_label=2)
    with pytest.raises(DataError, match="no label has 3 different pictures"):
        open_catalogue("photos", raw).plan("gallery")


def test_a_list_whose_pictures_are_all_gone_says_so(raw):
    for path in (raw / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"not one of \d+ pictures is there and can be read, e\.g\. that of"):
        open_catalogue("photos", raw, **SMALL).plan("gallery")


def test_unusable_photos_are_skipped_in_training_and_never_composed(raw):
    (raw / "images/0.jpg").write_bytes(b"broken")
    (raw / "images/1.jpg").unlink()
    text = (raw / "products.txt").read_text().replace("Acme Men Shade0 Shirt Model Nr2#", "#")
    (raw / "products.txt").write_text(text)
    catalogue = open_catalogue("photos", raw, **{**SMALL, "num_train_composites": 100})
    made = [record for split in SPLITS for record in iterate(catalogue, split)]
    reasons = Counter(record.reason for record in made if isinstance(record, Skipped))
    assert reasons == {"undecodable_picture": 1, "missing_picture": 1, "empty_caption": 1}


def test_a_picture_outside_the_folder_is_not_read(raw):
    (raw.parent / "secret.jpg").write_bytes(photo(99))
    with (raw / "products.txt").open("a") as file:
        file.write(official("spy", "a b", "../secret.jpg", "spied") + "\n")
    made = {record.id: record for record in iterate(open_catalogue("photos", raw, **SMALL), "train")}
    assert made["spy"] == Skipped("spy", "missing_picture")


@pytest.mark.skipif(not (SHARED / "fashion").is_dir(), reason="the fashion photos are not in ../shared/data")
def test_fashion_is_read_whole_and_its_white_ground_is_cut():
    from datamodules.catalogues.cutout import cut_out
    from datamodules.catalogues.photo_lists import find_list, read_list
    from datamodules.catalogues.picture_files import decode, find_picture

    raw = SHARED / "fashion"
    rows = read_list(find_list(raw))
    assert len(rows) == 9332
    pictures = [decode(find_picture(raw, row.id, row.urls).read_bytes()) for row in rows[:60]]
    cut = [cut_out(picture) for picture in pictures]
    assert sum(sprite is not None for sprite in cut) >= 48
    assert all(sprite.mode == "RGBA" for sprite in cut if sprite is not None)
