"""GroceryStoreDataset: halves of the test list, composites, captions, and a folder that is not what it should be."""

from __future__ import annotations

import io
import pickle

import pytest
from PIL import Image

from datamodules.catalogues import open_catalogue
from datamodules.catalogues.grocery_names import describe
from datamodules.catalogues.record import SPLITS, Skipped, iterate
from datamodules.catalogues.seeding import stream
from datamodules.errors import DataError
from tests.datamodules.tiny_shops import GROCERY_CLASSES, SHARED, write_grocery

SMALL = {"image_size_px": 96, "num_train_composites": 5, "num_val": 6, "num_test": 8}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_grocery(tmp_path_factory.mktemp("grocery"))


def paths(catalogue):
    return {split: {photo.path for item in catalogue.plan(split) for photo in item.photos} for split in SPLITS}


def test_repository_root_and_its_dataset_folder_are_the_same(raw):
    one, two = open_catalogue("grocery", raw, **SMALL), open_catalogue("grocery", raw / "dataset", **SMALL)
    assert one.settings()["lists_sha256"] == two.settings()["lists_sha256"]
    assert list(iterate(one, "test")) == list(iterate(two, "test"))


def test_lists_become_splits_that_share_no_photo(raw):
    catalogue = open_catalogue("grocery", raw, **SMALL)
    used = paths(catalogue)
    for split, start in (("train", "train/"), ("val", "val/"), ("test", "test/")):
        assert all(path.startswith(start) for path in used[split])
    assert {path.split("/")[0] for path in used["gallery"]} == {"test", "iconic-images-and-descriptions"}
    assert not used["gallery"] & used["test"]
    plain = open_catalogue("grocery", raw, iconic=False, **SMALL)
    assert len(plain.plan("gallery")) == len(catalogue.plan("gallery")) - 3 == 12  # half of 3 × 8


def test_every_query_label_has_gallery_items(raw):
    catalogue = pickle.loads(pickle.dumps(open_catalogue("grocery", raw, **SMALL)))
    gallery = {record.labels[0] for record in iterate(catalogue, "gallery")}
    assert gallery == {name for name, *_ in GROCERY_CLASSES}
    for split in ("val", "test"):
        assert all(set(record.labels) <= gallery for record in iterate(catalogue, split))


def test_singles_keep_their_bytes_and_composites_have_boxes(raw):
    catalogue = open_catalogue("grocery", raw, **SMALL)
    records = list(iterate(catalogue, "train"))
    assert [record.kind for record in records] == ["single"] * 24 + ["multi"] * 5
    assert records[0].image == (raw / "dataset" / records[0].source).read_bytes()
    assert len({record.id for record in records}) == len(records)
    for record in records[24:]:
        assert Image.open(io.BytesIO(record.image)).size == (96, 96)
        assert len(record.boxes) == len(record.labels)
        assert all(0 <= box[0] < box[2] <= 96 and 0 <= box[1] < box[3] <= 96 for box in record.boxes)


def test_seed_decides_halves_composites_and_captions(raw):
    one, two = open_catalogue("grocery", raw, **SMALL), open_catalogue("grocery", raw, seed=3, **SMALL)
    assert list(iterate(one, "val")) == list(iterate(open_catalogue("grocery", raw, **SMALL), "val"))
    assert paths(one)["gallery"] != paths(two)["gallery"]
    assert not {r.image for r in iterate(one, "val")} & {r.image for r in iterate(two, "val")}


def test_a_training_photo_like_a_test_photo_is_skipped_and_counted(tmp_path):
    raw = write_grocery(tmp_path / "grocery", per_class=4)
    folder = raw / "dataset"
    Image.open(folder / "test/Fruit/Kiwi/Kiwi_000.jpg").save(folder / "train/Fruit/Kiwi/Kiwi_001.jpg", quality=85)
    (folder / "train/Fruit/Kiwi/Kiwi_002.jpg").write_bytes(b"broken")
    records = list(iterate(open_catalogue("grocery", raw, **{**SMALL, "num_train_composites": 0}), "train"))
    skipped = {record for record in records if isinstance(record, Skipped)}
    assert skipped == {Skipped("train_Kiwi_001", "near_duplicate"), Skipped("train_Kiwi_002", "undecodable_picture")}
    assert len(records) == 12


def test_exact_name_is_missing_in_about_a_third(raw):
    catalogue = open_catalogue("grocery", raw, **{**SMALL, "num_test": 300})
    missing = []
    for item in catalogue.plan("test"):
        record = catalogue.make("test", item)
        missing.append(not any(label.replace("-", " ") in record.caption for label in record.labels))
    assert 0.25 <= sum(missing) / len(missing) <= 0.42


@pytest.mark.parametrize("row", GROCERY_CLASSES)
def test_vague_names_do_not_give_the_name_away(row):
    name, coarse, aisle, description = row
    entry = describe(name, coarse, "package" if aisle == "Packages" else "fruit", description)
    said = [entry.vague(stream(number)) for number in range(200)]
    assert all(words and name.replace("-", " ").lower() not in words.lower() for words in said)
    assert len(set(said)) > 20


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("val.txt", lambda text: text + "val/x.jpg, 99, 0\n", ["val.txt:25", "below 3"]),
        ("val.txt", lambda text: text + text.splitlines()[0] + "\n", ["val.txt:25", "twice"]),
        ("classes.csv", lambda text: text.replace("Kiwi_Description.txt", "No.txt"), ["classes.csv:3", "No.txt"]),
        ("classes.csv", lambda text: text.replace("Kiwi,1,", "Kiwi,5,"), ["classes.csv", "without gaps"]),
    ],
)
def test_bad_tables_say_where_and_what(tmp_path, file, change, words):
    raw = write_grocery(tmp_path / "grocery")
    path = raw / "dataset" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError) as error:
        open_catalogue("grocery", raw).plan("val")
    assert all(word in str(error.value) for word in words)


def test_a_folder_without_the_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no classes\.csv in .*GroceryStoreDataset"):
        open_catalogue("grocery", tmp_path)


@pytest.mark.skipif(
    not (SHARED / "GroceryStoreDataset").is_dir(), reason="GroceryStoreDataset is not in ../shared/data"
)
def test_the_real_dataset():
    catalogue = open_catalogue("grocery", SHARED / "GroceryStoreDataset")
    items = {split: catalogue.plan(split) for split in SPLITS}
    singles = [item for item in items["train"] if len(item.photos) == 1]
    assert (len(catalogue.classes), len(singles)) == (81, 2640)
    assert (len(items["val"]), len(items["test"])) == (300, 600)
    gallery = [item.photos[0].label for item in items["gallery"]]
    assert set(gallery) == set(range(81))
    assert min(gallery.count(label) for label in range(81)) >= 5
    for split in SPLITS:
        record = catalogue.make(split, items[split][-1])
        assert not isinstance(record, Skipped)
        assert record.caption
