"""Secrets in texts that are shown or kept: credentials in addresses, and the keys that the environment holds."""

from __future__ import annotations

import os
import re

HIDDEN = "***"

_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.I)  # of an environment variable
_LEAST_LETTERS = 8  # of a value that is taken for a secret: a shorter one stands in many words by chance
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s'\"?]+\?)[^\s'\"]+", re.I)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed: a terminal obeys them


def redacted(text: str) -> str:
    """The text without user and password of addresses, without their queries (signatures), without known secrets."""
    for value in secrets():
        text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def secrets() -> list[str]:
    """What the environment says that nobody should read, the longest first."""
    found = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _LEAST_LETTERS}
    return sorted(found, key=lambda value: (-len(value), value))


def without_secrets() -> dict[str, str]:
    """The environment for a program that needs no account."""
    return {name: value for name, value in os.environ.items() if not _SECRET_NAME.search(name)}


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor or change its colours."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
