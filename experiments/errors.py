"""The exceptions of this package that are meant for users, and the hint that goes with a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Wrong command, configuration or input: the message names the key or path and the remedy. Exit code 2."""


class RunError(RuntimeError):
    """A run that was asked for correctly cannot go on: the message says why and what then. Exit code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The ending of an error message about an unknown `name`: the closest known one, else the list of all."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(choices)}" if choices else "none is known"
