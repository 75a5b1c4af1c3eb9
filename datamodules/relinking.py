"""A linked folder that is linked again: what stays, and how the rest gives way, in place.

Tars that were fetched stay if they are still listed under the same hash. Region sets and entities that were made here,
hours of a detector perhaps, stay where they fit the shards that the address now lists; what does not is removed, and
named in a warning. Files are replaced one by one, the manifest last: killed on the way, the folder is linked once more.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from datamodules.catalogues.record import SPLITS
from datamodules.entities import ENTITIES
from datamodules.errors import DataError
from datamodules.manifest import (
    MANIFEST_FILE,
    REMOTE_FILE,
    TOKENIZER_FILE,
    Manifest,
    RegionSetEntry,
    iterate_shards,
    listed_by_address,
    read_manifest,
    write_atomically,
    write_manifest,
)
from datamodules.region_sets import RECEIPTS, all_tars, remove_receipts, set_of, sidecars

log = logging.getLogger(__name__)


def made_hashes(manifest: Manifest) -> tuple[str, ...]:
    """Of what can be made beside shards: region sets and entities."""
    entities = [manifest["entities"]["hash"]] if manifest["entities"] else []
    return tuple(sorted([*(entry["hash"] for entry in manifest["region_sets"].values()), *entities]))


def what_stays(folder: Path, new: Manifest) -> tuple[Manifest, set[str]]:
    """The manifest of a folder that is linked again, with what was made in it, and the names of the tars that stay.

    Args:
        folder: as it was linked before, if it was.
        new: the address's manifest.

    Raises:
        DataError: both hold a region set of one name, and not the same; nothing has changed then.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return new, set()
    try:
        old = read_manifest(folder)
    except DataError as error:
        log.warning("%s is linked anew; region sets that were made in it are no longer listed (%s)", folder, error)
        return new, {path.name for path in folder.glob("*.tar") if set_of(path.name) not in (None, *new["region_sets"])}
    listed = listed_by_address(folder)
    there = {*made_hashes(new), *(listed or ())}  # what the address has, or had
    own = {name: entry for name, entry in old["region_sets"].items() if entry["hash"] not in there}
    sets = {name: entry for name, entry in own.items() if _fits(entry, new) and _is_here(folder, entry)}
    for name in sets.keys() & new["region_sets"].keys():
        raise DataError(
            f"{folder} holds a region set '{name}', and the address lists another of that name. Choose another OUT, "
            f"or, if the one here is not wanted, delete {folder}/*-regions-{name}-*.tar."
        )
    for name in own.keys() - sets.keys():
        log.warning("%s: region set '%s' lacks tars, or is of other shards, and is removed.", folder, name)
    before = {entry["file"]: entry["sha256"] for entry in all_tars(old)}
    kept = {tar["file"] for tar in all_tars(new) if before.get(tar["file"]) == tar["sha256"]}
    kept |= {tar["file"] for entry in sets.values() for tar in sidecars(entry)}
    unfinished = {path.name for path in (folder / RECEIPTS).glob("*")} - new["region_sets"].keys()
    kept |= {path.name for path in folder.glob("*.tar") if set_of(path.name) in unfinished}
    stays: Manifest = {**new, "region_sets": {**new["region_sets"], **sets}}
    if listed is not None and old["entities"] and old["entities"]["hash"] not in there:
        if old["data_hash"] == new["data_hash"]:
            stays["entities"] = old["entities"]
        else:
            log.warning("%s: entities %s were of other captions and are removed.", folder, old["entities"]["hash"])
    if stays["entities"] != new["entities"] and new["entities"]:
        log.warning("%s keeps its own entities; the address has others.", folder)
    return stays, kept


def put_in_place(fresh: Path, folder: Path, manifest: Manifest, kept: set[str], remote: tuple[bytes, int]) -> None:
    """Make a folder the one that the manifest describes.

    Args:
        fresh: the address's small files, in a folder inside this one.
        kept: tars that stay; those of an earlier link that are not among them are deleted.
        remote: content and mode of `remote.json`.
    """
    addressed = read_manifest(fresh)["entities"]
    content, mode = remote
    write_atomically(fresh / REMOTE_FILE, content)
    (fresh / REMOTE_FILE).chmod(mode)
    (folder / "annotations").mkdir(exist_ok=True)
    # remote.json first: it says that this is a linked folder, should the rest not follow.
    for path in (fresh / REMOTE_FILE, *(fresh / "annotations").glob("*"), fresh / TOKENIZER_FILE):
        if path.is_file():
            os.replace(path, folder / path.relative_to(fresh))
    if manifest["entities"] == addressed:
        shutil.rmtree(folder / ENTITIES, ignore_errors=True)
        if addressed:
            os.replace(fresh / ENTITIES, folder / ENTITIES)
    for path in folder.glob("*.tar"):
        ours = set_of(path.name) is not None or path.name.rpartition("-")[0] in SPLITS
        if ours and path.name not in kept:
            path.unlink()  # before the manifest, or it could be taken for the one that is listed now
    for name in manifest["region_sets"]:
        remove_receipts(folder, name)
    write_manifest(folder, manifest)


def _is_here(folder: Path, entry: RegionSetEntry) -> bool:
    return all((folder / sidecar["file"]).is_file() for sidecar in sidecars(entry))


def _fits(entry: RegionSetEntry, manifest: Manifest) -> bool:
    """Whether a set was written for these very shards."""
    shards = [shard["sha256"] for _, _, shard in iterate_shards(manifest["splits"])]
    return [sidecar["of"] for sidecar in sidecars(entry)] == shards
