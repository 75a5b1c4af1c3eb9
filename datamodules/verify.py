"""Does a shard folder hold what its manifest says? Every byte is hashed, every sample decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.annotations import AnnotationRow, read_rows
from datamodules.catalogues.record import SPLITS
from datamodules.entities import entity_problems
from datamodules.errors import DataError
from datamodules.manifest import (
    TOKENIZER_FILE,
    Manifest,
    ShardEntry,
    data_hash,
    file_sha256,
    is_elsewhere,
    iterate_shards,
    read_manifest,
)
from datamodules.pictures import PictureError, decode_picture
from datamodules.verify_regions import region_problems, region_set_problems

_VERIFY_PX = 64  # damage shows at any scale; decoding small is faster


def verify(folder: Path | str, progress: bool = False) -> list[str]:
    """Check a shard folder.

    Args:
        folder: as `make data` writes it.
        progress: show a bar over the samples.

    Returns:
        One line per problem, naming file and sample; empty if all is well.

    Raises:
        DataError: there is no readable manifest to compare with.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    return list(_problems(folder, manifest, progress))


def _problems(folder: Path, manifest: Manifest, progress: bool) -> Iterator[str]:
    from rich.progress import Progress

    annotations: dict[str, list[AnnotationRow]] = {}
    for split in SPLITS[1:]:
        try:
            annotations[split] = read_rows(folder, split, manifest["splits"][split]["samples"])
        except DataError as error:
            yield str(error)
    ids: dict[str, str] = {}
    listed = {shard["file"] for _, _, shard in iterate_shards(manifest["splits"])}
    with Progress(disable=not progress) as bar:
        task = bar.add_task("verify", total=sum(manifest["splits"][split]["samples"] for split in SPLITS))
        for split in SPLITS:
            expected, first = annotations.get(split), 0
            for shard in manifest["splits"][split]["shards"]:
                rows = None if expected is None else expected[first : first + shard["samples"]]
                yield from _shard_problems(folder / shard["file"], shard, manifest, rows, ids)
                first += shard["samples"]
                bar.advance(task, shard["samples"])
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed and path.name.rpartition("-")[0] in SPLITS:
            yield f"{path}: not in the manifest."
    yield from region_set_problems(folder, manifest)
    yield from _label_problems(folder, manifest, annotations)
    if manifest["tokenizer"] is not None and not (folder / TOKENIZER_FILE).is_file():
        yield f"{folder / TOKENIZER_FILE}: missing though the manifest names it."
    yield from entity_problems(folder, manifest)
    if data_hash(folder, manifest["splits"]) != manifest["data_hash"]:
        yield f"{folder}: data_hash does not follow from shards, annotations and tokenizer; one of them was changed."


def _shard_problems(
    path: Path, shard: ShardEntry, manifest: Manifest, rows: list[AnnotationRow] | None, ids: dict[str, str]
) -> Iterator[str]:
    from datamodules.shard_reader import read_shard  # pulls in webdataset and torch

    elsewhere = is_elsewhere(path)  # then size and sha256 are compared as it is fetched
    if not elsewhere and not path.is_file():
        yield f"{path}: missing."
        return
    if not elsewhere and (path.stat().st_size != shard["bytes"] or file_sha256(path) != shard["sha256"]):
        yield f"{path}: size or sha256 differs from the manifest."
    count = 0
    try:
        for count, sample in enumerate(read_shard(path), start=1):
            where = f"{path}, sample {count - 1}"
            record, problem = _record(sample.members)
            if record is None:
                yield f"{where}: {problem}"
                continue
            where = f"{path}, sample '{record['id']}'"
            if record["id"] in ids:
                yield f"{where}: duplicate item id, also in {ids[record['id']]}."
            ids[record["id"]] = str(path)
            yield from (f"{where}: {problem}" for problem in _member_problems(sample.members, manifest))
            if rows is not None and count <= len(rows) and _differs(record, rows[count - 1]):
                yield f"{where}: id, caption or labels differ from the annotations."
    except DataError as error:
        yield str(error)
        if elsewhere:
            return  # not fetched, so nothing can be said of its samples
    if count != shard["samples"]:
        yield f"{path}: {count} readable samples, the manifest says {shard['samples']}."


def _record(members: dict[str, bytes]) -> tuple[dict[str, Any] | None, str]:
    if "json" not in members:
        return None, "no .json."
    try:
        record = json.loads(members["json"])
    except (ValueError, RecursionError):
        return None, "the .json is malformed."
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        return None, "the .json has no id."
    if not isinstance(record.get("caption"), str) or not record["caption"].strip():
        return None, f"'{record['id']}' has an empty caption."
    return record, ""


def _member_problems(members: dict[str, bytes], manifest: Manifest) -> Iterator[str]:
    if manifest["pictures"]:
        if "jpg" not in members:
            yield "no .jpg."
        else:
            try:
                decode_picture(members["jpg"], needed_px=_VERIFY_PX)
            except PictureError as error:
                yield f"{error.reason}: {error}."
    if manifest["regions"] is not None:
        if "regions.npz" not in members:
            yield "no .regions.npz."
            return
        yield from region_problems(members["regions.npz"], manifest["regions"])


def _differs(record: dict[str, Any], row: AnnotationRow) -> bool:
    return (record["id"], record["caption"], tuple(record.get("labels", ()))) != (row.id, row.caption, row.labels)


def _label_problems(folder: Path, manifest: Manifest, annotations: dict[str, list[AnnotationRow]]) -> Iterator[str]:
    """Queries beyond those the manifest admits to; a label without gallery item makes a query count as 0."""
    known = Counter(label for row in annotations.get("gallery", []) for label in row.labels)
    for split in ("val", "test"):
        bad = [row for row in annotations.get(split, []) if not row.labels or any(not known[one] for one in row.labels)]
        if len(bad) != manifest["splits"][split]["unscorable"]:
            example = f", e.g. '{bad[0].id}' {list(bad[0].labels)}" if bad else ""
            yield (
                f"{folder}: {len(bad)} {split} queries have a label without gallery item, the manifest says "
                f"{manifest['splits'][split]['unscorable']}{example}."
            )
