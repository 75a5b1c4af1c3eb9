"""What could not be downloaded, and why: a table on disk, so that a million failures take no memory."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FAILURES_FILE = "download.sqlite"
NO_URL = "no_url"

# What urllib, http.client and our own bounds say -> the word it is counted under. The first that fits.
_CAUSES = (
    (r"Redirection to url .* is not allowed|unknown url type", "url_redirect_refused"),
    (r"HTTP Error (404|410)", "url_not_found"),
    (r"HTTP Error (401|403|451)|X-Robots-Tag", "url_forbidden"),
    (r"HTTP Error 429", "url_rate_limited"),
    (r"HTTP Error 5\d\d", "url_server_error"),
    (r"HTTP Error 3\d\d", "url_redirect_loop"),
    (r"HTTP Error", "url_refused"),
    (r"timed out", "url_timeout"),
    (r"IncompleteRead|closed connection without response", "url_truncated"),
    (r"body larger than", "oversized_file"),
    (r"CERTIFICATE|SSL", "url_certificate"),
    (r"urlopen error|Connection|reset by peer|refused|unreachable", "url_unreachable"),
)


class Failure(NamedTuple):
    """A picture that did not arrive."""

    id: str
    column: int  # of the urls: 0 or 1, the last that was tried
    cause: str  # snake_case, as the manifest counts it
    detail: str


def cause_of(message: str) -> str:
    """The word an error message of the downloader is counted under."""
    return next((cause for pattern, cause in _CAUSES if re.search(pattern, message)), "url_failed")


class Failures:
    """The table of a raw folder.

    Args:
        raw: the folder with the lists.
        read_only: refuse to write; several processes may read.
    """

    def __init__(self, raw: Path, read_only: bool = False) -> None:
        mode = "ro" if read_only else "rwc"
        uri = (raw / FAILURES_FILE).resolve().as_uri()
        self._table = sqlite3.connect(f"{uri}?mode={mode}", uri=True, isolation_level=None)
        if not read_only:
            self._table.execute(
                "CREATE TABLE IF NOT EXISTS failures (id TEXT PRIMARY KEY, url_column INT, cause TEXT, detail TEXT)"
            )

    def record(self, failures: Iterable[Failure]) -> None:
        """Add or replace, all or none."""
        with self._table:
            self._table.execute("BEGIN")
            self._table.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?)", failures)

    def of(self, item_id: str) -> Failure | None:
        """The failure of an item, if it has one."""
        row = self._table.execute("SELECT * FROM failures WHERE id = ?", (item_id,)).fetchone()
        return None if row is None else Failure(*row)

    def counts(self) -> dict[str, int]:
        """Items of each cause, the most frequent first."""
        query = "SELECT cause, COUNT(*) FROM failures GROUP BY cause ORDER BY COUNT(*) DESC, cause"
        return dict(self._table.execute(query).fetchall())

    def __iter__(self) -> Iterator[Failure]:
        """All, by cause and id."""
        for row in self._table.execute("SELECT * FROM failures ORDER BY cause, id"):
            yield Failure(*row)

    def forget(self, ids: Iterable[str] | None = None) -> None:
        """Remove those of some items, or all."""
        if ids is None:
            self._table.execute("DELETE FROM failures")
            return
        with self._table:
            self._table.execute("BEGIN")
            self._table.executemany("DELETE FROM failures WHERE id = ?", ((one,) for one in ids))

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()


def why_missing(raw: Path, item_id: str) -> tuple[str, str]:
    """(reason, detail) of a picture that is not on disk, for the shard writer's count."""
    table = _opened(raw, (raw / FAILURES_FILE).is_file())
    failure = None if table is None else table.of(item_id)
    return ("missing_picture", "") if failure is None else (failure.cause, failure.detail)


@lru_cache(maxsize=4)
def _opened(raw: Path, exists: bool) -> Failures | None:
    return Failures(raw, read_only=True) if exists else None
