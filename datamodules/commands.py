"""Which `pipe:` commands the user has given: a folder that was copied from somebody may name one, too.

`data link` notes the hash of a command in the user's own state folder; a command that `remote.json` names is run only
if it is noted there.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_HOME = "instance-product-retrieval"
_FILE = "commands"


def allow(command: str) -> None:
    """Note a command that the user has typed."""
    if not is_allowed(command):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with _file().open("a", encoding="ascii") as file:
            file.write(f"{_hash(command)}\n")


def is_allowed(command: str) -> bool:
    """Whether this user has linked a folder by this command."""
    try:
        return _hash(command) in _file().read_text(encoding="ascii").split("\n")
    except OSError:
        return False


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / _HOME / _FILE


def _hash(command: str) -> str:
    return hashlib.sha256(command.encode("utf-8", "surrogateescape")).hexdigest()
