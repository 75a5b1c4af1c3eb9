"""Building a folder: the same bytes again, resumable, and every fault named or counted."""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules import shard_writer
from datamodules.annotations import read_rows
from datamodules.errors import DataError
from datamodules.manifest import Manifest, read_manifest
from datamodules.regions import Regions, pack_regions, unpack_regions
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions

COUNTS = {"train": 23, "val": 4, "test": 5, "gallery": 6}


def _build(folder: Path, catalogue: TinyCatalogue | None = None, **options: object) -> Manifest:
    settings: dict = {"shard_size": 6, "vocab_size": 60, "progress": False, **options}
    return build(catalogue or TinyCatalogue(COUNTS), folder, **settings)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _ids(folder: Path, split: str) -> list[str]:
    found = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found.append(json.load(tar.extractfile(member))["id"])  # type: ignore[arg-type]
    return found


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    _build(tmp_path / "a" / "shop")
    _build(tmp_path / "b" / "shop", workers=2)
    assert _bytes(tmp_path / "a" / "shop") == _bytes(tmp_path / "b" / "shop")
    _build(tmp_path / "c" / "shop", seed=1)
    assert _ids(tmp_path / "c" / "shop", "train") != _ids(tmp_path / "a" / "shop", "train")
    assert _ids(tmp_path / "c" / "shop", "val") == _ids(tmp_path / "a" / "shop", "val")


def test_the_folder_holds_what_the_contract_says(tmp_path: Path) -> None:
    manifest = _build(tmp_path)
    assert verify(tmp_path) == []
    assert manifest == read_manifest(tmp_path)
    train = manifest["splits"]["train"]
    assert [shard["samples"] for shard in train["shards"]] == [6, 6, 6, 5], "equal up to one sample"
    assert (train["samples"], train["multi"], manifest["splits"]["gallery"]["single"]) == (23, 23, 6)
    ids = _ids(tmp_path, "train")
    assert sorted(ids) == sorted(f"train.{i}" for i in range(23))
    assert ids != [f"train.{i}" for i in range(23)], "training order is shuffled"
    rows = read_rows(tmp_path, "val", 4)
    assert [row.id for row in rows] == _ids(tmp_path, "val") == [f"val.{i}" for i in range(4)]
    line = (tmp_path / "annotations" / "val.txt").read_text(encoding="utf-8").splitlines()[2]
    assert line == "val.2#####品牌2 series2 口红 lipstick number 2#####tiny/val/2#####tiny/val/2#####label 2"
    assert not (tmp_path / "annotations" / "train.txt").exists(), "training labels stay out of sight"
    assert not (tmp_path / ".build").exists()
    with tarfile.open(tmp_path / "val-000000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members[:2]] == ["000000000.jpg", "000000000.json"]
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


def test_a_finished_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _build(tmp_path)
    monkeypatch.setattr(TinyCatalogue, "make", None)
    assert _build(tmp_path) == first


def _dying_after(number: int, made: list[str]) -> Callable:
    whole = TinyCatalogue.make

    def make(self: TinyCatalogue, split: str, item: int) -> object:
        if len(made) == number:
            raise KeyboardInterrupt
        record = whole(self, split, item)  # type: ignore[arg-type]
        made.append(f"{split}.{item}")
        return record

    return make


def test_a_killed_build_goes_on_with_the_next_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _build(tmp_path / "whole", name="shop")
    made: list[str] = []
    monkeypatch.setattr(TinyCatalogue, "make", _dying_after(15, made))
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path / "killed", name="shop")
    with pytest.raises(DataError, match="not finished building"):
        read_manifest(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.tmp")), "no half shard is left behind"
    monkeypatch.undo()
    again: list[str] = []
    monkeypatch.setattr(TinyCatalogue, "make", _dying_after(-1, again))
    assert _build(tmp_path / "killed", name="shop") == whole
    assert len(again) == sum(COUNTS.values()) - 12, "the two finished shards of six were kept"
    assert not set(again) & set(made[:12])
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


def test_a_changed_setting_is_said_and_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = _build(tmp_path)
    with caplog.at_level(logging.WARNING):
        after = _build(tmp_path, shard_size=12)
    assert "shard_size 6 -> 12" in caplog.text
    assert len(after["splits"]["train"]["shards"]) == 2
    assert len(list(tmp_path.glob("train-*.tar"))) == 2, "shards of the earlier build are gone"
    assert after["data_hash"] != before["data_hash"]
    assert verify(tmp_path) == []
    caplog.clear()
    _build(tmp_path, TinyCatalogue({**COUNTS, "train": 24}), shard_size=12)
    assert "catalogue.counts {'train': 23" in caplog.text


def test_another_source_does_not_overwrite_a_folder(tmp_path: Path) -> None:
    _build(tmp_path)
    with pytest.raises(DataError, match="holds shards of 'tiny', not 'other'"):
        _build(tmp_path, TinyCatalogue(COUNTS, name="other"))


def test_unusable_samples_are_skipped_and_counted(tmp_path: Path) -> None:
    faults = {"train.3": "picture", "train.4": "caption", "train.5": "skipped", "val.1": "picture"}
    splits = _build(tmp_path, TinyCatalogue(COUNTS, faults))["splits"]
    assert splits["train"]["skipped"] == {"empty_caption": 1, "missing_picture": 1, "undecodable_picture": 1}
    assert splits["train"]["samples"] == 20
    assert splits["val"]["skipped"] == {"undecodable_picture": 1}
    assert [row.id for row in read_rows(tmp_path, "val", 3)] == ["val.0", "val.2", "val.3"]
    assert verify(tmp_path) == []


def test_a_duplicate_id_names_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Duplicate item id 'val\.0': once in val \(tiny/val/0\), once in gallery"):
        _build(tmp_path, TinyCatalogue(COUNTS, {"gallery.2": "id:val.0"}))
    with pytest.raises(DataError, match="not finished building"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("bad", ["id:a b", "id:../x", "id:"])
def test_an_id_the_list_cannot_carry_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(DataError, match="should match"):
        _build(tmp_path, TinyCatalogue(COUNTS, {"train.0": bad}))


def test_a_label_without_gallery_item_is_counted_and_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = _build(tmp_path, TinyCatalogue(COUNTS, {"test.3": "label"}))
    assert manifest["splits"]["test"]["unscorable"] == 1
    assert manifest["splits"]["val"]["unscorable"] == 0
    assert manifest["labels"] == {"count": 6, "without_gallery": ["label nobody sells"]}
    assert "1 of 5 test queries" in caplog.text
    assert "'test.3'" in caplog.text
    assert verify(tmp_path) == [], "the manifest admits to it"


def test_the_same_picture_in_two_splits_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _build(tmp_path / "clean")["near_duplicates"]["pairs_across_splits"] == 0
    # Training picture 7 under the id of a gallery item and of a query: three pairs of splits share it.
    faults = {"gallery.1": "image of:7", "test.2": "image of:7"}
    with caplog.at_level(logging.WARNING):
        report = _build(tmp_path / "leaky", TinyCatalogue(COUNTS, faults))["near_duplicates"]
    assert report["pairs_across_splits"] == 3
    assert ["train", "train.7", "gallery", "gallery.1"] in report["examples"]
    assert "near-duplicate" in caplog.text


def test_regions_are_stored_beside_or_instead_of_pictures(tmp_path: Path) -> None:
    manifest = _build(tmp_path, pictures=False, regions=tiny_regions)
    assert manifest["regions"] == {"width": 8, "max": 3, "files": []}
    assert manifest["pictures"] is False
    assert verify(tmp_path) == []
    with tarfile.open(tmp_path / "val-000000.tar") as tar:
        assert tar.getnames()[:2] == ["000000000.regions.npz", "000000000.json"]


def test_the_regions_member_is_never_unpickled() -> None:
    regions = Regions(np.zeros((2, 4), np.float32), np.ones((2, 8), np.float16), np.ones(2, np.float32), (40, 30))
    back = unpack_regions(pack_regions(regions))
    assert (back.features_RD == 1).all()
    assert back.size_hw == (40, 30)
    assert pack_regions(regions) == pack_regions(regions)
    buffer = io.BytesIO()
    bad = np.array([{"a": 1}], dtype=object)
    np.savez(buffer, boxes=bad, features=bad, scores=bad, size=bad)
    with pytest.raises(DataError, match="not readable"):
        unpack_regions(buffer.getvalue())
    with pytest.raises(DataError, match="not readable"):
        unpack_regions(b"PK\x03\x04")


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one usable training sample"):
        _build(tmp_path, TinyCatalogue({"val": 3, "gallery": 3}))


def test_captions_are_brought_onto_one_line(tmp_path: Path) -> None:
    record = TinyCatalogue(COUNTS).make("val", 0)
    odd = record._replace(caption=" a\u2028b\r\n\tc ##### d\ud800 ")  # type: ignore[union-attr]
    assert shard_writer._cleaned(odd).caption == "a b c d?"
