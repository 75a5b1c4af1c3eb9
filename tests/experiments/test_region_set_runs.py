"""A run that reads a region set: its width, its identity, and what becomes of it when the set changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from datamodules import DataError
from datamodules.region_sets import remove_region_set
from experiments.config import Composition, compose
from experiments.errors import UsageError
from experiments.evaluate import reopen
from experiments.record import recorded_run, write_config
from experiments.runs import RunFolder, config_hash
from tests.datamodules.tiny_sets import ABOUT, WIDTH, Rows, write_set

READING = ("--data.region_set=detected", "--model.visual_input=regions")


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(shards, tmp_path / "synthetic"))
    write_set(copy)
    return copy


def composed(folder: Path, *words: str) -> Composition:
    return compose("capture", str(folder), "tiny", 0, words)


def fewer(split: str, rows: Rows) -> Rows:
    return [(rows[0][0], truth) for _, truth in rows]


def test_the_model_takes_the_width_of_the_set(folder: Path) -> None:
    assert composed(folder, *READING).config["model"]["init_args"]["region_width"] == WIDTH
    told = composed(folder, *READING, "--model.region_width=7").config["model"]["init_args"]
    assert told["region_width"] == 7, "what was asked for is left to be refused by name"
    for other in (READING[:1], READING[1:]):
        assert "region_width" not in composed(folder, *other).config["model"]["init_args"]


def test_an_unknown_set_is_answered_at_once(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no region set 'other'; it has 'detected'\..*--name other"):
        composed(folder, "--data.region_set=other")
    with pytest.raises(DataError, match="letters, digits and _"):
        composed(folder, "--data.region_set=a-b")


def test_the_identity_of_a_run_has_the_set_it_reads_and_no_other(shards: Path, folder: Path) -> None:
    assert config_hash(composed(folder)) == config_hash(composed(shards)), "a set nobody names changes nothing"
    first = config_hash(composed(folder, *READING))
    assert first != config_hash(composed(folder))
    write_set(folder, "other", {**ABOUT, "threshold": 0.1})
    assert config_hash(composed(folder, *READING)) == first
    assert config_hash(composed(folder, "--data.region_set=other", READING[1])) != first
    remove_region_set(folder, "detected")
    write_set(folder)
    assert config_hash(composed(folder, *READING)) == first
    remove_region_set(folder, "detected")
    write_set(folder, change=fewer)
    assert config_hash(composed(folder, *READING)) != first


def test_a_run_whose_set_has_changed_is_not_evaluated_as_its_own(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    composition = composed(folder, *READING)
    write_config(run, composition, composition.config)
    assert recorded_run(run)["region_set_hash"] == composition.region_set_hash
    assert reopen(run, None, []).config == composition.config
    write_set(folder, "other", {**ABOUT, "threshold": 0.1}, fewer)
    other = reopen(run, None, ["--data.region_set=other"])
    assert other.region_set_hash != composition.region_set_hash

    remove_region_set(folder, "detected")
    with pytest.raises(DataError, match=r"no region set 'detected'; it has 'other'"):
        reopen(run, None, [])
    write_set(folder, change=fewer)
    with pytest.raises(UsageError, match=rf"region set 'detected' has changed since the run .* DATA={folder}"):
        reopen(run, None, [])
    assert reopen(run, str(folder), []).region_set_hash != composition.region_set_hash


def test_a_run_without_a_set_says_nothing_of_one(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    composition = composed(folder)
    write_config(run, composition, composition.config)
    assert "region_set_hash" not in recorded_run(run)
    write_set(folder, "other")
    assert reopen(run, None, []).region_set_hash is None
