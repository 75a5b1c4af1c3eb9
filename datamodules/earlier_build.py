"""What an earlier build has left in a shard folder: up to date, set aside while it is built again, put back, kept.

A finished folder is worth hours, and what was made beside its shards (region sets, entities) perhaps days. So a build
that comes to nothing leaves it as it was, and one that ends with the very same shards keeps what stands beside them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodules.catalogues.record import SPLITS, Split
from datamodules.entities import ENTITIES
from datamodules.errors import DataError
from datamodules.manifest import (
    MANIFEST_FILE,
    Manifest,
    check_shard_files,
    data_hash,
    iterate_shards,
    read_manifest,
)
from datamodules.region_sets import remove_region_set, sets_on_disk
from datamodules.shard_writer import RECEIPTS

log = logging.getLogger(__name__)

MOST_LOST = 0.1  # share of a split's samples that a build may lose without being asked for it


def up_to_date(
    folder: Path,
    source: str,
    settings: dict[str, Any],
    wanted: dict[str, Any],
    pictures: bool,
    num_present: Callable[[Split], int],
    again: bool,
) -> Manifest | None:
    """The manifest if nothing is left to do; why there is something is said.

    Args:
        source: name of the catalogue.
        settings: of the catalogue.
        wanted: settings of the writer.
        num_present: items of a split that could be built, as far as is known before.
        again: there is something to do in any case.

    Raises:
        DataError: the folder holds another source, or much more than could be built with the same settings now.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        old = read_manifest(folder)
    except DataError as error:
        log.warning("%s: building again: %s", folder, error)
        return None
    if old["source"] != source:
        raise DataError(
            f"{folder} holds shards of '{old['source']}', not '{source}'. Choose another OUT, or delete the folder."
        )
    before, after = (
        {**{f"catalogue.{key}": value for key, value in of_catalogue.items()}, **of_build, "pictures": with_pictures}
        for of_catalogue, of_build, with_pictures in (
            (old["settings"], old["build"], old["pictures"]),
            (settings, wanted, pictures),
        )
    )
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if changed and not again and all(key == "plan" or key.endswith("sha256") for key in changed):
        _check_nothing_is_lost(folder, old, num_present)
    if changed:
        named = [f"{key} {before.get(key)!r} -> {after.get(key)!r}" for key in changed if key != "plan"]
        changes = ", ".join(named) or "the raw source lists other items, or other pictures are there"
        log.warning("%s was built with other settings and is built again: %s", folder, changes)
    elif problem := _damage(folder, old):
        log.warning("Building again: %s", problem)
    elif not again:
        return old
    return None


def set_aside(folder: Path) -> None:
    """From here on the folder counts as unfinished; its manifest is kept until the build has ended."""
    if (folder / MANIFEST_FILE).is_file():
        shutil.rmtree(folder / RECEIPTS, ignore_errors=True)  # of the build that finished it
    (folder / RECEIPTS).mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST_FILE).is_file():
        os.replace(folder / MANIFEST_FILE, folder / RECEIPTS / MANIFEST_FILE)
        os.utime(folder / RECEIPTS / MANIFEST_FILE)  # what is younger was written by the build that begins now


def put_back(folder: Path) -> None:
    """Make a folder finished again that was set aside, if no build has touched its shards and lists since."""
    old, aside = _earlier(folder), folder / RECEIPTS / MANIFEST_FILE
    if old is None or (folder / MANIFEST_FILE).exists() or _damage(folder, old):
        return
    began_ns = aside.stat().st_mtime_ns
    shards = (folder / shard["file"] for _, _, shard in iterate_shards(old["splits"]))
    if any(path.stat().st_mtime_ns > began_ns for path in shards):
        return
    os.replace(aside, folder / MANIFEST_FILE)
    shutil.rmtree(folder / RECEIPTS)


def keep_beside(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the region sets and entities of before, if all shards are the same; else these are removed."""
    old = _earlier(folder)
    if old is not None and _shards(old) == _shards(manifest):
        return {**manifest, "entities": old["entities"], "region_sets": old["region_sets"]}
    for name in sets_on_disk(folder):
        log.warning("%s: region set '%s' was of the shards before and is removed.", folder, name)
        remove_region_set(folder, name)
    if (folder / ENTITIES).exists():
        log.warning("%s: the entities were of the captions before and are removed.", folder)
        shutil.rmtree(folder / ENTITIES)
    return manifest


def _check_nothing_is_lost(folder: Path, old: Manifest, num_present: Callable[[Split], int]) -> None:
    """A disk that is not there, or half a list, should not cost a finished folder."""
    for split in SPLITS:
        samples, present = old["splits"][split]["samples"], num_present(split)
        if present < (1 - MOST_LOST) * samples:
            raise DataError(
                f"{folder} holds {samples} {split} samples, and only {present} could be built now: are list and "
                "pictures where they were? Nothing was changed. If it is to be so, build with ARGS=--again, or into "
                "another OUT."
            )


def _earlier(folder: Path) -> Manifest | None:
    """The manifest that was set aside; None if there is none that can be read."""
    try:
        return read_manifest(folder / RECEIPTS)
    except DataError:
        return None


def _shards(manifest: Manifest) -> list[tuple[str, str]]:
    return [(shard["file"], shard["sha256"]) for _, _, shard in iterate_shards(manifest["splits"])]


def _damage(folder: Path, manifest: Manifest) -> str:
    """What sizes of tars, and bytes of lists and tokenizer, tell; tars are hashed by `data verify`."""
    try:
        check_shard_files(folder, SPLITS, manifest)
    except DataError as error:
        return str(error)
    if data_hash(folder, manifest["splits"]) != manifest["data_hash"]:
        return f"annotations or tokenizer of {folder} are not those of its {MANIFEST_FILE}."
    return ""
