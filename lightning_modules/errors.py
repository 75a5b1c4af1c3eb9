"""The one exception of this package that is meant for users, and the hint that goes with a misspelt name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ModelError(ValueError):
    """Bad model setting, weights or batch: the message names the key, file or sample, and the remedy."""


def is_unknown(key: str, name: str, known: Iterable[str]) -> ModelError:
    """The error about a name that a setting does not know: the nearest one, where one is near, and all of them."""
    choices = list(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ModelError(f"{key} {name!r} is unknown; {hint}known: {', '.join(choices)}")
