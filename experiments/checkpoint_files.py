"""Checkpoints on disk: whole ones only, the last two of them, and which one a run goes on from. Imports no torch."""

from __future__ import annotations

import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.errors import UsageError
from experiments.output import say
from experiments.runs import RunFolder, atomic


class Resume(NamedTuple):
    """What a run goes on from."""

    checkpoint: Path
    step: int
    processes: int | None  # that wrote it; None in checkpoints of older versions


def whole_files(run: RunFolder) -> Any:
    """Lightning's plugin that writes the checkpoints of a run.

    A checkpoint takes the place of an earlier one when it is complete and on the disk. What `last.ckpt` was before is
    kept as `previous.ckpt`, unless it cannot be read.
    """
    import torch
    from lightning.fabric.plugins.io import TorchCheckpointIO

    class WholeFiles(TorchCheckpointIO):
        # Lightning's own makes the file in memory and then in the system's temporary folder, which may be full or too
        # small while there is room beside the run.
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            path = Path(path)
            with atomic(path) as temporary:
                try:
                    with temporary.open("wb") as file:
                        torch.save(checkpoint, file)
                except RuntimeError as problem:
                    raise _cause(problem) from None
                if path == run.last:
                    _keep_as_previous(run)

    return WholeFiles()


def resume_point(run: RunFolder) -> Resume | None:
    """The latest checkpoint that can be read; None if there is none at all. Every rank finds the same.

    Raises:
        UsageError: There are checkpoints, and none of them can be read.
    """
    problems: dict[Path, str] = {}
    for path in (run.last, run.previous):
        if not path.is_file():
            continue
        problem = damage(path)
        if problem is None:
            found = _read_head(path)
            for bad, reason in problems.items():
                say(f"warning: {bad} cannot be read ({reason}): going on from {path}, step {found.step}, instead")
            return found
        problems[path] = problem
    if problems:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in problems.items())
        raise UsageError(
            f"no checkpoint of {run.root} can be read ({reasons}): put a copy of one in its place, or train again from "
            "the beginning with --fresh"
        )
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint is not the one that was written, in a few words; None if it is.

    Every byte is compared with the checksums that torch writes into the file and does not look at when it reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if bad is None else f"the checksum of {bad} is wrong"


def check_readable(path: Path, remedy: str) -> None:
    """Raise `UsageError`, which ends in the remedy, if a checkpoint is damaged."""
    problem = damage(path)
    if problem is not None:
        raise UsageError(f"{path}: cannot be read ({problem}): {remedy}")


def remove_unfinished(run: RunFolder) -> None:
    """Delete what a killed process was writing."""
    for file in run.checkpoints.glob(".*.ckpt"):
        file.unlink(missing_ok=True)


def _read_head(path: Path) -> Resume:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    ranks = content.get("callbacks", {}).get("RandomState", {}).get("ranks")
    return Resume(path, int(content["global_step"]), None if ranks is None else len(ranks))


def _keep_as_previous(run: RunFolder) -> None:
    """By a second name for the same file, so that `last.ckpt` is never missing."""
    if not run.last.is_file() or damage(run.last) is not None:
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
