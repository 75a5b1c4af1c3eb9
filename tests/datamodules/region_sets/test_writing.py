"""Region sets are written beside finished shards, and leave them as they were."""

from __future__ import annotations

import logging
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError, Product1M
from datamodules.manifest import read_manifest
from datamodules.region_set_writer import RegionSetWriter, whole_picture
from datamodules.region_sets import remove_region_set, set_of, sidecar_file
from datamodules.regions import BadRegionsError, Regions
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.region_sets.conftest import CATALOGUE, COUNTS
from tests.datamodules.tiny_catalogue import tiny_regions
from tests.datamodules.tiny_sets import ABOUT, WIDTH, Rows, found_in, rows_of, write_set


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_set_leaves_shards_and_data_hash_as_they_were(bare: Path, sound: Path) -> None:
    before, after = read_manifest(bare), read_manifest(sound)
    assert before["region_sets"] == {}
    assert {**after, "region_sets": {}} == before
    assert verify(sound) == []
    entry = after["region_sets"]["detected"]
    assert (entry["width"], entry["about"]) == (WIDTH, ABOUT)
    assert not list(sound.glob(".*"))
    ids = [item for split in COUNTS for item in (f"{split}.{number}" for number in range(COUNTS[split]))]
    num_found = {item: int((found_in(item).scores_R > 0).sum()) for item in ids}
    assert entry["max"] == max(num_found.values())
    for split, part in entry["splits"].items():
        mine = [number for item, number in num_found.items() if item.startswith(f"{split}.")]
        assert (part["pictures"], part["boxes"], part["without"]) == (len(mine), sum(mine), mine.count(0))
        assert part["truth"] == (split in ("val", "test"))
    assert any(part["without"] for part in entry["splits"].values())
    with tarfile.open(sound / "val-regions-detected-000000.tar") as tar:
        assert tar.getnames()[:3] == ["000000000.regions.npz", "000000000.truth.npz", "000000001.regions.npz"]
    with tarfile.open(sound / "train-regions-detected-000000.tar") as tar:
        assert all(name.endswith(".regions.npz") for name in tar.getnames())


def test_a_killed_writer_goes_on_and_two_ranks_write_the_same(bare: Path, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bare, tmp_path / "killed"))
    first = RegionSetWriter(folder, "detected", ABOUT)
    jobs = first.pending()
    for split, number in jobs[:3]:
        first.write(split, number, rows_of(folder, split, f"{split}-{number:06d}.tar"))
    with pytest.raises(DataError, match=r"train-regions-detected-000003\.tar is not written yet.*--exp detector"):
        first.finish()
    assert "detected" not in read_manifest(folder)["region_sets"]
    assert any("is not finished" in problem for problem in verify(folder))
    torn = folder / "train-regions-detected-000002.tar"
    torn.write_bytes(torn.read_bytes()[:-512])
    kept = (folder / "train-regions-detected-000000.tar").stat().st_mtime_ns
    again = [RegionSetWriter(folder, "detected", ABOUT) for _ in range(2)]
    shares = [writer.pending(rank, 2) for rank, writer in enumerate(again)]
    assert sorted(shares[0] + shares[1]) == sorted(jobs[2:]), "each of the rest once, and the torn one"
    for writer, share in zip(again, shares, strict=True):
        for split, number in share:
            writer.write(split, number, rows_of(folder, split, f"{split}-{number:06d}.tar"))
    again[0].finish()
    assert (folder / "train-regions-detected-000000.tar").stat().st_mtime_ns == kept
    assert _bytes(folder) == _bytes(sound)
    assert RegionSetWriter(folder, "detected", ABOUT).pending() == []
    RegionSetWriter(folder, "detected", ABOUT).finish()
    assert _bytes(folder) == _bytes(sound)


def test_another_detector_under_the_same_name_is_refused(copy: Path) -> None:
    with pytest.raises(DataError, match=r"threshold 0\.05 -> 0\.1.*another name \(--name\).*--fresh"):
        RegionSetWriter(copy, "detected", {**ABOUT, "threshold": 0.1})
    half = RegionSetWriter(copy, "other", {**ABOUT, "threshold": 0.1})
    half.write("val", 0, rows_of(copy, "val", "val-000000.tar"))
    with pytest.raises(DataError, match=r"'other' .*threshold 0\.1 -> 0\.05"):
        RegionSetWriter(copy, "other", ABOUT)
    remove_region_set(copy, "other")
    assert verify(copy) == []
    write_set(copy, "other", {**ABOUT, "threshold": 0.1})
    assert list(read_manifest(copy)["region_sets"]) == ["detected", "other"]
    assert verify(copy) == []
    remove_region_set(copy, "detected")
    assert list(read_manifest(copy)["region_sets"]) == ["other"]
    assert verify(copy) == []


@pytest.mark.parametrize("name", ["", "a-b", "a b", "../x", "é"])
def test_a_name_that_is_none_is_refused(sound: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"letters, digits and _, like 'detected'"):
        RegionSetWriter(sound, name, ABOUT)
    with pytest.raises(DataError, match="letters, digits and _"):
        Product1M(str(sound), region_set=name)


def _one(*box: float, scores: float = 1.0, size: tuple[int, int] = (40, 40), num: int = 1) -> Regions:
    return Regions(np.array([box] * num, np.float32).reshape(num, 4), np.ones((num, WIDTH), np.float16), np.full(num, scores, np.float32), size)  # fmt: skip # noqa: E501


BAD = {
    "outside": (_one(0, 0, 50, 10), "outside the picture"),
    "no area": (_one(5, 0, 5, 10), "without area"),
    "nan": (_one(0, 0, np.nan, 10), "nan"),
    "feature": (_one(0, 0, 9, 9)._replace(features_RD=np.full((1, WIDTH), np.nan, np.float16)), "NaN"),
    "none": (_one(0, 0, 9, 9, num=1)._replace(boxes_R4=np.zeros((0, 4)), features_RD=np.zeros((0, 6)), scores_R=np.zeros(0)), "no region"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize(("regions", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("truth", [False, True])
def test_regions_no_model_can_use_are_refused_with_the_id(
    regions: Regions, message: str, truth: bool, copy: Path
) -> None:
    rows = rows_of(copy, "val", "val-000000.tar")
    rows[2] = (rows[2][0], regions) if truth else (regions, rows[2][1])
    with pytest.raises(
        BadRegionsError, match=rf"sample 'val\.2', \.{'truth' if truth else 'regions'}\.npz: .*{message}"
    ):
        RegionSetWriter(copy, "bad", ABOUT).write("val", 0, rows)
    assert not list(copy.glob("*bad*")), "nothing is left of it"


def test_other_widths_and_numbers_are_refused(copy: Path) -> None:
    writer = RegionSetWriter(copy, "bad", ABOUT)
    rows = rows_of(copy, "val", "val-000000.tar")
    with pytest.raises(DataError, match=r"4 pictures were looked at, val-000000\.tar holds 5"):
        writer.write("val", 0, rows[:-1])
    rows[3] = (whole_picture((40, 40), np.ones(9, np.float16)), None)
    with pytest.raises(DataError, match=r"sample 'val\.3', \.regions\.npz: its features are 9 wide, those before it 6"):
        writer.write("val", 0, rows)

    def wider(split: str, rows: Rows) -> Rows:
        return [(found_in("x", width=9), None) for _ in rows] if split == "gallery" else rows

    with pytest.raises(DataError, match=r"features of widths \[6, 9\]"):
        write_set(copy, "wide", change=wider)


def test_building_again_removes_the_sets(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = RegionSetWriter(copy, "half", ABOUT)
    half.write("val", 0, rows_of(copy, "val", "val-000000.tar"))
    with caplog.at_level(logging.WARNING):
        build(CATALOGUE, copy, shard_size=6, vocab_size=60, progress=False, regions=tiny_regions)
    assert list(copy.glob("*-regions-detected-*")), "up to date: nothing is touched"
    with caplog.at_level(logging.WARNING):
        build(CATALOGUE, copy, shard_size=12, vocab_size=60, progress=False, regions=tiny_regions)
    assert "region set 'detected' was of the shards before and is removed" in caplog.text
    assert not list(copy.glob("*-regions-*"))
    assert not list(copy.glob(".*"))
    assert read_manifest(copy)["region_sets"] == {}
    assert verify(copy) == []


def test_names_of_files() -> None:
    assert sidecar_file("train-000003.tar", "de_1") == "train-regions-de_1-000003.tar"
    assert set_of("train-regions-de_1-000003.tar") == "de_1"
    assert set_of("train-000003.tar") is None
