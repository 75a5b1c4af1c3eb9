"""Region sets are refused where they do not belong: another model, other shards, damaged files."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from datamodules import DataError
from datamodules.manifest import file_sha256
from datamodules.shard_reader import read_shard
from datamodules.shard_writer import add_member
from datamodules.verify import verify
from datamodules.write_shards import build
from tests.datamodules.region_sets.conftest import CATALOGUE, SPEC, data_of
from tests.datamodules.tiny_sets import write_set


def test_an_unknown_set_names_the_known_ones_and_the_command(sound: Path, bare: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{sound} has no region set 'mine'; it has 'detected'\. .* --data {sound} --name mine`"
    ):
        data_of(sound, region_set="mine").setup()
    with pytest.raises(
        DataError,
        match=r"no region set 'detected'; it has none\. Write it with `python -m experiments predict --exp detector",
    ):
        data_of(bare).setup()


def test_a_model_of_another_size_is_refused_at_the_start(sound: Path) -> None:
    with pytest.raises(DataError, match=r"region set 'detected' of .* are 6 wide, the model takes region_width=2048"):
        data_of(sound, SPEC._replace(region_width=2048)).setup()
    with pytest.raises(DataError, match=r"regions-detected-\d{6}\.tar, sample '.*: 6 regions a picture at most"):
        data_of(sound, SPEC._replace(num_regions=5)).setup()
    with pytest.raises(DataError, match=r"region set 'detected' of .*no class scores"):
        data_of(sound, SPEC._replace(region_classes=4)).setup()


def test_without_stored_regions_the_message_names_the_sets(tmp_path: Path) -> None:
    build(CATALOGUE, tmp_path, shard_size=6, vocab_size=60, progress=False)
    write_set(tmp_path)
    with pytest.raises(DataError, match=r"holds none\. Name a region set \(data\.region_set: detected\), train on"):
        data_of(tmp_path, region_set=None).setup()
    data_of(tmp_path).setup()


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
        data_of(copy).setup("fit")
    data_of(copy).setup("test")  # its own splits are sound
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
        list(data_of(copy).evaluation_loader("val"))
    assert any("belongs to other shards" in problem for problem in verify(copy))


def _rewrite(folder: Path, path: Path, members: list[tuple[str, bytes]]) -> None:
    """Other members, to which the manifest agrees."""
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
    data = data_of(copy, batch_size=23, steps_per_epoch=2)
    data.setup("fit")
    rows = {row for batch in data.train_dataloader() for row in batch.index_B.tolist()}
    assert rows == set(range(24)) - {2}
    reason = "malformed_regions" if content else "missing_regions"
    assert data.skipped[reason] >= 1
    with pytest.raises(DataError) as caught:
        list(data_of(copy).evaluation_loader("val"))
    told = str(caught.value)
    assert f"{copy / 'val-regions-detected-000000.tar'}, sample 'val.2'" in told
    assert "write the region set 'detected' again with `predict … --fresh`" in told
    problems = "\n".join(verify(copy))
    assert re.search(
        r"val-regions-detected-000000\.tar, sample 'val\.2': (\.regions\.npz: malformed|no \.regions)", problems
    )
