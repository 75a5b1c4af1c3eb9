"""Region features on disk: what each source gives for an item, and what it refuses without ever unpickling."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.region_sources import open_region_store, write_region_file
from datamodules.region_sources.folder import RegionFolder
from datamodules.region_sources.official_lmdb import OfficialLmdb
from datamodules.region_sources.official_tsv import OfficialTsv
from datamodules.regions import BadRegionsError, Regions
from tests.datamodules.region_files import (
    FIELDS,
    SIZE_HW,
    datapoint,
    packed,
    record,
    some_class_scores,
    some_regions,
    tsv_line,
    vilbert_datapoint,
    write_lmdb,
    write_tsv,
)

IDS = [f"item-{number}.x" for number in range(12)]


def _folder(path: Path) -> Path:
    for item_id in IDS:
        regions = some_regions(item_id)
        write_region_file(path, item_id, regions.boxes_R4, regions.features_RD, SIZE_HW)
    return path


SOURCES: dict[str, tuple[Callable[[Path], Path], type]] = {
    "folder": (_folder, RegionFolder),
    "lmdb": (lambda path: write_lmdb(path, map(datapoint, IDS)), OfficialLmdb),
    "lmdb folder": (lambda path: write_lmdb(path, map(datapoint, IDS), directory=True), OfficialLmdb),
    "lmdb of dicts": (
        lambda path: write_lmdb(path, (dict(zip(FIELDS, datapoint(one), strict=True)) for one in IDS)),
        OfficialLmdb,
    ),
    "tsv": (lambda path: write_tsv(path, map(tsv_line, IDS)), OfficialTsv),
    "tsv with header": (
        lambda path: write_tsv(
            path, ["image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\ttitle", *map(tsv_line, IDS)]
        ),
        OfficialTsv,
    ),
}


def _equal(found: Regions | None, expected: Regions) -> bool:
    return found is not None and all(
        np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize(("write", "kind"), SOURCES.values(), ids=SOURCES)
def test_a_source_gives_the_regions_of_an_item(write: Callable[[Path], Path], kind: type, tmp_path: Path) -> None:
    store = open_region_store(write(tmp_path / "regions"))
    assert isinstance(store, kind)
    assert store.prepare() == len(IDS)
    assert store(record("of another shop")) is None
    for again in (store, pickle.loads(pickle.dumps(store))):  # as a worker process gets it
        for item_id in reversed(IDS):
            expected = some_regions(item_id)
            if kind is RegionFolder:
                expected = expected._replace(features_RD=expected.features_RD.astype(np.float16))
            assert _equal(again(record(item_id)), expected), item_id


@pytest.mark.parametrize(("write", "kind"), SOURCES.values(), ids=SOURCES)
def test_settings_tell_one_set_of_features_from_another(
    write: Callable[[Path], Path], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir(), (tmp_path / "c").mkdir()
    settings = open_region_store(write(tmp_path / "a" / "regions")).settings()
    assert settings == open_region_store(write(tmp_path / "b" / "regions")).settings(), "no clock, no place"
    assert settings["name"] == "regions"
    monkeypatch.setitem(globals(), "IDS", IDS[1:])
    assert settings != open_region_store(write(tmp_path / "c" / "regions")).settings()


def test_an_lmdb_counts_its_records_without_tensorpacks_own(tmp_path: Path) -> None:
    settings = OfficialLmdb(write_lmdb(tmp_path / "x", map(datapoint, IDS))).settings()
    assert (settings["kind"], settings["records"]) == ("lmdb", len(IDS))


# ---- what is not there -------------------------------------------------------------------------------------------


def test_a_wrong_path_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_region_store(tmp_path / "nowhere")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff" * 50)
    with pytest.raises(DataError, match=r"picture\.jpg: neither an LMDB nor a TSV"):
        open_region_store(tmp_path / "picture.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no <item id>\.npz"):
        open_region_store(tmp_path / "empty").settings()
    with pytest.raises(DataError, match="no records"):
        OfficialLmdb(write_lmdb(tmp_path / "none", [])).prepare()


def test_a_torn_lmdb_is_named(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x", map(datapoint, IDS))
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(DataError, match=r"x: not readable as LMDB .*copy it again"):
        open_region_store(path).settings()


def test_a_broken_lmdb_wheel_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lmdb(tmp_path / "x", map(datapoint, IDS))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match=r"lmdb cannot be imported .*make setup"):
        open_region_store(path).settings()


# ---- pickles -----------------------------------------------------------------------------------------------------


class _Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickled_lmdb_is_refused_and_never_unpickled(protocol: int, tmp_path: Path) -> None:
    def dumps(value: Any) -> bytes:
        return pickle.dumps([_Trap(tmp_path / "sprung"), value], protocol)

    store = OfficialLmdb(write_lmdb(tmp_path / "x", map(datapoint, IDS), dumps))
    for read in (store.settings, store.prepare):
        with pytest.raises(DataError, match=r"record b'000000..' is .*TENSORPACK_SERIALIZE=msgpack.* or give the TSV"):
            read()
    assert not (tmp_path / "sprung").exists()


def test_a_single_pickled_record_is_found_by_the_index(tmp_path: Path) -> None:
    def dumps(value: Any) -> bytes:
        return pickle.dumps(_Trap(tmp_path / "sprung"), 5) if IDS[4] == value[5] else packed(value)

    with pytest.raises(DataError, match="record b'00000004' is pickled, and reading a pickle can run any program"):
        OfficialLmdb(write_lmdb(tmp_path / "x", map(datapoint, IDS), dumps)).prepare()
    assert not (tmp_path / "sprung").exists()


def test_an_array_of_objects_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    # msgpack_numpy encodes such an array as a pickle, and unpickles it again.
    trap = pickle.dumps(_Trap(tmp_path / "sprung"))
    objects = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": trap}
    store = OfficialLmdb(write_lmdb(tmp_path / "x", [datapoint("a", features=objects), datapoint("b")]))
    with pytest.raises(BadRegionsError, match=r"image 'a': record b'00000000' does not decode \(an array of '\|O'\)"):
        store(record("a"))
    assert store(record("b")) is not None
    np.savez(tmp_path / "c.npz", boxes=np.array([_Trap(tmp_path / "sprung")], dtype=object), features=1, size=1)
    with pytest.raises(BadRegionsError, match=r"c\.npz: not readable"):
        RegionFolder(tmp_path)(record("c"))
    assert not (tmp_path / "sprung").exists()


def test_other_values_than_the_releases_are_refused(tmp_path: Path) -> None:
    for number, (value, message) in enumerate(
        [(datapoint("a")[:6], "not a list or dict of features"), ("text", "not a list"), ({"image_id": "a"}, "boxes")]
    ):
        with pytest.raises(DataError, match=f"record b'00000000'.*{message}"):
            OfficialLmdb(write_lmdb(tmp_path / str(number), [value])).settings()
    with pytest.raises(DataError, match="image_id is neither text nor a number"):
        OfficialLmdb(write_lmdb(tmp_path / "id", [datapoint("a", image_id=None)])).settings()


# ---- one record --------------------------------------------------------------------------------------------------


def test_rows_after_num_boxes_are_padding(tmp_path: Path) -> None:
    values = [datapoint("a", num_boxes=2), datapoint("b", num_boxes="0"), datapoint("c", num_boxes=np.int64(3))]
    store = OfficialLmdb(write_lmdb(tmp_path / "lmdb", values))
    expected = some_regions("a")
    two = Regions(expected.boxes_R4[:2], expected.features_RD[:2], np.ones(2, np.float32), SIZE_HW)
    assert _equal(store(record("a")), two)
    assert store(record("b")) is None
    assert _equal(store(record("c")), some_regions("c"))
    lines = OfficialTsv(write_tsv(tmp_path / "tsv", [tsv_line("a", 2), tsv_line("b", 0)]))
    assert _equal(lines(record("a")), two)
    assert lines(record("b")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_boxes": 4}, "num_boxes is 4, but 3 boxes"),
        ({"num_boxes": "many"}, "num_boxes is 'many'"),
        ({"num_boxes": -1}, "num_boxes is -1"),
        ({"image_h": None}, "image_h is None"),
        ({"features": some_regions("a").features_RD[:2]}, r"features of shape \(2, 8\)"),
        ({"features": "text"}, "features is one value, no array"),
        ({"boxes": np.ones(10, np.float32)}, "10 numbers in boxes"),
        ({"boxes": {b"nd": True, b"type": "<f4", b"shape": [3, 4], b"data": b"1234"}}, "does not decode"),
    ],
)
def test_a_damaged_record_is_told_with_file_and_image(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    store = OfficialLmdb(write_lmdb(tmp_path / "x", [datapoint("a", **changes), datapoint("b")]))
    with pytest.raises(BadRegionsError, match=f"x, image 'a': .*{message}.*again") as caught:
        store(record("a"))
    assert caught.value.reason == "malformed_regions"
    assert store(record("b")) is not None


def test_a_damaged_line_is_told_with_file_and_image(tmp_path: Path) -> None:
    bad = tsv_line("a").split("\t")
    lines = {
        "base64": [*bad[:4], "?" + bad[4][1:], *bad[5:]],
        "length": [*bad[:4], "QUJD", *bad[5:]],
        "count": [*bad[:3], "4", *bad[4:]],
        "size": ["a", "wide", *bad[2:]],
    }
    for name, line in lines.items():
        store = OfficialTsv(write_tsv(tmp_path / name, ["\t".join(line), tsv_line("b")]))
        with pytest.raises(BadRegionsError, match=f"{name}, image 'a': .*again"):
            store(record("a"))
        assert store(record("b")) is not None


def test_repeated_ids_count_once_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = OfficialLmdb(write_lmdb(tmp_path / "x", [datapoint("a"), datapoint("b"), datapoint("a", num_boxes=1)]))
    with caplog.at_level(logging.WARNING):
        assert store.prepare() == 2
    assert "1 records repeat the image id" in caplog.text
    assert _equal(store(record("a")), some_regions("a"))


def test_titles_with_line_ends_and_lines_without_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [tsv_line("a", title='"two\nlines"'), "torn\t3", tsv_line("b", title='5" wide'), tsv_line("c") + "\r"]
    store = OfficialTsv(write_tsv(tmp_path / "x", lines))
    with caplog.at_level(logging.WARNING):
        assert store.prepare() == 3
    assert "2 lines without the columns are passed over, first line 2" in caplog.text
    for item_id in "abc":
        assert _equal(store(record(item_id)), some_regions(item_id))
    (tmp_path / "six").write_text(tsv_line("a").rpartition("\t")[0] + "\n")
    assert _equal(open_region_store(tmp_path / "six")(record("a")), some_regions("a"))


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    header = "image_id\timage_h\timage_w\tnum_boxes\tboxes\tfeatures"
    with pytest.raises(DataError, match="the columns are image_id, image_h, image_w"):
        OfficialTsv(write_tsv(tmp_path / "x", [header, tsv_line("a")])).prepare()


def test_a_file_that_changes_under_the_build_is_noticed(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x", map(datapoint, ["a", "b"]))
    store = OfficialLmdb(path)
    store.prepare()
    path.unlink()
    write_lmdb(path, map(datapoint, ["b", "a"]))
    with pytest.raises(DataError, match=r"image 'a': its record is of 'b' now.*Build again"):
        store(record("a"))


# ---- class scores -------------------------------------------------------------------------------------------------

HEADER = "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures"


def _scored(item_id: str) -> Regions:
    return some_regions(item_id)._replace(class_scores_RC=some_class_scores(item_id))


def _scored_folder(path: Path) -> Path:
    for item_id in IDS:
        boxes, features, scores, size, class_scores = _scored(item_id)
        write_region_file(path, item_id, boxes, features, size, scores, class_scores)
    return path


def _scored_tsv(columns: str, end: int | None) -> Callable[[Path], Path]:
    lines = (tsv_line(item_id, regions=_scored(item_id)) for item_id in IDS)
    return lambda path: write_tsv(path, [HEADER + columns, *("\t".join(line.split("\t")[:end]) for line in lines)])


SCORED = {
    "folder": _scored_folder,
    "lmdb": lambda path: write_lmdb(path, map(vilbert_datapoint, IDS)),
    "lmdb of dicts": lambda path: write_lmdb(
        path,
        (dict(zip(FIELDS, datapoint(one), strict=True)) | {"cls_prob": some_class_scores(one).ravel()} for one in IDS),
    ),
    "tsv": _scored_tsv("\tcls_prob", 7),
    "tsv with title": _scored_tsv("\tcls_prob\ttitle", None),
}


@pytest.mark.parametrize("write", SCORED.values(), ids=SCORED)
def test_a_source_gives_class_scores_where_its_records_have_them(write: Callable[[Path], Path], tmp_path: Path) -> None:
    store = open_region_store(write(tmp_path / "regions"))
    assert store.prepare() == len(IDS)
    for again in (store, pickle.loads(pickle.dumps(store))):
        for item_id in IDS:
            found, expected = again(record(item_id)), _scored(item_id)
            if isinstance(store, RegionFolder):
                assert expected.class_scores_RC is not None
                half = (expected.features_RD.astype(np.float16), expected.class_scores_RC.astype(np.float16))
                expected = expected._replace(features_RD=half[0], class_scores_RC=half[1])
            assert _equal(found, expected), item_id


def test_a_seventh_column_without_a_header_is_a_title(tmp_path: Path) -> None:
    lines = [tsv_line("a", regions=_scored("a"))]
    assert _equal(OfficialTsv(write_tsv(tmp_path / "x", lines))(record("a")), some_regions("a"))
    with pytest.raises(DataError, match="cls_prob before the title"):
        OfficialTsv(write_tsv(tmp_path / "y", [HEADER + "\ttitle\tcls_prob", *lines])).prepare()


def test_class_scores_of_padding_are_left_out_and_missing_ones_are_damage(tmp_path: Path) -> None:
    few = vilbert_datapoint("b")
    few[1] = few[1][:2]
    text = vilbert_datapoint("c")
    text[1] = "text"
    store = OfficialLmdb(write_lmdb(tmp_path / "x", [vilbert_datapoint("a", num_boxes=2), few, text]))
    found = store(record("a"))
    assert found is not None
    assert np.array_equal(found.class_scores_RC, some_class_scores("a")[:2])
    few_scores, no_scores = r"num_boxes is 3, but cls_prob of .*\(2, 5\)", "cls_prob is one value, no array"
    for item_id, message in (("b", few_scores), ("c", no_scores)):
        with pytest.raises(BadRegionsError, match=f"x, image '{item_id}': {message}"):
            store(record(item_id))
    short = tsv_line("a", regions=_scored("a")).rpartition("\t")[0].rpartition("\t")[0]
    lines = OfficialTsv(write_tsv(tmp_path / "y", [HEADER + "\tcls_prob", short]))
    with pytest.raises(BadRegionsError, match=r"image 'a': .*does not decode \('cls_prob'\)"):
        lines(record("a"))


# ---- writing a file ----------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    for item_id in ("b", "a"):
        regions = some_regions(item_id)
        path = write_region_file(
            tmp_path / "new", "a", regions.boxes_R4.tolist(), regions.features_RD, SIZE_HW, [0.5, 1, 0.25]
        )
    assert path == tmp_path / "new" / "a.npz"
    assert os.listdir(tmp_path / "new") == ["a.npz"]
    with np.load(path) as arrays:  # plain numpy, no pickle
        assert arrays["features"].dtype == np.float16
        assert arrays["scores"].tolist() == [0.5, 1, 0.25]
        assert arrays["size"].tolist() == list(SIZE_HW)
    found = RegionFolder(path.parent)(record("a"))
    assert found is not None
    assert np.array_equal(found.boxes_R4, some_regions("a").boxes_R4)


def test_a_file_nobody_could_read_is_not_written(tmp_path: Path) -> None:
    regions = some_regions("a")
    features = regions.features_RD.copy()
    features[1, 1] = 1e5
    with pytest.raises(DataError, match=r"a\.npz: 'features' of region 1 .*beyond ±65504"):
        write_region_file(tmp_path, "a", regions.boxes_R4, features, SIZE_HW)
    with pytest.raises(DataError, match=r"a\.npz: 'boxes' have shape \(\)"):
        write_region_file(tmp_path, "a", 3, regions.features_RD, SIZE_HW)
    with pytest.raises(DataError, match=r"a\.npz: 'size' is \[60, 80, 3\]"):
        write_region_file(tmp_path, "a", regions.boxes_R4, regions.features_RD, (*SIZE_HW, 3))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a\.npz: 'class_scores' of region 0 hold .*apply softmax to logits"):
        write_region_file(
            tmp_path, "a", regions.boxes_R4, regions.features_RD, SIZE_HW, class_scores=4 * some_class_scores("a") - 2
        )
    with pytest.raises(DataError, match=r"item id '\.\./a' is not allowed"):
        write_region_file(tmp_path, "../a", regions.boxes_R4, regions.features_RD, SIZE_HW)
    assert os.listdir(tmp_path) == []


def test_a_file_of_plain_numpy_will_do(tmp_path: Path) -> None:
    regions = some_regions("a")
    np.savez_compressed(tmp_path / "a.npz", boxes=regions.boxes_R4, features=regions.features_RD, size=SIZE_HW)
    assert _equal(open_region_store(tmp_path)(record("a")), regions)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(BadRegionsError, match=r"b\.npz: not readable"):
        open_region_store(tmp_path)(record("b"))
