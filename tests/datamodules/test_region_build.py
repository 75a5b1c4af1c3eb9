"""`data build --regions`: from official lists and region features to batches of the published size."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules import InputSpec, Product1M
from datamodules.catalogues import open_catalogue
from datamodules.catalogues.record import ProductRecord
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.region_sources import open_region_store, write_region_file
from datamodules.regions import Regions
from datamodules.verify import verify
from datamodules.write_shards import build
from experiments.cli import main
from tests.datamodules.region_files import (
    SIZE_HW,
    datapoint,
    some_class_scores,
    some_regions,
    tsv_line,
    vilbert_datapoint,
    write_lmdb,
    write_tsv,
)
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions, tiny_scored_regions
from tests.datamodules.tiny_shops import official, write_product1m

NUM_REGIONS, WIDTH = 36, 2048
COUNTS = {"train": 9, "dev": 3, "test": 4, "gallery": 5}
IDS = [f"{split}{number}" for split, count in COUNTS.items() for number in range(count)]
WITHOUT = {"train4", "train7"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The four official lists, and no picture."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, count in COUNTS.items():
        labels = {"train": None, "dev": "a#;#b", "test": "a#;#b", "gallery": "a"}[split]
        lines = [official(f"{split}{number}", f"标题 {number}", "none.jpg", labels) for number in range(count)]
        (folder / f"product1m_{split}_ossurl_v2.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _folder(path: Path) -> Path:
    for item_id in sorted(set(IDS) - WITHOUT):
        regions = some_regions(item_id, NUM_REGIONS, WIDTH)
        write_region_file(path, item_id, regions.boxes_R4, regions.features_RD, SIZE_HW)
    return path


def _lmdb(path: Path) -> Path:
    chosen = sorted(set(IDS) - WITHOUT)
    regions = {item_id: some_regions(item_id, NUM_REGIONS, WIDTH) for item_id in chosen}
    return write_lmdb(
        path,
        (
            datapoint(item_id, features=of.features_RD, boxes=of.boxes_R4, num_boxes="36")
            for item_id, of in regions.items()
        ),
    )


def _tsv(path: Path) -> Path:
    chosen = sorted(set(IDS) - WITHOUT)
    return write_tsv(path, (tsv_line(one, regions=some_regions(one, NUM_REGIONS, WIDTH)) for one in chosen))


def _words(raw: Path, regions: Path, out: Path, *more: str) -> list[str]:
    where = ["--raw", str(raw), "--out", str(out), "--regions", str(regions)]
    return ["data", "build", "product1m", *where, "--no-pictures", "--vocab-size", "60", *more]


@pytest.mark.parametrize("write", [_folder, _lmdb, _tsv])
def test_lists_and_region_features_become_batches_of_the_published_size(
    write: Callable[[Path], Path], raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(_words(raw, write(tmp_path / "regions"), out, "--shard-size", "4", "--workers", "2")) == 0
    said = capsys.readouterr().out
    assert "train    7 samples in 3 shards, skipped: missing_regions 2" in said
    assert "regions  36 a picture at most, 2048 wide" in said
    assert verify(out) == []
    data = Product1M(str(out), batch_size=3, num_workers=0)
    data.use_input_spec(InputSpec(text_length=10))
    data.setup("fit")
    assert next(iter(data.train_dataloader())).features_BRD.shape == (3, NUM_REGIONS, WIDTH)
    (batch,) = data.evaluation_loader("gallery")
    assert batch.images_B3HW is None
    assert batch.region_mask_BR.all()
    for row, item_id in enumerate(data.ids("gallery")):
        expected = some_regions(item_id, NUM_REGIONS, WIDTH)
        assert np.array_equal(batch.features_BRD[row].numpy(), expected.features_RD.astype(np.float16))
        relative = expected.boxes_R4 / np.array([80, 60, 80, 60], np.float32)
        assert np.allclose(batch.boxes_BR5[row, :, :4].numpy(), relative, atol=1e-6)


def test_class_scores_of_an_lmdb_are_stored_and_their_number_is_in_the_manifest(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(_words(raw, write_lmdb(tmp_path / "regions", map(vilbert_datapoint, IDS)), out)) == 0
    assert "regions  3 a picture at most, 8 wide, scores of 5 classes" in capsys.readouterr().out
    assert read_manifest(out)["regions"] == {"width": 8, "max": 3, "classes": 5, "files": []}
    assert verify(out) == []
    data = Product1M(str(out), batch_size=3, num_workers=0)
    data.use_input_spec(InputSpec(text_length=10, region_width=8, num_regions=4, region_classes=5))
    data.setup("test")
    (batch,) = data.evaluation_loader("gallery")
    for row, item_id in enumerate(data.ids("gallery")):
        expected = some_class_scores(item_id).astype(np.float16)
        assert np.array_equal(batch.class_scores_BRC[row, :3].numpy(), expected)


COUNT = {"train": 8, "val": 2, "test": 2, "gallery": 2}


@pytest.mark.parametrize("shard_size", [2, 8])
def test_pictures_of_a_folder_have_scores_of_the_same_classes_or_none(shard_size: int, tmp_path: Path) -> None:
    def without_one(record: ProductRecord) -> Regions:
        found = tiny_scored_regions(record)
        return found._replace(class_scores_RC=None) if record.id == "train.5" else found

    def with_another(record: ProductRecord) -> Regions:
        found = tiny_scored_regions(record)
        assert found.class_scores_RC is not None
        return found._replace(class_scores_RC=found.class_scores_RC[:, :5]) if record.id == "val.1" else found

    for number, regions in ((0, without_one), (5, with_another)):
        with pytest.raises(DataError, match=rf"class scores of ({number}|6) classes, those before it of ({number}|6)"):
            build(
                TinyCatalogue(COUNT, size_px=8), tmp_path / str(number), shard_size=shard_size, vocab_size=60,
                progress=False, pictures=False, regions=regions,
            )  # fmt: skip


def test_a_build_of_before_class_scores_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules import write_shards

    options: dict = {"vocab_size": 60, "progress": False, "pictures": False, "regions": tiny_regions, "name": "shop"}
    whole = build(TinyCatalogue(COUNT, size_px=8), tmp_path / "whole", **options)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write_shards, "summarise", killed)
        with pytest.raises(KeyboardInterrupt):
            build(TinyCatalogue(COUNT, size_px=8), tmp_path / "killed", **options)
    receipts = sorted((tmp_path / "killed" / ".build").glob("*.json"))
    assert len(receipts) == 4
    for path in receipts:
        receipt = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(receipt | {"regions": receipt["regions"][:2]}), encoding="utf-8")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "killed").glob("*.tar"))]
    assert build(TinyCatalogue(COUNT, size_px=8), tmp_path / "killed", **options) == whole
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "killed").glob("*.tar"))] == times


def test_other_features_are_built_anew_and_the_same_are_left_alone(
    raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    regions, out = tmp_path / "regions", tmp_path / "out"
    words = _words(raw, write_lmdb(regions, map(datapoint, IDS)), out)
    assert main(words) == 0
    before = read_manifest(out)
    time = (out / "train-000000.tar").stat().st_mtime_ns
    assert before["build"]["regions"]["records"] == len(IDS)
    assert main(words) == 0
    assert (out / "train-000000.tar").stat().st_mtime_ns == time
    regions.unlink()
    write_lmdb(regions, (datapoint(item_id, features=np.ones((3, 8), np.float32)) for item_id in IDS))
    with caplog.at_level(logging.WARNING):
        assert main(words) == 0
    assert "built with other settings and is built again: regions {" in caplog.text
    assert read_manifest(out)["data_hash"] != before["data_hash"]


def test_a_build_that_was_killed_goes_on(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules.region_sources.official_tsv import OfficialTsv

    path = write_tsv(tmp_path / "regions", map(tsv_line, IDS))
    catalogue = open_catalogue("product1m", raw, pictures=False)
    asked: list[str] = []
    whole = OfficialTsv.__call__

    def dying(self, record):
        asked.append(record.id)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return whole(self, record)

    options: dict = {"shard_size": 3, "vocab_size": 60, "progress": False, "pictures": False, "name": "shop"}
    monkeypatch.setattr(OfficialTsv, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        build(catalogue, tmp_path / "killed", regions=open_region_store(path), **options)
    again = build(catalogue, tmp_path / "killed", regions=open_region_store(path), **options)
    assert len(asked) - 7 == len(IDS) - 6, "the two finished shards of three are kept"
    assert again == build(catalogue, tmp_path / "whole", regions=open_region_store(path), **options)


def test_regions_may_stand_beside_pictures(tmp_path: Path) -> None:
    raw = write_product1m(tmp_path / "raw")
    regions = write_tsv(tmp_path / "x.tsv", [tsv_line(f"{split}{i}") for split in COUNTS for i in range(2)])
    words = [word for word in _words(raw, regions, tmp_path / "out") if word != "--no-pictures"]
    assert main(words) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest["pictures"] is True
    assert manifest["regions"] == {"width": 8, "max": 3, "files": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--regions", "nowhere"], "nowhere: no such file or folder"),
        (["--regions", "raw/product1m_dev_ossurl_v2.txt"], "neither an LMDB nor a TSV"),
        (["--regions", "raw"], "holds no <item id>.npz"),
        (["--regions", "pickled"], "is pickled"),
        ([], "--no-pictures: give --regions PATH too"),
    ],
)
def test_a_wrong_path_is_one_line_and_code_2(
    change: list[str],
    message: str,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lmdb(tmp_path / "pickled", [1], lambda _: b"\x80\x04N.")
    words = ["data", "build", "product1m", "--raw", "raw", "--out", "out", "--no-pictures", *change]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_catalogue_without_pictures_cannot_give_any(raw: Path, tmp_path: Path) -> None:
    catalogue = open_catalogue("product1m", raw, pictures=False)
    assert catalogue.settings()["pictures"] is False
    assert "pictures" not in open_catalogue("product1m", raw).settings(), "folders built before stay up to date"
    with pytest.raises(DataError, match="was told to read no pictures"):
        build(catalogue, tmp_path / "out", progress=False)


def test_damaged_regions_are_counted_and_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def regions(record: ProductRecord) -> Regions | None:
        found = tiny_regions(record)
        if record.id.startswith("train.") and int(record.id[6:]) < 5:
            found.features_RD[0, 0] = np.nan
        return found

    counts = {"train": 12, "val": 2, "test": 2, "gallery": 2}
    manifest = build(
        TinyCatalogue(counts, size_px=8), tmp_path / "shop", regions=regions, vocab_size=60, progress=False
    )
    assert manifest["splits"]["train"]["skipped"] == {"non_finite_regions": 5}
    named = [message for message in caplog.messages if "Left out train item 'train." in message]
    assert len(named) == 3
    assert all("non_finite_regions" in message and "'features'" in message for message in named)
