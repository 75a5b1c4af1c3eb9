"""Fuzz one target at length: `python -m tests.fuzz.run TARGET EXAMPLES FOLDER`, other examples each time."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from tests.fuzz import data_targets, run_targets
from tests.fuzz.target import fuzz

TARGETS = [*data_targets.TARGETS, *run_targets.TARGETS]
THOROUGH = 3000  # examples
MOST_MEMORY_BYTES = 6 << 30  # address space: torch's libraries alone take some

if __name__ == "__main__":
    name, examples, folder = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    (target,) = (target for target in TARGETS if target.name == name)
    fuzz(target, Path(folder), int(examples), repeatable=False)
    print(f"{name}: {examples} examples")
