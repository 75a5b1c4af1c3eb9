"""The embedded catalogue's shards, built where a training is about to read them: they need no raw data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from experiments.data_folder import DATA_HOME
from experiments.output import say

EMBEDDED = "synthetic"
FOLDER = DATA_HOME / EMBEDDED


def build_if_missing(words: Iterable[str], before: Callable[[], object] | None = None) -> None:
    """Build the embedded catalogue if one of the words after --data names it and it is not there yet.

    Not for several processes at once: they would all build it.

    Args:
        before: What may refuse the command first, as a typo should not wait for the shards.
    """
    if EMBEDDED not in words or (FOLDER / "manifest.json").is_file():
        return
    if before:
        before()
    from experiments.data_commands import build

    say(f"no shards at {FOLDER}: building the embedded catalogue there")
    build(EMBEDDED, None, FOLDER, {}, {})
