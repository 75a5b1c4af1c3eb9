"""The table of contents of a shard folder: what is in it, how it was made, and hashes to prove it.

Light on purpose (no torch, no webdataset): `--help`, `table` and `doctor` read manifests too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from datamodules.catalogues.record import SPLITS, Split
from datamodules.errors import DataError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
REMOTE_FILE = "remote.json"  # in a folder whose tars lie elsewhere (`datamodules.remote`)

# A name from a manifest becomes a path, and webdataset would run `pipe:…` in a shell: only plain tar names pass.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
# Such a name goes into the user's command too, where quoting cannot be relied on (`pipe:ssh host "cat {}"`).
_ENTITY_FILES = {"table.json", *(f"{split}.npy" for split in SPLITS)}
_SET_NAME = re.compile(r"[A-Za-z0-9_]+")
_HEX_64 = re.compile(r"[0-9a-f]{64}")


class ShardEntry(TypedDict):
    file: str
    samples: int
    bytes: int
    sha256: str


class SplitEntry(TypedDict):
    samples: int
    single: int
    multi: int
    unknown: int
    skipped: dict[str, int]  # reason -> number of planned samples that did not get in
    unscorable: int  # queries with a label no gallery item has; 0 for train and gallery
    shards: list[ShardEntry]


class SidecarEntry(ShardEntry):
    """A tar of a region set, beside the shard of the same number."""

    of: str  # sha256 of that shard
    width: int  # of the features
    most: int  # regions of a picture
    boxes: int
    without: int  # pictures in which the detector found nothing
    truth: int  # pictures with features of their true boxes


class RegionSplitEntry(TypedDict):
    pictures: int
    boxes: int  # found; the whole picture of one without is not among them
    without: int
    truth: bool  # each picture has features of its true boxes
    shards: list[SidecarEntry]


class RegionSetEntry(TypedDict):
    width: int  # of the features
    max: int  # regions of a picture
    hash: str  # of the sidecars
    about: dict[str, Any]  # the detector and its settings
    splits: dict[str, RegionSplitEntry]


class Manifest(TypedDict):
    schema_version: int
    name: str
    source: str
    settings: dict[str, Any]  # of the catalogue
    build: dict[str, Any]  # of the writer: seed, shard_size, vocab_size, plan, and the region features' settings
    tokenizer: dict[str, Any] | None
    pictures: bool  # the samples carry `.jpg`
    splits: dict[str, SplitEntry]
    labels: dict[str, Any]
    regions: dict[str, Any] | None  # width of the features, most regions of a picture, classes with scores (if any)
    near_duplicates: dict[str, Any]
    entities: dict[str, Any] | None  # how they were found, files with sha256, hash, counts; not part of the data hash
    region_sets: dict[str, RegionSetEntry]  # beside the shards (`datamodules.region_sets`); not part of the data hash
    data_hash: str


def how_to_build(folder: Path | str) -> str:
    """The two ways on, for every message about missing or unusable shards."""
    name = Path(folder).name or "<name>"
    return (
        f"Build it with `make data DATA={name} [SOURCE=synthetic|grocery|photos|product1m] [RAW=<raw folder>] "
        f"[OUT={folder}]`, or try everything on the embedded catalogue with `make demo`."
    )


def how_to_mend(folder: Path | str) -> str:
    """What to do about damage that `make data` does not see by itself."""
    if (Path(folder) / REMOTE_FILE).is_file():
        return "Delete that file: it is fetched again when it is read."
    return f"List all damage with `python -m experiments data verify {folder}`, then build again with ARGS=--again."


def read_manifest(folder: Path | str) -> Manifest:
    """Read and check `<folder>/manifest.json`.

    Raises:
        DataError: the folder or the manifest is missing, not JSON, of another schema version or incomplete.
    """
    path = Path(folder) / MANIFEST_FILE
    if not Path(folder).is_dir():
        raise DataError(f"There is no shard folder at {folder}. {how_to_build(folder)}")
    if not path.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST_FILE}: not a shard folder, or not finished building. {how_to_build(folder)}"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not readable as JSON ({reason}). {how_to_build(folder)}") from None
    return _checked(value, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step: a folder has a whole one or none."""
    write_atomically(folder / MANIFEST_FILE, json.dumps(manifest, ensure_ascii=False, indent=1).encode() + b"\n")


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the target and rename, so that a kill never leaves half a file under the final name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def annotation_path(folder: Path | str, split: str) -> Path:
    """The official five-field list of an evaluation split, in row order."""
    return Path(folder) / "annotations" / f"{split}.txt"


def data_hash(folder: Path, splits: dict[str, SplitEntry]) -> str:
    """16 hex digits over all a model can see or is scored on: shards, annotations, tokenizer."""
    digest = hashlib.sha256()
    for split, _, shard in iterate_shards(splits):
        digest.update(f"{split} {shard['file']} {shard['sha256']}\n".encode())
    for path in (*(annotation_path(folder, split) for split in SPLITS), folder / TOKENIZER_FILE):
        if path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Hash a file of any size in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def iterate_shards(splits: dict[str, SplitEntry]) -> Iterator[tuple[Split, int, ShardEntry]]:
    """(split, number within the split, shard) in the order of the row numbers."""
    for split in SPLITS:
        for number, shard in enumerate(splits[split]["shards"]):
            yield split, number, shard


def listed_by_address(folder: Path) -> frozenset[str] | None:
    """Hashes of the region sets and entities that came with a link; others were made here. None: nobody noted it."""
    try:
        value = json.loads((folder / REMOTE_FILE).read_text(encoding="utf-8"))
        return frozenset(map(str, value["listed"]))
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return None


def is_elsewhere(path: Path) -> bool:
    """Whether a tar is not on disk because its folder is linked to another one."""
    return not path.is_file() and (path.parent / REMOTE_FILE).is_file()


def check_shard_files(folder: Path, splits: Iterable[str], manifest: Manifest) -> None:
    """Compare names and sizes with the disk: cheap enough for every start (hashes are `data verify`'s work).

    Raises:
        DataError: naming the first shard that is missing or has another size.
    """
    for split in splits:
        for shard in manifest["splits"][split]["shards"]:
            path = folder / shard["file"]
            remedy = f"List all damage with `python -m experiments data verify {folder}`, then build again."
            if is_elsewhere(path) or (folder / REMOTE_FILE).is_file():
                continue  # compared when it is fetched, and fetched again where it is not whole
            if not path.is_file():
                raise DataError(f"Shard {path} is missing though {MANIFEST_FILE} lists it. {remedy}")
            if path.stat().st_size != shard["bytes"]:
                raise DataError(
                    f"Shard {path} has {path.stat().st_size} bytes, {MANIFEST_FILE} says {shard['bytes']}. {remedy}"
                )


def _checked(value: Any, path: Path) -> Manifest:
    """Check types and sums, so that no later code has to ask whether a key is there."""
    if not isinstance(value, dict):
        raise _bad(path, "the file", "a JSON object")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise DataError(
            f"{path} has schema version {value.get('schema_version')!r}, this code reads {SCHEMA_VERSION}. "
            + how_to_build(path.parent)
        )
    types: dict[str, Any] = {"name": str, "source": str, "settings": dict, "build": dict, "splits": dict}
    types |= {"pictures": bool, "labels": dict, "near_duplicates": dict, "data_hash": str}
    for key, kind in types.items():
        if not isinstance(value.get(key), kind):
            raise _bad(path, key, f"a {kind.__name__}")
    tokenizer, regions = value.setdefault("tokenizer", None), value.setdefault("regions", None)
    if tokenizer is not None and not (isinstance(tokenizer, dict) and _is_count(tokenizer.get("vocab_size"))):
        raise _bad(path, "tokenizer", "null or an object with vocab_size")
    if regions is not None and not (
        isinstance(regions, dict)
        and all(_is_count(regions.get(key)) for key in ("width", "max"))
        and _is_count(regions.get("classes", 0))
    ):
        raise _bad(path, "regions", "null or an object with width, max and perhaps classes")
    entities = value.setdefault("entities", None)  # folders of before there were any do not have it
    if entities is not None and not (
        isinstance(entities, dict)
        and isinstance(entities.get("hash"), str)
        and all(isinstance(entities.get(key), dict) for key in ("source", "tags", "files", "counts"))
        and entities["files"].keys() <= _ENTITY_FILES
        and all(_is_file(file) for file in entities["files"].values())
    ):
        expected = (
            "null or an object with hash, source, tags, counts and files {table.json, <split>.npy: bytes, sha256}"
        )
        raise _bad(path, "entities", expected)
    for split in SPLITS:
        _check_split(value["splits"].get(split), f"splits.{split}", path)
    _check_region_sets(value.setdefault("region_sets", {}), path)  # younger than some folders
    return value  # type: ignore[return-value]


def _check_split(entry: Any, key: str, path: Path) -> None:
    if not isinstance(entry, dict) or not _is_count(entry.get("samples")) or not isinstance(entry.get("shards"), list):
        raise _bad(path, key, "an object with samples and shards")
    for name in ("single", "multi", "unknown", "unscorable"):
        if not _is_count(entry.setdefault(name, 0)):
            raise _bad(path, f"{key}.{name}", "a count")
    if not isinstance(entry.setdefault("skipped", {}), dict):
        raise _bad(path, f"{key}.skipped", "an object of counts")
    for number, shard in enumerate(entry["shards"]):
        if not _is_shard(shard):
            raise _bad(path, f"{key}.shards[{number}]", "{file: *.tar, samples, bytes, sha256}")
    if sum(shard["samples"] for shard in entry["shards"]) != entry["samples"]:
        raise _bad(path, f"{key}.samples", "the sum of its shards' samples")


def _check_region_sets(sets: Any, path: Path) -> None:
    if not isinstance(sets, dict):
        raise _bad(path, "region_sets", "an object of sets by name")
    for name, entry in sets.items():
        good = (
            _SET_NAME.fullmatch(name) is not None
            and isinstance(entry, dict)
            and all(_is_count(entry.get(key)) for key in ("width", "max"))
            and isinstance(entry.get("hash"), str)
            and all(isinstance(entry.get(key), dict) for key in ("about", "splits"))
        )
        if not good:
            raise _bad(path, f"region_sets.{name}", "an object with width, max, hash, about and splits")
        for split, part in (dict.fromkeys(SPLITS) | entry["splits"]).items():
            good = isinstance(part, dict) and all(_is_count(part.get(key)) for key in ("pictures", "boxes", "without"))
            if not good or not isinstance(part.get("truth"), bool) or not isinstance(part.get("shards"), list):
                expected = "an object with pictures, boxes, without, truth and shards"
                raise _bad(path, f"region_sets.{name}.splits.{split}", expected)
            for number, shard in enumerate(part["shards"]):
                if not (
                    _is_shard(shard)
                    and isinstance(shard.get("of"), str)
                    and all(_is_count(shard.get(key)) for key in ("width", "most", "boxes", "without", "truth"))
                ):
                    expected = "{file: *.tar, samples, bytes, sha256, of, width, most, boxes, without, truth}"
                    raise _bad(path, f"region_sets.{name}.splits.{split}.shards[{number}]", expected)


def _is_shard(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("file"), str)
        and _SHARD_NAME.fullmatch(value["file"]) is not None
        and all(_is_count(value.get(key)) for key in ("samples", "bytes"))
        and value["samples"] <= value["bytes"]  # more would only be believed: memory is laid out by it
        and isinstance(value.get("sha256"), str)
        and _HEX_64.fullmatch(value["sha256"]) is not None
    )


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and _is_count(value.get("bytes")) and isinstance(value.get("sha256"), str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _bad(path: Path, key: str, expected: str) -> DataError:
    return DataError(f"{path}: {key} should be {expected}. {how_to_build(path.parent)}")
