"""A local shop that answers as shops do: pictures, pages, half bodies, redirects, refusals."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.datamodules.tiny_shops import photo

PAGE = b"<!DOCTYPE html><html><body>not found</body></html>"


class Shop(ThreadingHTTPServer):
    """Paths say what is answered; `asked` counts requests by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.released = threading.Event()  # lets the slow answers end

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Clients hang up, that is the point."""


class _Answers(BaseHTTPRequestHandler):
    server: Shop
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        shop = self.server
        with shop.lock:
            shop.asked[self.path] += 1
            times = shop.asked[self.path]
            shop.at_once += 1
            shop.most_at_once = max(shop.most_at_once, shop.at_once)
        try:
            _, what, name = self.path.split("/", 2)
            getattr(self, f"_{what}")(name, times)
        finally:
            with shop.lock:
                shop.at_once -= 1

    def _send(
        self, body: bytes, status: int = 200, length: int | None = None, kind: str = "image/jpeg", **more
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body) if length is None else length), **more}
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _good(self, name: str, times: int) -> None:
        self._send(photo(sum(name.encode())))

    def _lingering(self, name: str, times: int) -> None:
        time.sleep(0.05)
        self._good(name, times)

    def _mislabelled(self, name: str, times: int) -> None:
        self._send(photo(sum(name.encode())), kind="text/plain")

    def _page(self, name: str, times: int) -> None:
        self._send(PAGE, kind="text/html")

    def _noise(self, name: str, times: int) -> None:
        self._send(b"\xff\xd8\xff" + bytes(range(256)))

    def _empty(self, name: str, times: int) -> None:
        self._send(b"")

    def _gone(self, name: str, times: int) -> None:
        self._send(PAGE, status=404, kind="text/html")

    def _broken(self, name: str, times: int) -> None:
        self._send(b"", status=500)

    def _flaky(self, name: str, times: int) -> None:
        self._send(b"", status=500) if times == 1 else self._good(name, times)

    def _busy(self, name: str, times: int) -> None:
        self._send(b"", status=429, Retry_After="0")

    def _cut(self, name: str, times: int) -> None:
        body = photo(7, (300, 300))
        self.close_connection = True
        self._send(body[: len(body) // 2], length=len(body))

    def _big(self, name: str, times: int) -> None:
        self._send(photo(8) + bytes(3_000_000))

    def _endless(self, name: str, times: int) -> None:
        """A body without a length that drips, so that no single read times out."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.server.released.wait(0.1):
            self.wfile.write(bytes(70_000))

    def _silent(self, name: str, times: int) -> None:
        self.close_connection = True
        self.server.released.wait(60)

    def _moved(self, name: str, times: int) -> None:
        self._send(b"", status=302, Location=f"/good/{name}")

    def _circle(self, name: str, times: int) -> None:
        self._send(b"", status=302, Location=f"/circle/{name}")

    def _inside(self, name: str, times: int) -> None:
        self._send(b"", status=302, Location="file:///etc/hostname")

    def log_message(self, format: str, *arguments) -> None:
        """Quiet."""


@contextmanager
def open_shop() -> Iterator[Shop]:
    """The shop, as long as it is open."""
    shop = Shop()
    thread = threading.Thread(target=shop.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield shop
    finally:
        shop.released.set()
        shop.shutdown()
        shop.server_close()
