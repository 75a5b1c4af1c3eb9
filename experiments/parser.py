"""argparse as this command line speaks: one line per mistake, with the nearest option."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from datamodules.redaction import redacted
from experiments.errors import UsageError, nearest


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, with the nearest option."""

    def __init__(self, command: str, description: str, **kwargs: Any) -> None:
        super().__init__(prog=f"python -m experiments {command}", description=description, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.split(' ', 3)[-1]}: {message} (see --help)")

    def parse(self, words: list[str]) -> argparse.Namespace:
        """All words must be known."""
        found, rest = self.parse_known_args(words)
        if rest:
            options = [name for action in self._actions for name in action.option_strings]
            raise UsageError(f"unknown argument {rest[0]!r}: {nearest(rest[0].split('=')[0], options)}")
        return found


def command_line(command: str, words: Sequence[str]) -> str:
    """The command as it stands in records: what to type to do it again, without passwords and keys."""
    return redacted(shlex.join(["python", "-m", "experiments", command, *words]))
