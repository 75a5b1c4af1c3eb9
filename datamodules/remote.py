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
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
    iterate_shards,
    read_manifest,
    write_atomically,
)

log = logging.getLogger(__name__)

PLACE = "{}"  # in a `pipe:` address: where the file's name goes
_SCHEMES = ("http://", "https://", "s3://", "gs://", "ais://", "hf://", "hdfs://", "pipe:")
_ATTEMPTS, _WAIT_S = 3, 1.0
_BLOCK = 1 << 20


class Remote(NamedTuple):
    """Where a linked folder's tars are.

    Args:
        address: of the folder; a `pipe:` command has `{}` for the file.
        keep: keep fetched tars in the linked folder.
    """

    address: str
    keep: bool

    def url(self, file: str) -> str:
        """The address of a file of the folder."""
        if self.address.startswith("pipe:"):
            return self.address.replace(PLACE, shlex.quote(file))
        return f"{self.address.rstrip('/')}/{file}"


def link(address: str, folder: Path, keep: bool = False) -> Manifest:
    """Make a local shard folder of a remote one; again: look for changes, and drop kept tars that are no longer its.

    Raises:
        DataError: an address that cannot be read, files that do not belong together, a folder with shards of its own.
    """
    if not address.startswith(_SCHEMES):
        raise DataError(f"{address}: should begin with one of {', '.join(_SCHEMES)}; a local folder needs no link.")
    if address.startswith("pipe:") and PLACE not in address:
        raise DataError(f"{address}: write {PLACE} where the file's name goes: `pipe:aws s3 cp s3://b/{PLACE} -`.")
    if (folder / MANIFEST_FILE).is_file() and remote_of(folder) is None:
        raise DataError(f"{folder} holds shards of its own. Choose another OUT, or delete the folder.")
    remote = Remote(address, keep)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        fresh.mkdir(parents=True)
        _copy(remote, MANIFEST_FILE, fresh)
        manifest = read_manifest(fresh)
        for file in _small_files(manifest):
            _copy(remote, file, fresh)
        problems = list(entity_problems(fresh, manifest))
        if data_hash(fresh, manifest["splits"]) != manifest["data_hash"]:
            problems.append("data_hash does not follow from shards, annotations and tokenizer")
        if problems:
            raise DataError(f"{address}: {problems[0].replace(str(fresh), address)}. Build or copy that folder again.")
        write_atomically(fresh / REMOTE_FILE, json.dumps(remote._asdict(), indent=1).encode() + b"\n")
        _keep_tars(folder, fresh, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return read_manifest(folder)


def remote_of(folder: Path) -> Remote | None:
    """Where the tars of a linked folder are; None = the folder holds its own.

    Raises:
        DataError: `remote.json` is damaged.
    """
    try:
        value = json.loads((folder / REMOTE_FILE).read_text(encoding="utf-8"))
        return Remote(str(value["address"]), bool(value["keep"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / REMOTE_FILE} is damaged ({error}). {_how_to_link(folder)}") from None


@contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """A tar on disk: itself, or fetched and compared with the manifest.

    Raises:
        DataError: it cannot be had, or is another one than the manifest lists.
    """
    remote = None if path.is_file() else remote_of(path.parent)
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


def _fetch(remote: Remote, path: Path, target: Path) -> None:
    entry = _listed(path)
    url = remote.url(path.name)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            size, digest = _download(url, target)
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
    manifest = read_manifest(path.parent)
    sidecars = (
        shard for one in manifest["region_sets"].values() for part in one["splits"].values() for shard in part["shards"]
    )
    shards = (shard for _, _, shard in iterate_shards(manifest["splits"]))
    for entry in (*shards, *sidecars):
        if entry["file"] == path.name:
            return entry
    raise DataError(f"{path}: not in {MANIFEST_FILE}. {_how_to_link(path.parent)}")


def _download(url: str, target: Path) -> tuple[int, str]:
    """Bytes and sha256 of what came."""
    from datamodules.shard_reader import open_url

    size, digest = 0, hashlib.sha256()
    with open_url(url) as stream, target.open("wb") as file:
        while block := stream.read(_BLOCK):
            size += len(block)
            digest.update(block)
            file.write(block)
    return size, digest.hexdigest()


def _copy(remote: Remote, file: str, folder: Path) -> None:
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _download(remote.url(file), target)
    except OSError as error:
        raise DataError(
            f"{remote.url(file)} cannot be read ({_short(error)}). Give the address of a folder that `make data` wrote."
        ) from None


def _small_files(manifest: Manifest) -> Iterator[str]:
    for split in SPLITS[1:]:
        yield str(annotation_path("", split))
    if manifest["tokenizer"] is not None:
        yield TOKENIZER_FILE
    if manifest["entities"] is not None:
        yield from (f"entities/{Path(file).name}" for file in manifest["entities"]["files"])


def _keep_tars(before: Path, folder: Path, manifest: Manifest) -> None:
    """Tars fetched earlier move along if they are still listed under the same hash."""
    if not (before / MANIFEST_FILE).is_file():
        return
    old = {shard["file"]: shard["sha256"] for _, _, shard in iterate_shards(read_manifest(before)["splits"])}
    for _, _, shard in iterate_shards(manifest["splits"]):
        if old.get(shard["file"]) == shard["sha256"] and (before / shard["file"]).is_file():
            os.replace(before / shard["file"], folder / shard["file"])


def _short(error: OSError) -> str:
    """webdataset's error holds the whole command; its end says which exit code it was."""
    return str(error).replace("\n", " ")[-160:]


def _how_to_link(folder: Path) -> str:
    return f"Link it again with `python -m experiments data link ADDRESS --out {folder}`."
