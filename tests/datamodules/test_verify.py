"""`verify` finds every kind of damage and names the file and the sample."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.manifest import file_sha256
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    catalogue = TinyCatalogue({"train": 12, "val": 3, "test": 3, "gallery": 6})
    build(catalogue, tmp_path, shard_size=6, vocab_size=60, progress=False)
    return tmp_path


def _rewrite(path: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Pass every member through `change`; None drops it."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            changed = change(name, data)
            if changed is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(changed)
                tar.addfile(entry, io.BytesIO(changed))


def _admit(folder: Path, file: str) -> None:
    """Make the manifest agree with a changed tar, so that only the content is wrong."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            if shard["file"] == file:
                shard["sha256"], shard["bytes"] = file_sha256(folder / file), (folder / file).stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_folder_has_no_problems(folder: Path) -> None:
    assert verify(folder) == []


def test_no_manifest_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make data"):
        verify(tmp_path)


def test_a_missing_a_foreign_and_a_truncated_shard(folder: Path) -> None:
    (folder / "train-000000.tar").unlink()
    (folder / "train-000009.tar").write_bytes(b"")
    whole = (folder / "gallery-000000.tar").read_bytes()
    (folder / "gallery-000000.tar").write_bytes(whole[: len(whole) // 2])
    problems = "\n".join(verify(folder))
    assert "train-000000.tar: missing" in problems
    assert "train-000009.tar: not in the manifest" in problems
    assert "gallery-000000.tar: size or sha256 differs" in problems
    assert "gallery-000000.tar cannot be read (unexpected end of data)" in problems
    assert "the manifest says 6" in problems


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda name, data: data[:300] if name == "000000001.jpg" else data, "sample 'val.1': undecodable_picture"),
        (lambda name, data: None if name == "000000001.jpg" else data, "sample 'val.1': no .jpg"),
        (lambda name, data: b"{" if name == "000000001.json" else data, "sample 1: the .json is malformed"),
        (lambda name, data: None if name == "000000001.json" else data, "sample 1: no .json"),
        (lambda name, data: data.replace(b"val.1", b"val.0"), "sample 'val.0': duplicate item id"),
        (lambda name, data: data.replace(b"number 1", b"number 9"), "sample 'val.1': id, caption or labels differ"),
        (lambda name, data: None if name.startswith("000000001") else data, "2 readable samples, the manifest says 3"),
    ],
    ids=["picture", "no picture", "json", "no json", "id", "caption", "count"],
)
def test_damage_inside_a_shard_is_named(folder: Path, change: Callable, expected: str) -> None:
    _rewrite(folder / "val-000000.tar", change)
    _admit(folder, "val-000000.tar")
    problems = verify(folder)
    assert any(expected in problem and "val-000000.tar" in problem for problem in problems), problems


def test_labels_and_hash_are_compared_too(folder: Path) -> None:
    path = folder / "annotations" / "test.txt"
    path.write_text(path.read_text(encoding="utf-8").replace("label 1", "label gone"), encoding="utf-8")
    problems = "\n".join(verify(folder))
    assert "sample 'test.1': id, caption or labels differ" in problems
    assert "1 test queries have a label without gallery item, the manifest says 0" in problems
    assert "data_hash does not follow" in problems
    path.unlink()
    assert any("test.txt is missing" in problem for problem in verify(folder))
