"""Runs img2dataset, in img2dataset's environment: `python -I driver.py settings.json`. Imports nothing of the project.

img2dataset itself reads bodies of any length, at any pace, and tries again at once. The opener below, which its urllib
calls go through, bounds bytes and seconds, and waits where a server asks to.

Settings: `arguments` of `img2dataset.download`, `max_bytes` and `max_seconds` of a body, `max_wait_seconds` when told
to retry later, `failures`: file to write `[row, error message]` lines to.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.request
from pathlib import Path

_BLOCK = 1 << 16
_LATER = (429, 503)  # statuses that may come with Retry-After

SETTINGS = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


class Bounds(urllib.request.BaseHandler):
    """Bounds every answer before anything reads it, those of redirects and errors too."""

    handler_order = 500  # before redirects and errors are acted upon, at 1000

    def http_response(self, request: urllib.request.Request, response: http.client.HTTPResponse):
        read, deadline = response.read, time.monotonic() + SETTINGS["max_seconds"]
        response.read = lambda amt=None: _read(response, read, deadline)  # type: ignore
        if response.status in _LATER:
            asked = response.headers.get("Retry-After", "")
            time.sleep(min(int(asked) if asked.isdigit() else 1, SETTINGS["max_wait_seconds"]))
        return response

    https_response = http_response


def _read(response: http.client.HTTPResponse, read, deadline: float) -> bytes:
    blocks, size = [], 0
    while block := read(_BLOCK):
        size += len(block)
        if size > SETTINGS["max_bytes"]:
            raise ValueError(f"body larger than {SETTINGS['max_bytes']} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError(f"body timed out after {SETTINGS['max_seconds']} s")
        blocks.append(block)
    if response.length:  # reading in blocks, http.client does not mind an early end
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(blocks)


def _install() -> None:
    """No `file:` and no `ftp:`, wherever a list or a redirect points."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        Bounds,
    ):
        opener.add_handler(handler())
    urllib.request.install_opener(opener)


def _write_failures() -> None:
    import pyarrow.parquet

    target = Path(SETTINGS["failures"])
    with target.open("w", encoding="utf-8") as file:
        for path in sorted(Path(SETTINGS["arguments"]["output_folder"]).glob("*.parquet")):
            table = pyarrow.parquet.read_table(path, columns=["key", "error_message"]).to_pydict()
            for key, message in zip(table["key"], table["error_message"], strict=True):
                if message is not None:
                    file.write(json.dumps([int(key), message]) + "\n")


_install()  # at import: img2dataset's processes are spawned and import this file again

if __name__ == "__main__":
    from img2dataset import download

    download(**SETTINGS["arguments"])
    _write_failures()
