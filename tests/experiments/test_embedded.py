"""The embedded catalogue is built where a training needs it, once, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import data_commands
from experiments.cli import main
from experiments.errors import UsageError
from tests.experiments.ablation_stub import ablate, started
from tests.experiments.conftest import SMALL


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: Path) -> list[Path]:
    """Folders that were built, in a working folder without any data; a smaller catalogue stands in."""
    folders: list[Path] = []

    def build(source: str, raw: Any, out: Path, *_: Any) -> None:
        assert (source, raw) == ("synthetic", None)
        folders.append(out)
        shutil.copytree(shards, out)

    monkeypatch.setattr(data_commands, "build", build)
    monkeypatch.chdir(tmp_path)
    return folders


def test_a_table_on_the_embedded_catalogue_runs_where_nothing_was_built(
    built: list[Path], home: Path, write: Callable[..., None]
) -> None:
    write(data="synthetic", seeds=[0])
    assert ablate(home) == 0
    assert built == [Path("data/synthetic")]
    assert [kind for _, kind, _ in started(home)].count("end") == 3
    assert ablate(home) == 0
    assert len(built) == 1


def test_a_plan_alone_builds_nothing_and_says_what_is_missing(
    built: list[Path], home: Path, write: Callable[..., None]
) -> None:
    write(data="synthetic")
    with pytest.raises(UsageError, match="no shards at data/synthetic: build them with `make data DATA=synthetic`"):
        ablate(home, "--dry")
    assert built == []


def test_a_table_on_other_data_builds_nothing(built: list[Path], home: Path, write: Callable[..., None]) -> None:
    write(seeds=[0])
    assert ablate(home) == 0
    assert built == []


def test_a_training_builds_it_too(built: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--exp", "capture", "--data", "synthetic", "--scale", "tiny", *SMALL, "--trainer.max_steps=2"]
    assert main([*words, "--data.steps_per_epoch=1"]) == 0
    assert built == [Path("data/synthetic")]
    assert "no shards at data/synthetic: building the embedded catalogue there" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--print_config"], ["--model.lr"]])
def test_a_training_that_will_not_start_builds_nothing(built: list[Path], words: list[str]) -> None:
    assert main(["fit", "--data", "synthetic", "--scale", "tiny", *words]) == 2
    assert built == []


def test_one_of_several_processes_builds_nothing(built: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--data", "synthetic", "--scale", "tiny"]) == 2
    assert built == []
