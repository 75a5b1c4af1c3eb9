"""Programs by the names of Slurm's: they note how they were called, and answer from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >> "{folder}/calls"
case "$(basename "$0")" in
  sbatch) cp "$1" "{folder}/submitted.sh"; n=$(grep -c ^sbatch "{folder}/calls"); echo "Submitted batch job 47$n";;
  squeue) cat "{folder}/queue";;
esac
if [ -f "{folder}/fails" ]; then cat "{folder}/fails" >&2; exit 1; fi
"""


class FakeSlurm:
    """What was asked of it, and what it says of the queue."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sbatch", "squeue", "scontrol", "srun", "scancel"):
            program = folder / name
            program.write_text(PROGRAM.format(folder=folder))
            program.chmod(0o755)
        self.queue("")
        patch.setenv("PATH", str(folder), prepend=":")

    def queue(self, text: str) -> None:
        """The answer of squeue."""
        (self.folder / "queue").write_text(text)

    def fails(self, text: str) -> None:
        """From now on every program ends with an error."""
        (self.folder / "fails").write_text(text)

    def calls(self, program: str) -> list[str]:
        """The calls of one program so far."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.startswith(program)]

    @property
    def script(self) -> str:
        """The batch script that was submitted last."""
        return (self.folder / "submitted.sh").read_text()
