"""The manifest: round trip, and a clear DataError for whatever else lies at its place."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import DataError
from datamodules.manifest import Manifest, check_shard_files, data_hash, read_manifest, write_manifest


def _manifest() -> Manifest:
    empty = {"samples": 0, "single": 0, "multi": 0, "unknown": 0, "skipped": {}, "unscorable": 0, "shards": []}
    shard = {"file": "train-000000.tar", "samples": 3, "bytes": 5, "sha256": "0" * 64}
    train = {**empty, "samples": 3, "single": 3, "shards": [shard]}
    return {  # type: ignore[return-value]
        "schema_version": 1,
        "name": "n",
        "source": "s",
        "settings": {},
        "build": {},
        "tokenizer": {"file": "tokenizer.json", "vocab_size": 9},
        "pictures": True,
        "splits": {"train": train, "val": empty, "test": empty, "gallery": empty},
        "labels": {"count": 0, "without_gallery": []},
        "regions": None,
        "near_duplicates": {},
        "entities": None,
        "region_sets": {},
        "data_hash": "0" * 16,
    }


def test_it_reads_what_it_wrote(tmp_path: Path) -> None:
    write_manifest(tmp_path, _manifest())
    assert read_manifest(tmp_path) == _manifest()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_missing_folder_tells_both_ways_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"make data DATA=nowhere.*make demo"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not finished building"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("\xff", "."),
        ("[]", "should be a JSON object"),
        ('{"schema_version": 7}', "schema version 7, this code reads 1"),
        ('{"schema_version": 1}', "name should be a str"),
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize("classes", [-1, "5", None, True])
def test_classes_of_the_regions_are_a_count_or_left_out(tmp_path: Path, classes: object) -> None:
    manifest = _manifest()
    for sound in ({"width": 8, "max": 3}, {"width": 8, "max": 3, "classes": 5}):
        write_manifest(tmp_path, manifest | {"regions": sound})  # type: ignore[arg-type]
        assert read_manifest(tmp_path)["regions"] == sound
    write_manifest(tmp_path, manifest | {"regions": {"width": 8, "max": 3, "classes": classes}})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="regions should be null or an object with width, max and perhaps classes"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["pipe:rm x.tar", "../x.tar", "/etc/x.tar", "x.zip", "a b.tar", ".tar", "http://x.tar"]
)
def test_a_shard_name_cannot_leave_the_folder_or_start_a_program(tmp_path: Path, name: str) -> None:
    manifest = _manifest()
    manifest["splits"]["train"]["shards"][0]["file"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"splits\.train\.shards\[0\]"):
        read_manifest(tmp_path)


def test_counts_have_to_add_up(tmp_path: Path) -> None:
    manifest = _manifest()
    manifest["splits"]["train"]["samples"] = 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="sum of its shards"):
        read_manifest(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(path=st.sampled_from(["name", "splits", "splits.train", "splits.val.shards", "tokenizer"]), value=_JSON)
def test_any_value_anywhere_is_read_or_refused(path: str, value: object) -> None:
    manifest: dict = dict(_manifest())
    inner, keys = manifest, path.split(".")
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "manifest.json").write_text(json.dumps(manifest))
        try:
            read = set(read_manifest(folder))
        except DataError:
            return
        assert read == set(_manifest())


def test_missing_and_changed_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-000000\.tar is missing"):
        check_shard_files(tmp_path, ["train"], _manifest())
    (tmp_path / "train-000000.tar").write_bytes(b"123456")
    with pytest.raises(DataError, match=r"has 6 bytes, manifest\.json says 5.*data verify"):
        check_shard_files(tmp_path, ["train"], _manifest())
    check_shard_files(tmp_path, ["val"], _manifest())


def test_the_data_hash_follows_shards_annotations_and_tokenizer(tmp_path: Path) -> None:
    splits = _manifest()["splits"]
    seen = {data_hash(tmp_path, splits)}
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.add(data_hash(tmp_path, splits))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.txt").write_text("x")
    seen.add(data_hash(tmp_path, splits))
    splits["train"]["shards"][0]["sha256"] = "1" * 64
    seen.add(data_hash(tmp_path, splits))
    assert len(seen) == 4
