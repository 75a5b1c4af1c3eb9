"""Damaged files of every kind: a result or the package's own error, never another exception, a crash or a hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run import TARGETS, THOROUGH
from tests.fuzz.target import Target, fuzz

ROOT = Path(__file__).parents[2]
HARD_LIMIT_S = 540


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_read_or_refused(target: Target, tmp_path: Path) -> None:
    fuzz(target, tmp_path, examples=25, repeatable=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_thousands_of_damaged_files_neither_crash_nor_hang_nor_eat_the_memory(target: Target, tmp_path: Path) -> None:
    """In a process of its own: a crash or a hang of it is a failure of this test, not its end."""
    command = [sys.executable, "-m", "tests.fuzz.run", target.name, str(THOROUGH), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HARD_LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
