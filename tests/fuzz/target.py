"""What is fuzzed: a reader, the valid files its input is made from, and the errors it may answer with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import damaged, other_values


class Ready(NamedTuple):
    """A reader with its files in a scratch folder."""

    files: list[bytes]  # valid ones
    read: Callable[[bytes], Any]  # of damaged bytes, in the place of a file
    named: str  # what every error has to name
    others: Sequence[bytes] = ()  # also damaged and read, though refused as they are


class Target(NamedTuple):
    """One kind of file."""

    name: str
    prepare: Callable[[Path], Ready]
    errors: tuple[type[Exception], ...]  # the package's own
    is_json: bool = False  # also values are replaced, not only bytes


def fuzz(target: Target, folder: Path, examples: int, repeatable: bool) -> None:
    """Read damaged files: each gives a result or one of the target's errors, which names the file.

    Args:
        repeatable: the same examples in every run.

    Raises:
        Whatever else a reader raises, with the example that hypothesis found for it.
    """
    ready = target.prepare(folder)
    for file in ready.files:
        ready.read(file)  # a reader that refuses sound files would pass
    strategies = [damaged([*ready.files, *ready.others]), *([other_values(ready.files)] if target.is_json else [])]

    @settings(
        max_examples=examples,
        derandomize=repeatable,
        database=None,
        phases=[Phase.generate] if repeatable else [Phase.generate, Phase.shrink],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.one_of(strategies))
    def answers(data: bytes) -> None:
        refused = None
        try:
            ready.read(data)
        except target.errors as error:
            refused = str(error)
        assert refused is None or ready.named in refused, f"{ready.named} is not named: {refused}"

    answers()
