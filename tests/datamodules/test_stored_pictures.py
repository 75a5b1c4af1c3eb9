"""Pictures sought out of a folder are those that reading it from front to back gives."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from datamodules.catalogues import open_catalogue
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.shard_folder import ShardFolder
from datamodules.stored_pictures import stored_pictures
from datamodules.write_shards import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "synthetic"
    sizes = {"num_train_singles": 4, "num_train_multis": 2, "num_gallery": 48, "num_val": 2, "num_test": 5}
    catalogue = open_catalogue("synthetic", None, num_labels=24, image_size_px=32, **sizes)
    build(catalogue, folder, shard_size=20, progress=False)
    return folder


def test_they_are_those_of_the_shards(folder: Path) -> None:
    manifest, shards = read_manifest(folder), ShardFolder(folder)
    assert len(manifest["splits"]["gallery"]["shards"]) == 3
    found = stored_pictures(folder, manifest, "gallery", [0, 19, 20, 47])
    assert found == {row: shards.picture("gallery", row) for row in (0, 19, 20, 47)}


def test_rows_without_picture_are_left_out(folder: Path, tmp_path: Path) -> None:
    manifest = read_manifest(folder)
    (shard,) = manifest["splits"]["test"]["shards"]
    with tarfile.open(folder / shard["file"]) as whole, tarfile.open(tmp_path / shard["file"], "w") as bare:
        for member in whole:
            if not member.name.endswith("1.jpg"):
                bare.addfile(member, whole.extractfile(member))
    found = stored_pictures(tmp_path, manifest, "test", [0, 1, 2])
    assert found == stored_pictures(folder, manifest, "test", [0, 2])
    assert set(found) == {0, 2}


def test_a_missing_shard_is_named_with_a_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gallery-000000.tar cannot be read .* data verify"):
        stored_pictures(tmp_path, read_manifest(folder), "gallery", [0])


def test_no_torch_is_imported(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datamodules.manifest import read_manifest; "
        "from datamodules.stored_pictures import stored_pictures; folder = Path(sys.argv[1]); "
        "stored_pictures(folder, read_manifest(folder), 'test', [0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False).returncode == 0
