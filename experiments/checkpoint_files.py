"""Checkpoints on disk: whole ones only, the last two of them, and which one a run goes on from."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from experiments.errors import UsageError
from experiments.output import say
from experiments.runs import RunFolder, atomic


class Resume(NamedTuple):
    """What a run goes on from."""

    checkpoint: Path
    step: int
    processes: int | None  # that wrote it; None in checkpoints of older versions


class WholeFiles(TorchCheckpointIO):
    """A checkpoint takes the place of an earlier one when it is complete and on the disk.

    What `last.ckpt` was before is kept as `previous.ckpt`, unless it cannot be read.

    Lightning's own is made in memory and then in the system's temporary folder, which may be full while there is room
    beside the run, and from where it is copied if the run is on another file system.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        with atomic(path) as temporary:
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as problem:
                raise _cause(problem) from None
            if os.path.realpath(path) == os.path.realpath(self.run.last):  # Lightning's are absolute, ours may not be
                _keep_as_previous(self.run)


class MovedRun(Callback):
    """A run that goes on under another path knows its best score.

    Lightning forgets it where the absolute path is not the one in the checkpoint, and the next interval, good or bad,
    would take the place of `best.ckpt`.
    """

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state:
                checkpoint["callbacks"][callback.state_key] = _moved(state, str(callback.dirpath))


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    """The state of a ModelCheckpoint whose files lie in `folder` now."""

    def here(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path else path

    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    moved = state | {"dirpath": folder} | {key: here(state[key]) for key in paths if key in state}
    return moved | {"best_k_models": {here(path): score for path, score in state.get("best_k_models", {}).items()}}


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def resume_point(run: RunFolder) -> Resume | None:
    """The latest checkpoint that can be read; None if there is none at all. Every rank finds the same.

    Raises:
        UsageError: There are checkpoints, and none of them can be read.
    """
    problems: dict[Path, str] = {}
    for path in (run.last, run.previous):
        if not path.is_file():
            continue
        try:
            found = _read(path)
        except _DamagedError as problem:
            problems[path] = str(problem)
            continue
        for bad, reason in problems.items():
            say(f"warning: {bad} cannot be read ({reason}): going on from {path}, step {found.step}, instead")
        return found
    if problems:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in problems.items())
        raise UsageError(
            f"no checkpoint of {run.root} can be read ({reasons}): put a copy of one in its place ({run.best} will do, "
            "if it is whole), or train again from the beginning with --fresh"
        )
    return None


def check_readable(path: Path, remedy: str) -> None:
    """Raise `UsageError`, which ends in the remedy, if a checkpoint is damaged or would have to be unpickled."""
    try:
        _check_bytes(path)
        if not isinstance(_content(path).get("state_dict"), dict):
            raise _DamagedError("it has no state_dict")
    except _DamagedError as problem:
        raise UsageError(f"{path} cannot be read ({problem}): {remedy}") from None


def remove_unfinished(run: RunFolder) -> None:
    """Delete what a killed process was writing."""
    for file in run.checkpoints.glob(".*.ckpt"):
        file.unlink(missing_ok=True)


class _DamagedError(Exception):
    """Why a checkpoint is not the one that was written, in a few words."""


def _check_bytes(path: Path) -> None:
    """Compare every byte with the checksums that torch writes into the file and does not look at when it reads."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # damaged bytes make zipfile and zlib raise whatever they like
        raise _DamagedError(str(error) or type(error).__name__) from None
    if bad is not None:
        raise _DamagedError(f"the checksum of {bad} is wrong")


def _content(path: Path) -> dict[str, Any]:
    """What a checkpoint holds: tensors and plain values. To unpickle anything else could run any program."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:  # torch's message recommends to trust the file
        raise _DamagedError("it holds more than tensors and plain values, and is not unpickled") from None
    except Exception as error:  # of damaged bytes torch makes many kinds
        raise _DamagedError(f"no checkpoint: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    if not isinstance(content, dict):
        raise _DamagedError(f"no checkpoint: it holds a {type(content).__name__}")
    return content


def _read(path: Path) -> Resume:
    _check_bytes(path)
    content = _content(path)
    try:
        ranks = content["callbacks"].get("RandomState", {}).get("ranks")
        return Resume(path, int(content["global_step"]), None if ranks is None else len(ranks))
    except Exception as error:
        raise _DamagedError(f"no checkpoint of a training: {(str(error).splitlines() or [''])[0]}") from None


def _keep_as_previous(run: RunFolder) -> None:
    """By a second name for the same file, so that `last.ckpt` is never missing."""
    try:
        _check_bytes(run.last)
    except _DamagedError:  # missing, or not worth the place of one that can be read
        return
    second = run.previous.with_name(f".{run.previous.name}")
    second.unlink(missing_ok=True)
    try:
        os.link(run.last, second)
    except OSError:  # a file system without hard links
        os.replace(run.last, run.previous)
        return
    os.replace(second, run.previous)


def _cause(problem: BaseException) -> BaseException:
    """The error of the disk behind one of torch's, which says only at which byte writing ended."""
    inner: BaseException | None = problem
    while inner is not None:
        if isinstance(inner, OSError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return problem
