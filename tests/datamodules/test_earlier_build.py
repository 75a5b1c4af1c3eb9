"""A folder that is built again: left as it was where nothing comes of it, and keeping what stands beside its shards."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.catalogues import open_catalogue, photo_lists, photos
from datamodules.entities import add_entities
from datamodules.errors import DataError
from datamodules.manifest import Manifest, read_manifest
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.test_entities import Words
from tests.datamodules.tiny_catalogue import TinyCatalogue
from tests.datamodules.tiny_sets import write_set
from tests.datamodules.tiny_shops import write_photos

COUNTS = {"train": 12, "val": 3, "test": 3, "gallery": 4}
EVERY_ITEM = [f"{split}.{number}" for split, count in COUNTS.items() for number in range(count)]


def _build(folder: Path, faults: dict[str, str] | None = None, **options: Any) -> Manifest:
    settings = {"shard_size": 6, "vocab_size": 60, "progress": False, **options}
    return build(TinyCatalogue(COUNTS, faults or {}), folder, **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Finished, with a region set and entities."""
    _build(tmp_path / "shop")
    write_set(tmp_path / "shop")
    add_entities(tmp_path / "shop", Words(), progress=False)
    return tmp_path / "shop"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_build_that_comes_to_nothing_leaves_the_folder_as_it_was(folder: Path) -> None:
    before = _bytes(folder)
    with pytest.raises(DataError, match="not one usable training sample"):
        _build(folder, dict.fromkeys(EVERY_ITEM, "skipped"))  # the disk with the pictures is not there
    assert _bytes(folder) == before
    with pytest.raises(DataError, match="not one usable training sample"):
        _build(folder, regions=lambda record: None)  # the wrong folder of features
    assert _bytes(folder) == before


def test_a_build_that_is_killed_before_it_wrote_a_shard_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _bytes(folder)
    (folder / ".build").mkdir()
    os.replace(folder / "manifest.json", folder / ".build" / "manifest.json")  # where SIGKILL leaves it
    monkeypatch.setattr(TinyCatalogue, "make", None)
    _build(folder)
    assert _bytes(folder) == before


def test_a_build_that_has_replaced_a_shard_is_not_called_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TinyCatalogue.make

    def make(self: TinyCatalogue, split: str, item: int) -> object:
        if split == "val":
            raise KeyboardInterrupt
        return whole(self, split, item)  # type: ignore[arg-type]

    monkeypatch.setattr(TinyCatalogue, "make", make)
    with pytest.raises(KeyboardInterrupt):
        _build(folder, seed=1)
    with pytest.raises(DataError, match="not finished building"):
        read_manifest(folder)
    monkeypatch.undo()
    assert _build(folder)["region_sets"].keys() == {"detected"}, "back to the shards that the set is of"
    assert verify(folder) == []


def _lose(folder: Path) -> None:
    (folder / "val-000000.tar").unlink()


def _cut_list(folder: Path) -> None:
    (folder / "annotations" / "val.txt").write_text("x\n")


def _lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize("damage", [_lose, _cut_list, _lose_tokenizer])
def test_damage_is_mended_by_building_again_and_keeps_sets_and_entities(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    before = _bytes(folder)
    damage(folder)
    _build(folder)
    assert _bytes(folder) == before
    assert verify(folder) == []


def test_a_flipped_bit_is_mended_where_it_is_asked_for(folder: Path) -> None:
    before, tar = _bytes(folder), folder / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    _build(folder)
    assert _bytes(folder) != before, "sizes do not tell"
    assert any("ARGS=--again" in problem or "sha256 differs" in problem for problem in verify(folder))
    _build(folder, again=True)
    assert _bytes(folder) == before


def test_a_mended_picture_is_taken_up_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TinyCatalogue.make

    def half(self: TinyCatalogue, split: str, item: int) -> object:
        record = whole(self, split, item)  # type: ignore[arg-type]
        return record._replace(image=record.image[:400]) if (split, item) == ("val", 1) else record  # type: ignore[union-attr]

    monkeypatch.setattr(TinyCatalogue, "make", half)
    assert _build(tmp_path)["splits"]["val"]["skipped"] == {"undecodable_picture": 1}
    monkeypatch.undo()
    assert _build(tmp_path)["splits"]["val"]["samples"] == 2
    assert _build(tmp_path, again=True)["splits"]["val"]["samples"] == 3


def test_other_shards_lose_sets_and_entities_and_say_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        manifest = _build(folder, seed=1)
    assert (manifest["region_sets"], manifest["entities"]) == ({}, None)
    assert "region set 'detected' was of the shards before and is removed" in caplog.text
    assert "the entities were of the captions before and are removed" in caplog.text
    assert verify(folder) == []
    assert not (folder / "entities").exists()


def test_a_damaged_manifest_is_built_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _damage_manifest(folder)
    with caplog.at_level(logging.WARNING):
        _build(folder)
    assert "not readable as JSON" in caplog.text
    assert verify(folder) == []


def test_a_set_that_is_finished_while_entities_are_looked_for_stays_listed(folder: Path) -> None:
    class Slow(Words):
        def problems(self) -> dict[str, int]:
            write_set(folder, "other")
            return super().problems()

        def settings(self) -> dict[str, Any]:
            return {"kind": "slow"}

    add_entities(folder, Slow(), progress=False)
    assert read_manifest(folder)["region_sets"].keys() == {"detected", "other"}
    assert read_manifest(folder)["entities"]["source"] == {"kind": "slow"}  # type: ignore[index]
    assert verify(folder) == []


@pytest.mark.parametrize("caption", ["shade 01#", "#", "a ##### b###### "])
def test_a_caption_may_end_in_the_sign_of_the_separator(
    tmp_path: Path, caption: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TinyCatalogue.make

    def make(self: TinyCatalogue, split: str, item: int) -> object:
        record = whole(self, split, item)  # type: ignore[arg-type]
        return record._replace(caption=caption, source="http://host/a.jpg#", labels=("#1",))  # type: ignore[union-attr]

    monkeypatch.setattr(TinyCatalogue, "make", make)
    _build(tmp_path)
    assert verify(tmp_path) == []


def test_a_finished_folder_is_not_built_again_from_half_of_what_it_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, plan = _bytes(folder), TinyCatalogue.plan
    monkeypatch.setattr(TinyCatalogue, "plan", lambda self, split: plan(self, split)[::2])
    with pytest.raises(DataError, match=r"holds 12 train samples, and only 6 could be built now: .*ARGS=--again"):
        _build(folder)
    assert _bytes(folder) == before
    assert _build(folder, again=True)["splits"]["train"]["samples"] == 6


def test_a_few_items_less_are_built_without_a_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TinyCatalogue.plan
    monkeypatch.setattr(
        TinyCatalogue, "plan", lambda self, split: plan(self, split)[: 11 if split == "train" else None]
    )
    assert _build(folder)["splits"]["train"]["samples"] == 11


def test_photos_whose_pictures_are_half_gone_are_refused(tmp_path: Path) -> None:
    raw = write_photos(tmp_path / "photos", per_label=16)
    settings = {"num_train_composites": 4, "num_val": 4, "num_test": 6, "image_size_px": 96}
    options = {"shard_size": 100, "vocab_size": 80, "progress": False}
    build(open_catalogue("photos", raw, **settings), tmp_path / "shop", **options)
    before = _bytes(tmp_path / "shop")
    for path in sorted((raw / "images").iterdir())[::2]:
        path.unlink()
    photos._groups.cache_clear()  # as in another process
    with pytest.raises(DataError, match=r"could be built now: are list and pictures where they were"):
        build(open_catalogue("photos", raw, **settings), tmp_path / "shop", **options)
    assert _bytes(tmp_path / "shop") == before


def test_half_a_list_is_refused(tmp_path: Path) -> None:
    raw = write_photos(tmp_path / "photos", per_label=16)
    settings = {"num_train_composites": 4, "num_val": 4, "num_test": 6, "image_size_px": 96}
    options = {"shard_size": 100, "vocab_size": 80, "progress": False}
    build(open_catalogue("photos", raw, **settings), tmp_path / "shop", **options)
    lines = (raw / "products.txt").read_text().splitlines()
    (raw / "products.txt").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    photo_lists.read_list.cache_clear()  # as in another process
    with pytest.raises(DataError, match=r"could be built now: are list and pictures where they were"):
        build(open_catalogue("photos", raw, **settings), tmp_path / "shop", **options)


def test_a_copied_folder_is_left_as_it_was_too(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.rglob("*"))):
        os.utime(path, (number, number))  # as a copy in the order of names: tars younger than the manifest
    before = _bytes(folder)
    with pytest.raises(DataError, match="not one usable training sample"):
        _build(folder, regions=lambda record: None)
    assert _bytes(folder) == before


def test_receipts_that_a_kill_left_in_a_finished_folder_vouch_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _bytes(folder)
    monkeypatch.setattr("datamodules.write_shards.shutil", SimpleNamespace(rmtree=lambda path: None))
    _build(folder, again=True)
    monkeypatch.undo()
    assert (folder / ".build").is_dir()
    tar = folder / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    _build(folder, again=True)
    assert _bytes(folder) == before
