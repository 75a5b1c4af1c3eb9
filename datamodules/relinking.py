"""What a linked folder holds besides what can be copied again, kept when it is linked again.

Tars that were fetched move along if they are still listed under the same hash. Region sets and entities that were made
here, hours of a detector perhaps, move along where they fit the shards that the address now lists; what does not is
named in a warning.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from datamodules.entities import ENTITIES
from datamodules.errors import DataError
from datamodules.manifest import (
    MANIFEST_FILE,
    Manifest,
    RegionSetEntry,
    ShardEntry,
    iterate_shards,
    read_manifest,
    write_manifest,
)
from datamodules.region_sets import RECEIPTS, all_tars, set_of, sidecars

log = logging.getLogger(__name__)


def made_hashes(manifest: Manifest) -> tuple[str, ...]:
    """Of what can be made beside shards: region sets and entities."""
    entities = [manifest["entities"]["hash"]] if manifest["entities"] else []
    return tuple(sorted([*(entry["hash"] for entry in manifest["region_sets"].values()), *entities]))


def carry_over(before: Path, folder: Path, listed: Iterable[str]) -> None:
    """Put what stays of a folder that is linked again into the fresh one that will take its place.

    Args:
        before: as it was linked; nothing happens if there is no such folder.
        folder: with manifest, lists and entities as the address has them now.
        listed: `made_hashes` of the address when it was linked before.

    Raises:
        DataError: both hold a region set of one name, and not the same; nothing has changed then.
    """
    if not (before / MANIFEST_FILE).is_file():
        return
    old, new = read_manifest(before), read_manifest(folder)
    there = {*made_hashes(new), *listed}  # what the address has, or had
    own = {name: entry for name, entry in old["region_sets"].items() if entry["hash"] not in there}
    kept = {name: entry for name, entry in own.items() if _fits(entry, new) and _is_here(before, entry)}
    for name in kept.keys() & new["region_sets"].keys():
        raise DataError(
            f"{before} holds a region set '{name}', and the address lists another of that name. Choose another OUT, "
            f"or, if the one here is not wanted, delete {before}/*-regions-{name}-*.tar."
        )
    for name in own.keys() - kept.keys():
        log.warning("%s: region set '%s' lacks tars, or is of other shards, and is removed.", before, name)
    for tar in (*_of_both(old, new), *(tar for entry in kept.values() for tar in sidecars(entry))):
        _keep(before / tar["file"], folder / tar["file"])
    new["region_sets"] |= kept
    _keep_unfinished(before, folder, new)
    if old["entities"] and old["entities"]["hash"] not in there:
        _keep_entities(before, folder, old, new)
    write_manifest(folder, new)


def _keep_entities(before: Path, folder: Path, old: Manifest, new: Manifest) -> None:
    hash_before = old["entities"]["hash"]  # type: ignore[index]
    if old["data_hash"] != new["data_hash"]:
        log.warning("%s: entities %s were of the captions before and are removed.", before, hash_before)
        return
    if new["entities"]:
        log.warning("%s keeps its own entities, %s; the address has others.", before, hash_before)
    shutil.rmtree(folder / ENTITIES, ignore_errors=True)
    shutil.copytree(before / ENTITIES, folder / ENTITIES)
    new["entities"] = old["entities"]


def _is_here(folder: Path, entry: RegionSetEntry) -> bool:
    return all((folder / sidecar["file"]).is_file() for sidecar in sidecars(entry))


def _fits(entry: RegionSetEntry, manifest: Manifest) -> bool:
    """Whether a set was written for these very shards."""
    shards = [shard["sha256"] for _, _, shard in iterate_shards(manifest["splits"])]
    return [sidecar["of"] for sidecar in sidecars(entry)] == shards


def _of_both(old: Manifest, new: Manifest) -> Iterator[ShardEntry]:
    """Tars that both list under one hash."""
    before = {entry["file"]: entry["sha256"] for entry in all_tars(old)}
    return (entry for entry in all_tars(new) if before.get(entry["file"]) == entry["sha256"])


def _keep_unfinished(before: Path, folder: Path, new: Manifest) -> None:
    """Sets that are being written: their writer looks at each tar, and at its receipt, before it goes on."""
    names = {path.name for path in (before / RECEIPTS).glob("*")} - new["region_sets"].keys()
    for name in names:
        (folder / RECEIPTS).mkdir(exist_ok=True)
        shutil.copytree(before / RECEIPTS / name, folder / RECEIPTS / name)
        for path in before.glob(f"*-regions-{name}-*.tar"):
            if set_of(path.name) == name:
                _keep(path, folder / path.name)


def _keep(path: Path, target: Path) -> None:
    """A second name for a file, so that a kill on the way loses none; moved where the file system has no links."""
    if path.is_file():
        try:
            os.link(path, target)
        except OSError:
            os.replace(path, target)
