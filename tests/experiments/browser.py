"""A headless Chromium that a test can look at a page with, spoken to over a pipe (Chrome's DevTools protocol)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# No sandbox: it wants rights that a container has not, and the pages are our own.
FLAGS = ["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
FLAGS += ["--disable-dev-shm-usage"]  # a container's /dev/shm is small
# The protocol's pipe is file 3 for what the browser reads and 4 for what it writes.
LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3), os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """A browser of the family on this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab. What the page asks for and complains of is kept in `requests` and `complaints`."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, commands = os.pipe()
        answers, from_browser = os.pipe()
        launch = [sys.executable, "-c", LAUNCH, str(to_browser), str(from_browser), program, *FLAGS]
        self.process = subprocess.Popen(
            [*launch, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.commands, self.answers = os.fdopen(commands, "wb", buffering=0), os.fdopen(answers, "rb")
        self.number, self.session, self.buffer = 0, "", b""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.commands.close()
        self.answers.close()
        self.process.kill()
        self.process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for its answer; events in between are noted."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a page from disk in a window of a size, and wait until all of it is there."""
        self.requests.clear()
        self.complaints.clear()
        self.loaded = False
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self._note(self._next())

    def value(self, expression: str) -> Any:
        """What a line of JavaScript gives on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, file: Path, whole: bool = False) -> Path:
        """The window, or the page from top to bottom, as a PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))
        return file

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(params))
        elif method == "Page.loadEventFired":
            self.loaded = True

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = self.answers.read1(1 << 16)
            assert more, "the browser has ended"
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(line))
