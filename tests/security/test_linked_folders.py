"""A shard folder of a stranger, linked or copied: it names no command, no file outside, and ends no disk."""

from __future__ import annotations

import json
import shlex
import shutil
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules import remote
from datamodules.errors import DataError
from datamodules.manifest import read_manifest
from datamodules.remote import Remote, at_hand, link, remote_of
from datamodules.shard_reader import read_shard
from datamodules.write_shards import build
from tests.datamodules.tiny_catalogue import TinyCatalogue

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset opens http addresses with curl")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("there") / "shop"
    build(TinyCatalogue({"train": 2, "val": 1, "test": 1, "gallery": 1}), folder, vocab_size=60, progress=False)
    return folder


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_WAIT_S", 0)


class _Server(BaseHTTPRequestHandler):
    """Serves a folder; of `train` more than there is, or nothing at all."""

    def do_GET(self) -> None:
        server: Any = self.server
        name = self.path.partition("/")[2]
        self.send_response(200)
        self.end_headers()
        if not name.startswith("train") or not server.how:
            self.wfile.write((server.folder / name).read_bytes())
        elif server.how == "endless":
            while not server.over.is_set():
                self.wfile.write(bytes(1 << 16))
        else:
            self.wfile.flush()
            server.over.wait()

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def server(shop: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.folder, server.how, server.over, server.daemon_threads = shop, "", threading.Event(), True
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def _copied(shop: Path, folder: Path, address: str) -> Path:
    """A folder as somebody may hand it on: everything but the tars, and where they are."""
    shutil.copytree(shop, folder, ignore=shutil.ignore_patterns("*.tar"))
    (folder / "remote.json").write_text(json.dumps({"address": address, "keep": False}))
    return folder


def test_a_command_in_a_folder_that_was_copied_is_not_run(shop: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = f"pipe:touch {shlex.quote(str(mark))}; cat {shlex.quote(str(shop))}/{{}}"
    folder = _copied(shop, tmp_path / "copy", command)
    with pytest.raises(DataError, match=r"remote\.json names a command that you have not linked"):
        list(read_shard(folder / "train-000000.tar"))
    assert not mark.exists()
    link(command, tmp_path / "linked")  # now the user has typed it
    assert mark.exists()
    assert len(list(read_shard(folder / "train-000000.tar"))) == 2


@pytest.mark.parametrize(
    "address", ["http://h/'; touch x; '", "https://h/a b", "http://h/\n", "file:///etc", "ftp://h/"]
)
def test_an_address_of_a_copied_folder_is_one(address: str, shop: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"remote\.json is damaged"):
        remote_of(_copied(shop, tmp_path / "copy", address))
    with pytest.raises(DataError, match=r"should begin with|has no blanks, quotes"):
        link(address, tmp_path / "linked")


@pytest.mark.parametrize("name", ["../../escaped", "x$(touch ran).npy", "/etc/passwd", "a'b", ".."])
def test_the_files_of_entities_have_their_own_names(name: str, shop: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(shop, there)
    manifest: Any = read_manifest(shop)
    files = {name: {"bytes": 1, "sha256": "0" * 64}}
    manifest["entities"] = {"hash": "x", "source": {}, "tags": {}, "files": files, "counts": {}}
    (there / "manifest.json").write_text(json.dumps(manifest))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match="entities should be"):
        link(f'pipe:cat "{there}"/{{}}', tmp_path / "here")
    assert set(tmp_path.rglob("*")) == before


@needs_curl
def test_more_than_the_manifest_says_is_not_fetched(server: Any, tmp_path: Path) -> None:
    link(server.address, tmp_path / "here")
    server.how = "endless"
    with pytest.raises(DataError, match=r"train-000000\.tar cannot be read \(more than \d+ bytes"):
        list(read_shard(tmp_path / "here" / "train-000000.tar"))
    assert not list((tmp_path / "here").glob("*.tar*"))


@needs_curl
def test_a_server_that_falls_silent_is_left(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link(server.address, tmp_path / "here")
    server.how = "silent"
    monkeypatch.setattr(remote, "_SILENCE_S", 0.2)
    monkeypatch.setattr(remote, "_ATTEMPTS", 1)
    with pytest.raises(DataError, match=r"train-000000\.tar cannot be read"):
        list(read_shard(tmp_path / "here" / "train-000000.tar"))


@needs_curl
def test_passwords_of_an_address_are_in_no_message_and_nobody_elses_file(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = server.address.replace("://", "://user:open-sesame@")
    link(address, tmp_path / "here")
    assert stat.S_IMODE((tmp_path / "here" / "remote.json").stat().st_mode) == 0o600
    server.how = "endless"
    with pytest.raises(DataError, match=r"http://\*\*\*@") as error, at_hand(tmp_path / "here" / "train-000000.tar"):
        pass
    with pytest.raises(DataError) as gone:
        link(address.replace("127.0.0.1", "127.0.0.1:1/gone?sig=open-sesame"), tmp_path / "other")
    assert all("open-sesame" not in text for text in (str(error.value), str(gone.value), caplog.text))
    assert Remote("pipe:curl -u me:open-sesame h/{}", False).shown("train.tar") == "pipe:… train.tar"
