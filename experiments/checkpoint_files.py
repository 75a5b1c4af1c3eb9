"""Checkpoints on disk: whole ones only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO

from experiments.runs import RunFolder, atomic


class WholeFiles(TorchCheckpointIO):
    """A checkpoint takes the place of an earlier one when it is complete.

    Lightning writes into the system's temporary folder and moves the file; from another file system, as the shared one
    of a cluster is, that is a copy, and a process killed during it leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def remove_unfinished(run: RunFolder) -> None:
    """Delete what a killed process was writing."""
    for file in run.checkpoints.glob(".*.ckpt"):
        file.unlink(missing_ok=True)
