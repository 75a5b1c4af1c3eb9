"""Region sets: regions of one detector in sidecar tars beside finished shards, any number of sets to a folder.

    <split>-regions-<set>-<number>.tar    the keys of <split>-<number>.tar in its order, with
        .regions.npz    what the detector found, best first; the whole picture with score 0 where it found nothing
        .truth.npz      val and test, where the record has boxes: features of the true boxes. For evaluation only

The shards and `data_hash` do not change. The manifest lists a set once it is whole (`region_sets`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from datamodules.catalogues.record import SPLITS
from datamodules.errors import DataError
from datamodules.manifest import (
    MANIFEST_FILE,
    Manifest,
    RegionSetEntry,
    RegionSplitEntry,
    ShardEntry,
    SidecarEntry,
    is_elsewhere,
    iterate_shards,
    listed_by_address,
    read_manifest,
    write_manifest,
)

DEFAULT_SET = "detected"
WITH_TRUTH = ("val", "test")  # splits whose true boxes get features
RECEIPTS = ".region-sets"  # folder inside the shard folder: what is finished of a set that is not
_NAME = re.compile(r"[A-Za-z0-9_]+")
_SIDECAR = re.compile(r"(?P<split>[a-z]+)-regions-(?P<set>[A-Za-z0-9_]+)-(?P<number>\d{6})\.tar")


def check_name(name: str) -> str:
    """The name, if a set can be called that.

    Raises:
        DataError: it would not fit into a file name.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"Region set {name!r}: a name is made of letters, digits and _, like '{DEFAULT_SET}'.")
    return name


def sidecar_file(shard_file: str, name: str) -> str:
    """File of a set beside a shard: train-000003.tar -> train-regions-detected-000003.tar."""
    split, _, rest = shard_file.partition("-")
    return f"{split}-regions-{name}-{rest}"


def set_of(file: str) -> str | None:
    """The set a file belongs to; None = it is no sidecar."""
    found = _SIDECAR.fullmatch(file)
    return found["set"] if found else None


def sidecars(entry: RegionSetEntry) -> Iterator[SidecarEntry]:
    """All tars of a set, in the order of the shards they stand beside."""
    for split in SPLITS:
        yield from entry["splits"].get(split, {"shards": []})["shards"]


def all_tars(manifest: Manifest) -> Iterator[ShardEntry]:
    """The shards and the sidecars of all sets."""
    yield from (shard for _, _, shard in iterate_shards(manifest["splits"]))
    for entry in manifest["region_sets"].values():
        yield from sidecars(entry)


def made_here(path: Path) -> bool:
    """Whether a sidecar is of a set that was written here, and not of one that a linked folder's address has."""
    name = set_of(path.name)
    if name is None:
        return False
    entry = read_manifest(path.parent)["region_sets"].get(name)
    return entry is None or _is_ours(path.parent, entry)


def _is_ours(folder: Path, entry: RegionSetEntry) -> bool:
    listed = listed_by_address(folder)
    return listed is None or entry["hash"] not in listed


def how_to_write(folder: Path | str, name: str = DEFAULT_SET, again: bool = False) -> str:
    """The command, for every message about missing or (`again`) damaged sets."""
    return (
        f"Write it{' again' if again else ''} with `python -m experiments predict --exp detector --data {folder} "
        f"--name {name}{' --fresh' if again else ''}` and the --scale of the detector (docs/regions.md)."
    )


def sets_on_disk(folder: Path) -> set[str]:
    """Names of sets of which there are files, finished or not."""
    files = {name for path in folder.glob("*-regions-*.tar") if (name := set_of(path.name))}
    return files | {path.name for path in (folder / RECEIPTS).glob("*")}


def remove_region_set(folder: Path, name: str) -> None:
    """Remove a set, finished or not: first the manifest forgets it."""
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        if manifest["region_sets"].pop(name, None) is not None:
            write_manifest(folder, manifest)
    remove_receipts(folder, name)
    for path in folder.glob(f"*-regions-{name}-*.tar"):
        if set_of(path.name) == name:
            path.unlink()


def region_set(folder: Path | str, manifest: Manifest, name: str) -> RegionSetEntry:
    """The manifest's entry of a set.

    Raises:
        DataError: there is none of that name, with the known ones and the command that writes one.
    """
    check_name(name)
    known = manifest["region_sets"]
    if name not in known:
        there = f"it has {', '.join(f'{one!r}' for one in sorted(known))}" if known else "it has none"
        raise DataError(f"{folder} has no region set '{name}'; {there}. {how_to_write(folder, name)}")
    return known[name]


def check_region_set(folder: Path, splits: Iterable[str], manifest: Manifest, name: str) -> RegionSetEntry:
    """The entry of a set whose files are there and were written for these very shards; reads no tar.

    Raises:
        DataError: naming folder, set and file, with the command that writes it again.
    """
    entry = region_set(folder, manifest, name)
    ours = _is_ours(folder, entry)
    for split in splits:
        shards = manifest["splits"][split]["shards"]
        sidecars = entry["splits"].get(split, {"shards": []})["shards"]
        if [shard["sha256"] for shard in shards] != [sidecar["of"] for sidecar in sidecars]:
            raise DataError(
                f"Region set '{name}' of {folder} was written for other {split} shards than there are now. "
                + how_to_write(folder, name)
            )
        for shard, sidecar in zip(shards, sidecars, strict=True):
            path = folder / sidecar_file(shard["file"], name)
            if sidecar["file"] != path.name or sidecar["samples"] != shard["samples"]:
                raise DataError(
                    f"Region set '{name}' of {folder}: {MANIFEST_FILE} lists {sidecar['file']} with "
                    f"{sidecar['samples']} samples beside {shard['file']} with {shard['samples']}. "
                    + how_to_write(folder, name)
                )
            if is_elsewhere(path) or not ours:
                continue  # compared when it is fetched, and fetched again where it is not whole
            if not path.is_file():
                raise DataError(
                    f"{path} of region set '{name}' is missing though {MANIFEST_FILE} lists it. "
                    + how_to_write(folder, name)
                )
            if path.stat().st_size != sidecar["bytes"]:
                raise DataError(
                    f"{path} of region set '{name}' has {path.stat().st_size} bytes, {MANIFEST_FILE} says "
                    f"{sidecar['bytes']}. {how_to_write(folder, name)}"
                )
    return entry


def remove_receipts(folder: Path, name: str) -> None:
    """Remove what says how far a set is."""
    shutil.rmtree(folder / RECEIPTS / name, ignore_errors=True)
    with suppress(OSError):  # there may be those of other sets
        (folder / RECEIPTS).rmdir()


def set_hash(splits: dict[str, RegionSplitEntry]) -> str:
    """16 hex digits over all sidecars."""
    lines = (f"{shard['file']} {shard['sha256']}\n" for split in SPLITS for shard in splits[split]["shards"])
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
