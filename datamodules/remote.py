"""A shard folder whose tars lie elsewhere: on a web server, in object storage, behind a command.

`link` copies what is small (manifest, lists, tokenizer, entities) and leaves `remote.json` beside it; a tar is fetched
when it is read, compared with the manifest before any sample of it is used, and kept or removed afterwards. The address
is the user's own configuration: nothing that was fetched can name another one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

from datamodules import commands
from datamodules.catalogues.record import SPLITS
from datamodules.entities import entity_problems
from datamodules.errors import DataError
from datamodules.manifest import (
    MANIFEST_FILE,
    REMOTE_FILE,
    TOKENIZER_FILE,
    Manifest,
    ShardEntry,
    annotation_path,
    data_hash,
    how_to_build,
    read_manifest,
)
from datamodules.redaction import redacted
from datamodules.region_sets import all_tars, made_here
from datamodules.relinking import made_hashes, put_in_place, what_stays

log = logging.getLogger(__name__)

PLACE = "{}"  # in a `pipe:` address: where the file's name goes
_PIPE = "pipe:"
_SCHEMES = ("http://", "https://", "s3://", "gs://", "ais://", "hf://", _PIPE)
_ADDRESS = re.compile(r"[!#-&(-\[\]-_a-~]+")  # printable, without blanks, quotes and backslashes
_ATTEMPTS, _WAIT_S = 3, 1.0
_BLOCK = 1 << 20
_CURL = {  # curl's exit codes that tell a user something
    "6": "no such host",
    "7": "nobody answers there",
    "18": "broke off",
    "22": "refused, missing, or an error of the server",
    "28": "timed out",
    "35": "no secure connection",
    "60": "the server's certificate is not trusted",
}
_FRESH = ".link.{}.tmp"  # inside the folder: what is fetched by the process of that number
_SILENCE_S = 300.0  # the longest wait for the next block of a file
_MOST_SMALL_BYTES = 1 << 30  # of a list, tokenizer or manifest, whose size nothing else says


class Remote(NamedTuple):
    """Where a linked folder's tars are.

    Args:
        address: of the folder; a `pipe:` command has `{}` for the file.
        keep: keep fetched tars in the linked folder.
        listed: hashes of the region sets and entities that the address had when it was linked; others were made here.
    """

    address: str
    keep: bool
    listed: tuple[str, ...] = ()

    def url(self, file: str) -> str:
        """The address of a file of the folder."""
        if self.address.startswith(_PIPE):
            return self.address.replace(PLACE, shlex.quote(file))
        folder, mark, signature = self.address.partition("?")
        return f"{folder.rstrip('/')}/{file}{mark}{signature}"

    def as_file(self) -> tuple[bytes, int]:
        """Content and mode of `remote.json`; with a password or a command in it, it is its owner's alone."""
        private = self.address.startswith(_PIPE) or redacted(self.address) != self.address
        return json.dumps(self._asdict(), indent=1).encode() + b"\n", 0o600 if private else 0o644

    def shown(self, file: str) -> str:
        """The address of a file as messages may have it: without passwords, signatures and the user's command."""
        return f"{_PIPE}… {file}" if self.address.startswith(_PIPE) else redacted(self.url(file))


def link(address: str, folder: Path, keep: bool = False) -> Manifest:
    """Make a local shard folder of a remote one; again: look for changes, and keep what still belongs to it.

    Raises:
        DataError: an address that cannot be read, files that do not belong together, a folder with shards of its own.
    """
    _check_address(address)
    _check_place(folder)
    for killed in folder.glob(_FRESH.format("*")):
        shutil.rmtree(killed, ignore_errors=True)
    remote, there, fresh = Remote(address, keep), folder.exists(), folder / _FRESH.format(os.getpid())
    try:
        fresh.mkdir(parents=True)
        manifest = _copy_small_files(remote, fresh)
        if address.startswith(_PIPE):
            commands.allow(address)
        remote = remote._replace(listed=made_hashes(manifest))
        manifest, kept = what_stays(folder, manifest)
        put_in_place(fresh, folder, manifest, kept, remote.as_file())
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if not there and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return read_manifest(folder)


def _check_place(folder: Path) -> None:
    """Only a linked folder is linked again; what its `remote.json` says is no matter, as the address is given anew."""
    if (folder / REMOTE_FILE).exists():
        if not os.access(folder / REMOTE_FILE, os.R_OK):
            raise DataError(f"{folder} is another user's. Link a folder of your own.")
        return
    if (folder / MANIFEST_FILE).is_file():
        raise DataError(f"{folder} holds shards of its own. Choose another OUT, or delete the folder.")
    if folder.is_file() or (folder.exists() and any(not path.match(_FRESH.format("*")) for path in folder.iterdir())):
        raise DataError(f"{folder} is there, and is no linked folder. Choose another OUT.")


def _copy_small_files(remote: Remote, folder: Path) -> Manifest:
    """Manifest, lists, tokenizer and entities, which have to belong together."""
    where = remote.shown("").rstrip("/")
    _copy(remote, MANIFEST_FILE, folder)
    try:
        manifest = read_manifest(folder)
    except DataError as error:
        told = str(error).replace(how_to_build(folder), f"Does {where} lead to a folder that `make data` wrote?")
        raise DataError(told.replace(str(folder), where)) from None
    for file, most_bytes in _small_files(manifest):
        _copy(remote, file, folder, most_bytes)
    problems = list(entity_problems(folder, manifest))
    if data_hash(folder, manifest["splits"]) != manifest["data_hash"]:
        problems.append("data_hash does not follow from shards, annotations and tokenizer")
    if problems:
        raise DataError(f"{where}: {problems[0].replace(str(folder), where)}. Build or copy that folder again.")
    return manifest


def _parsed(text: str) -> Remote:
    value = json.loads(text)
    return Remote(str(value["address"]), bool(value["keep"]), tuple(map(str, value.get("listed", ()))))


def remote_of(folder: Path) -> Remote | None:
    """Where the tars of a linked folder are; None = the folder holds its own.

    Raises:
        DataError: `remote.json` is damaged or somebody else's, or names a command that this user has not given.
    """
    path = folder / REMOTE_FILE
    try:
        remote = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise DataError(f"{path} is another user's. Link a folder of your own: `data link ADDRESS --out …`.") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). {_how_to_link(folder)}") from None
    try:
        _check_address(remote.address)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error} {_how_to_link(folder)}") from None
    if remote.address.startswith(_PIPE) and not commands.is_allowed(remote.address):
        raise DataError(
            f"{path} names a command that you have not linked a folder by, so it is not run: {remote.address[:200]!r}. "
            f"If you want it to be, give it yourself: `python -m experiments data link COMMAND --out {folder}`."
        )
    return remote


def _check_address(address: str) -> None:
    if not address.startswith(_SCHEMES):
        raise DataError(
            f"{redacted(address)}: should begin with one of {', '.join(_SCHEMES)}; a local folder needs no link."
        )
    if address.startswith(_PIPE):
        if PLACE not in address:
            raise DataError(f"{address}: write {PLACE} where the file's name goes: `pipe:aws s3 cp s3://b/{PLACE} -`.")
    elif not _ADDRESS.fullmatch(address):
        raise DataError(
            f"{redacted(address)!r}: an address has no blanks, quotes or backslashes; write them as %20 and the like."
        )


@contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """A tar on disk: itself, or fetched and compared with the manifest.

    Raises:
        DataError: it cannot be had, or is another one than the manifest lists.
    """
    remote = None if _is_whole(path) else remote_of(path.parent)
    if remote is None:
        yield path
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _fetch(remote, path, temporary)
        if remote.keep:
            os.replace(temporary, path)
        yield path if remote.keep else temporary
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether a tar is here; one of the address that is not as long as it was is fetched again."""
    if not path.is_file():
        return False
    if not (path.parent / REMOTE_FILE).is_file() or made_here(path):
        return True
    return path.stat().st_size == _listed(path)["bytes"]


def _fetch(remote: Remote, path: Path, target: Path) -> None:
    entry = _listed(path)
    url = remote.shown(path.name)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            size, digest = _download(remote.url(path.name), target, entry["bytes"])
        except OSError as error:
            problem = f"cannot be read ({_short(error)})"
        else:
            if (size, digest) == (entry["bytes"], entry["sha256"]):
                return
            differs = "another sha256" if size == entry["bytes"] else f"{size} bytes, not {entry['bytes']}"
            problem = f"is not the one {MANIFEST_FILE} lists: {differs}"
        if attempt < _ATTEMPTS:
            log.warning("Shard %s %s; trying again.", url, problem)
            time.sleep(_WAIT_S * attempt)
    raise DataError(
        f"Shard {url} {problem}, {_ATTEMPTS} times. Is the server there, and the folder whole? If it was built again: "
        + _how_to_link(path.parent)
    )


def _listed(path: Path) -> ShardEntry:
    for entry in all_tars(read_manifest(path.parent)):
        if entry["file"] == path.name:
            return entry
    raise DataError(f"{path}: not in {MANIFEST_FILE}. {_how_to_link(path.parent)}")


def _download(url: str, target: Path, most_bytes: int) -> tuple[int, str]:
    """Bytes and sha256 of what came.

    Raises:
        OSError: it cannot be had, is larger, or nothing came for `_SILENCE_S`.
    """
    from datamodules.shard_reader import open_url

    size, digest = 0, hashlib.sha256()
    with open_url(url) as stream, target.open("wb") as file:
        while block := _next_block(stream):
            size += len(block)
            if size > most_bytes:
                raise OSError(f"more than {most_bytes} bytes")
            digest.update(block)
            file.write(block)
    return size, digest.hexdigest()


def _next_block(stream: Any) -> bytes:
    """The next bytes; a program that delivers none for too long is ended, which its exit code tells."""
    watch = Timer(_SILENCE_S, stream.proc.kill)
    watch.daemon = True
    watch.start()
    try:
        return stream.read(_BLOCK)
    finally:
        watch.cancel()


def _copy(remote: Remote, file: str, folder: Path, most_bytes: int = _MOST_SMALL_BYTES) -> None:
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download(remote.url(file), target, most_bytes)
    except OSError as error:
        raise DataError(
            f"{remote.shown(file)} cannot be read ({_short(error)}). Give the address of a folder that `make data` "
            "wrote."
        ) from None


def _small_files(manifest: Manifest) -> Iterator[tuple[str, int]]:
    """Files beside manifest and tars, and the most bytes of each."""
    for split in SPLITS[1:]:
        yield str(annotation_path("", split)), _MOST_SMALL_BYTES
    if manifest["tokenizer"] is not None:
        yield TOKENIZER_FILE, _MOST_SMALL_BYTES
    if manifest["entities"] is not None:
        yield from ((f"entities/{name}", file["bytes"]) for name, file in manifest["entities"]["files"].items())


def _short(error: OSError) -> str:
    """webdataset's error holds the whole command, with any password in it; the exit code says enough."""
    found = re.search(r"\bexit (-?\d+)", str(error))
    if not found:
        return redacted(str(error).replace("\n", " "))[-160:]
    known = _CURL.get(found[1]) if "curl" in str(error) else None
    return f"{known}, curl's {found[0]}" if known else found[0]


def _how_to_link(folder: Path) -> str:
    return f"Link it again with `python -m experiments data link ADDRESS --out {folder}`."
