"""Checkpoints that were cut off, changed, or for which there was no room."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.checkpoint_files import WholeFiles, check_readable, resume_point
from experiments.cli import main
from experiments.config import compose
from experiments.errors import UsageError
from experiments.runs import RunFolder, run_folder
from tests.experiments.conftest import fit_words
from tests.experiments.interruption import check_same_weights, stopped_at


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(torch.full((64,), 0.3).numpy().tobytes())  # a weight: torch would read it as another number
    content[at] ^= 1
    path.write_bytes(content)


def other_content(path: Path) -> None:
    torch.save({"weights": 1}, path)


DAMAGE = [cut, empty, flip_a_bit, other_content]


def content(step: int) -> dict[str, Any]:
    callbacks, weights = {"RandomState": {"ranks": [{}, {}]}}, torch.full((64,), 0.3)
    return {"global_step": step, "callbacks": callbacks, "state_dict": {"weights": weights}, "weights": weights}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with two checkpoints, as a training leaves them."""
    run = RunFolder(tmp_path / "capture-synthetic-0-abcd")
    for step in (1, 2, 3):
        WholeFiles(run).save_checkpoint(content(step), str(run.last))
    return run


def test_the_last_two_are_kept_and_the_last_is_taken(folder: RunFolder) -> None:
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert torch.load(folder.previous, weights_only=True)["global_step"] == 2
    assert resume_point(folder) == (folder.last, 3, 2)


def test_the_one_before_is_kept_of_a_run_with_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning hands over absolute paths, and `runs/…` is relative."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path("runs") / "capture-synthetic-0-abcd")
    for step in (1, 2):
        WholeFiles(run).save_checkpoint(content(step), str(tmp_path / run.last))
    assert torch.load(run.previous, weights_only=True)["global_step"] == 1


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiments.output import to_terminal

    to_terminal()
    damage(folder.last)
    assert resume_point(folder) == (folder.previous, 2, 2)
    said = capsys.readouterr().out
    assert f"warning: {folder.last} cannot be read" in said
    assert f"going on from {folder.previous}, step 2" in said
    WholeFiles(folder).save_checkpoint(content(4), str(folder.last))
    if damage is not other_content:  # whole, though no checkpoint
        assert torch.load(folder.previous, weights_only=True)["global_step"] == 2  # not pushed out by what is damaged


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_none_can_be_read_both_are_named_with_the_remedy(
    damage: Callable[[Path], None], folder: RunFolder
) -> None:
    damage(folder.last)
    damage(folder.previous)
    with pytest.raises(UsageError, match=r"last\.ckpt: .*previous\.ckpt: .*--fresh"):
        resume_point(folder)


def test_a_damaged_best_checkpoint_is_named(folder: RunFolder) -> None:
    check_readable(folder.last, "train again")
    cut(folder.last)
    with pytest.raises(UsageError, match=r"last\.ckpt cannot be read \(.+\): train again"):
        check_readable(folder.last, "train again")


def test_a_file_system_without_hard_links_keeps_both_too(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    WholeFiles(folder).save_checkpoint(content(4), str(folder.last))
    assert resume_point(folder) == (folder.last, 4, 2)
    folder.last.unlink()  # the moment between two names
    assert resume_point(folder) == (folder.previous, 3, 2)


class FullDisk:
    """A file that takes so many bytes and no more."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 1000

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *problem: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", self.file.name)
        return int(self.file.write(data))

    def flush(self) -> None:
        self.file.flush()


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    """From now on there is no room for a checkpoint."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        file = opened(path, mode, *more, **options)
        return FullDisk(file) if mode == "wb" else file

    patch.setattr(Path, "open", full)


def test_a_disk_that_is_full_leaves_the_earlier_checkpoints(folder: RunFolder) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(OSError, match="No space left on device") as caught:
            WholeFiles(folder).save_checkpoint(content(4), str(folder.last))
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in folder.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert resume_point(folder) == (folder.last, 3, 2)


def test_a_training_on_a_full_disk_is_one_error_and_goes_on_when_there_is_room(
    run: Path, record: dict, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = WholeFiles.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:

        def until_full(self: WholeFiles, checkpoint: dict, path: Any, **more: Any) -> None:
            if checkpoint["global_step"] > 3:
                fill_disk(patch)
            save(self, checkpoint, path, **more)

        patch.setattr(WholeFiles, "save_checkpoint", until_full)
        assert main(fit_words(shards, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "No space left on device; what was written before is kept" in error
    folder = RunFolder(tmp_path / run.name)
    assert resume_point(folder) == (folder.last, 3, 1)
    assert main(fit_words(shards, tmp_path)) == 0
    assert json.loads(folder.metrics.read_text())["test"] == record["test"]


def test_a_run_that_was_moved_keeps_its_best_checkpoint(run: Path, shards: Path, tmp_path: Path) -> None:
    """Six steps made elsewhere, where the best was better than anything that follows."""
    words = fit_words(shards, tmp_path, "--trainer.max_steps=9")
    settings = [word for word in words if re.match(r"--\w+\.", word)]
    folder = run_folder(compose("capture", str(shards), "tiny", None, settings), tmp_path)
    shutil.copytree(run, folder.root, ignore=shutil.ignore_patterns("metrics.json", "wandb"))
    state = torch.load(folder.last, weights_only=True)
    ((key, kept),) = ((key, kept) for key, kept in state["callbacks"].items() if kept.get("best_k_models"))
    assert kept["dirpath"] == str(run / "checkpoints")
    kept.update(best_model_score=torch.tensor(2.0), kth_value=torch.tensor(2.0))
    kept["best_k_models"] = dict.fromkeys(kept["best_k_models"], torch.tensor(2.0))
    torch.save(state, folder.last)
    best = folder.best.read_bytes()
    assert main(words) == 0
    assert folder.best.read_bytes() == best
    now = torch.load(folder.last, weights_only=True)["callbacks"][key]
    assert float(now["best_model_score"]) == 2
    assert now["dirpath"] == str(folder.checkpoints)
    assert now["best_model_path"] == now["kth_best_model_path"] == str(folder.best)
    assert [*now["best_k_models"]] == [str(folder.best)]


def test_a_run_whose_last_checkpoint_is_damaged_ends_as_one_whose_is_not(
    run: Path, record: dict, shards: Path, tmp_path: Path
) -> None:
    words = fit_words(shards, tmp_path, "--data.steps_per_epoch=2")
    with stopped_at(5):
        main(words)
    (folder,) = tmp_path.iterdir()
    shutil.copytree(folder, tmp_path / "copy" / folder.name)
    cut(folder / "checkpoints" / "last.ckpt")
    for home in (tmp_path, tmp_path / "copy"):
        words[words.index("--runs") + 1] = str(home)
        assert main(words) == 0
    assert "previous.ckpt, step 2" in (folder / "log.txt").read_text()
    check_same_weights(folder, tmp_path / "copy" / folder.name)
