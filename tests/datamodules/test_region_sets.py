"""Region sets: written beside finished shards, read in their place, and refused where they do not belong."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import DataError, InputSpec, Product1M
from datamodules.manifest import file_sha256, read_manifest
from datamodules.region_set_writer import RegionSetWriter, whole_picture
from datamodules.region_sets import remove_region_set, set_of, sidecar_file
from datamodules.regions import BadRegionsError, Regions, boxes_with_area
from datamodules.shard_reader import read_shard
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions
from tests.datamodules.tiny_sets import ABOUT, WIDTH, Rows, found_in, rows_of, true_in, write_set

SPEC = InputSpec(visual_input="regions", region_width=WIDTH, num_regions=8, text_length=10)
COUNTS = {"train": 24, "val": 5, "test": 7, "gallery": 6}
CATALOGUE = TinyCatalogue(COUNTS)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and regions of another width; the set is named where it is wanted."""
    folder = tmp_path_factory.mktemp("sets") / "shop"
    build(CATALOGUE, folder, shard_size=6, vocab_size=60, progress=False, regions=tiny_regions)
    return folder


@pytest.fixture(scope="module")
def sound(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with") / "shop"
    shutil.copytree(bare, folder)
    write_set(folder)
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def _data(folder: Path, spec: InputSpec = SPEC, **options: Any) -> Product1M:
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "region_set": "detected", **options}
    data = Product1M(str(folder), **settings)
    data.use_input_spec(spec)
    return data


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---- writing -------------------------------------------------------------------------------------------------------


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


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_named_set_takes_the_place_of_stored_regions(num_workers: int, sound: Path) -> None:
    data = _data(sound, num_workers=num_workers, steps_per_epoch=12)
    data.setup("fit")
    ids = {"gallery": list(data.ids("gallery")), "train": _train_ids(sound)}
    batches = [("train", batch) for batch in data.train_dataloader()]
    data.teardown("fit")
    batches += [("gallery", batch) for batch in data.evaluation_loader("gallery")]
    for split, batch in batches:
        assert batch.features_BRD is not None
        assert batch.boxes_BR5 is not None
        for row, number in enumerate(batch.index_B.tolist()):
            expected = found_in(ids[split][number])
            num = len(expected.boxes_R4)
            assert batch.region_mask_BR[row].tolist() == [True] * num + [False] * (8 - num)
            assert np.array_equal(batch.features_BRD[row, :num], expected.features_RD)
            assert np.allclose(batch.boxes_BR5[row, :num], boxes_with_area(expected))
    assert sum(len(batch.index_B) for split, batch in batches if split == "train") == 48


def _train_ids(folder: Path) -> list[str]:
    shards = read_manifest(folder)["splits"]["train"]["shards"]
    return [json.loads(one.members["json"])["id"] for shard in shards for one in read_shard(folder / shard["file"])]


def test_order_and_resumption_are_those_of_the_shards(sound: Path) -> None:
    order = {}
    for name, spec in ((None, SPEC._replace(region_width=8)), ("detected", SPEC)):
        data = _data(sound, spec, region_set=name, steps_per_epoch=5)
        order[name] = [batch.index_B.tolist() for _ in range(2) for batch in data.train_dataloader()]
        half = _data(sound, spec, region_set=name, steps_per_epoch=5)
        list(half.train_dataloader())
        rest = _data(sound, spec, region_set=name, steps_per_epoch=5)
        rest.load_state_dict(half.state_dict())
        assert [batch.index_B.tolist() for batch in rest.train_dataloader()] == order[name][5:]
    assert order[None] == order["detected"]


def test_true_boxes_reach_an_evaluation_and_never_a_training(sound: Path) -> None:
    path, sidecar = sound / "val-000000.tar", sound / "val-regions-detected-000000.tar"
    for truth in (False, True):
        for sample in read_shard(path, 10, sidecar, truth):
            item = json.loads(sample.members["json"])["id"]
            assert sample.row == 10 + int(item.removeprefix("val."))
            assert ("truth.npz" in sample.members) == truth
            assert sample.members["regions.npz"] == _packed(found_in(item))
            if truth:
                assert sample.members["truth.npz"] == _packed(true_in(item))
    seen: list[set[str]] = []
    data = _data(sound)
    maker = data._maker("train", None)
    for stream in (data._train_stream(maker, data._place, [0], 0), data.evaluation_loader("val")._stream):
        seen.append(set())
        add = stream.maker.add
        stream.maker.add = lambda sample, seed, add=add: (seen[-1].update(sample.members), add(sample, seed))  # type: ignore[method-assign, assignment, misc]
        next(iter(stream))
    assert seen == [{"jpg", "json", "regions.npz"}, {"jpg", "json", "regions.npz", "truth.npz"}]


def _packed(regions: Regions) -> bytes:
    from datamodules.regions import pack_regions

    return pack_regions(regions)


def test_a_model_of_pictures_opens_no_sidecar(copy: Path) -> None:
    expected = [batch.images_B3HW for batch in _data(copy, InputSpec(visual_input="grid")).evaluation_loader("val")]
    data = _data(copy, InputSpec(visual_input="grid"))
    data.setup()
    for path in copy.glob("*-regions-*"):
        path.write_bytes(b"")
    for batch, images in zip(data.evaluation_loader("val"), expected, strict=True):
        assert (batch.images_B3HW == images).all()


# ---- what does not fit ---------------------------------------------------------------------------------------------


def test_an_unknown_set_names_the_known_ones_and_the_command(sound: Path, bare: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{sound} has no region set 'mine'; it has 'detected'\. .* --data {sound} --name mine`"
    ):
        _data(sound, region_set="mine").setup()
    with pytest.raises(
        DataError,
        match=r"no region set 'detected'; it has none\. Write it with `python -m experiments predict --exp detector",
    ):
        _data(bare).setup()


def test_a_model_of_another_size_is_refused_at_the_start(sound: Path) -> None:
    with pytest.raises(DataError, match=r"region set 'detected' of .* are 6 wide, the model takes region_width=2048"):
        _data(sound, SPEC._replace(region_width=2048)).setup()
    with pytest.raises(DataError, match=r"regions-detected-\d{6}\.tar, sample '.*: 6 regions a picture at most"):
        _data(sound, SPEC._replace(num_regions=5)).setup()
    with pytest.raises(DataError, match=r"region set 'detected' of .*no class scores"):
        _data(sound, SPEC._replace(region_classes=4)).setup()


def test_without_stored_regions_the_message_names_the_sets(tmp_path: Path) -> None:
    build(CATALOGUE, tmp_path, shard_size=6, vocab_size=60, progress=False)
    write_set(tmp_path)
    with pytest.raises(DataError, match=r"holds none\. Name a region set \(data\.region_set: detected\), train on"):
        _data(tmp_path, region_set=None).setup()
    _data(tmp_path).setup()


def _relist(folder: Path, change: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest["region_sets"]["detected"])
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _of_other_shards(folder: Path) -> None:
    _relist(folder, lambda entry: entry["splits"]["train"]["shards"][1].update(of="0" * 64))


def _missing(folder: Path) -> None:
    (folder / "train-regions-detected-000001.tar").unlink()


def _cut(folder: Path) -> None:
    path = folder / "train-regions-detected-000001.tar"
    path.write_bytes(path.read_bytes()[:700])


def _misnamed(folder: Path) -> None:
    _relist(folder, lambda entry: entry["splits"]["train"]["shards"][1].update(file="train-regions-other-000001.tar"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_of_other_shards, "was written for other train shards than there are now"),
        (_missing, r"train-regions-detected-000001\.tar of region set 'detected' is missing"),
        (_cut, r"000001\.tar of region set 'detected' has 700 bytes"),
        (_misnamed, r"lists train-regions-other-000001\.tar"),
    ],
)
def test_a_set_that_does_not_fit_is_refused_and_verify_tells(damage: Any, message: str, copy: Path) -> None:
    damage(copy)
    with pytest.raises(DataError, match=message + ".*predict --exp detector"):
        _data(copy).setup("fit")
    _data(copy).setup("test")  # its own splits are sound
    assert verify(copy)


@pytest.mark.parametrize("manner", ["fewer", "more", "swapped"])
def test_a_sidecar_of_other_samples_is_found_while_reading(manner: str, copy: Path) -> None:
    path = copy / "val-regions-detected-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    members = {"fewer": members[:-2], "more": [*members, ("000000009.regions.npz", b"")], "swapped": members[::-1]}[
        manner
    ]
    _rewrite(copy, path, members)
    with pytest.raises(DataError, match=r"val-regions-detected-000000\.tar has .* where .*val-000000\.tar has"):
        list(read_shard(copy / "val-000000.tar", sidecar=path))
    with pytest.raises(DataError, match=r"belongs to other shards.*--fresh"):
        list(_data(copy).evaluation_loader("val"))
    assert any("belongs to other shards" in problem for problem in verify(copy))


def _rewrite(folder: Path, path: Path, members: list[tuple[str, bytes]]) -> None:
    """Other members, to which the manifest agrees."""
    from datamodules.shard_writer import add_member

    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            add_member(tar, name, data)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for part in manifest["region_sets"]["detected"]["splits"].values():
        for shard in part["shards"]:
            if shard["file"] == path.name:
                shard |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("content", [b"PK\x03\x04", None])
def test_a_damaged_sample_is_skipped_in_training_and_fatal_in_evaluation(content: bytes | None, copy: Path) -> None:
    for split in ("train", "val"):
        path = copy / f"{split}-regions-detected-000000.tar"
        with tarfile.open(path) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        changed = [(name, content if name == "000000002.regions.npz" else data) for name, data in members]
        if content is None and split == "train":
            changed = [
                (name.replace("regions", "truth") if data is None else name, data or b"") for name, data in changed
            ]
        _rewrite(copy, path, [(name, data) for name, data in changed if data is not None])
    data = _data(copy, batch_size=23, steps_per_epoch=2)
    data.setup("fit")
    rows = {row for batch in data.train_dataloader() for row in batch.index_B.tolist()}
    assert rows == set(range(24)) - {2}
    reason = "malformed_regions" if content else "missing_regions"
    assert data.skipped[reason] >= 1
    with pytest.raises(DataError) as caught:
        list(_data(copy).evaluation_loader("val"))
    told = str(caught.value)
    assert f"{copy / 'val-regions-detected-000000.tar'}, sample 'val.2'" in told
    assert "write the region set 'detected' again with `predict … --fresh`" in told
    problems = "\n".join(verify(copy))
    assert re.search(
        r"val-regions-detected-000000\.tar, sample 'val\.2': (\.regions\.npz: malformed|no \.regions)", problems
    )


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
