"""One tiny folder without and with a region set, shared by the tests of this package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from datamodules import InputSpec, Product1M
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue, tiny_regions
from tests.datamodules.tiny_sets import WIDTH, write_set

SPEC = InputSpec(visual_input="regions", region_width=WIDTH, num_regions=8, text_length=10)
COUNTS = {"train": 24, "val": 5, "test": 7, "gallery": 6}
CATALOGUE = TinyCatalogue(COUNTS)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and regions of another width; the set is named where it is wanted."""
    folder = tmp_path_factory.mktemp("sets") / "shop"
    build(CATALOGUE, folder, shard_size=6, vocab_size=60, progress=False, regions=tiny_regions)
    return folder


@pytest.fixture(scope="session")
def sound(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("with") / "shop"
    shutil.copytree(bare, folder)
    write_set(folder)
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def data_of(folder: Path, spec: InputSpec = SPEC, **options: Any) -> Product1M:
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "region_set": "detected", **options}
    data = Product1M(str(folder), **settings)
    data.use_input_spec(spec)
    return data
