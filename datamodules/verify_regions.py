"""The regions of a shard folder, for `verify`: members of a sample, and the region sets beside the shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.catalogues.record import SPLITS
from datamodules.errors import DataError
from datamodules.manifest import Manifest, RegionSetEntry, SidecarEntry, file_sha256, is_elsewhere
from datamodules.region_sets import WITH_TRUTH, how_to_write, set_hash, set_of
from datamodules.regions import BadRegionsError, check_regions, unpack_regions

_SUMS = (("pictures", "samples"), ("boxes", "boxes"), ("without", "without"))  # of a split: of its shards
_ANY_NUMBER = 1 << 20


def region_problems(
    data: bytes, expected: Mapping[str, Any], suffix: str = "regions.npz", then: str = "build again with ARGS=--again"
) -> Iterator[str]:
    """What is wrong with one member.

    Args:
        expected: width, max and perhaps classes, as the manifest has them.
        suffix: of the member.
        then: the remedy.
    """
    try:
        regions = unpack_regions(data)
        check_regions(regions)
    except BadRegionsError as error:
        yield f".{suffix}: {error.reason}: {error}, and {then}."
        return
    num, width = regions.features_RD.shape
    if width != expected["width"]:
        yield f".{suffix}: features are {width} wide, the manifest says {expected['width']}; {then}."
    if regions.num_classes != expected.get("classes", 0):
        yield (
            f".{suffix}: scores of {regions.num_classes} classes, the manifest says {expected.get('classes', 0)}; "
            f"{then}."
        )
    if num > expected["max"]:
        yield f".{suffix}: {num} regions, the manifest says {expected['max']} at most; {then}."


def region_set_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the region sets of a folder: files, every sample, counts."""
    listed = set()
    for name, entry in manifest["region_sets"].items():
        for split in SPLITS:
            shards = manifest["splits"][split]["shards"]
            part = entry["splits"].get(split)
            sidecars = part["shards"] if part else []
            listed |= {sidecar["file"] for sidecar in sidecars}
            if [shard["sha256"] for shard in shards] != [sidecar["of"] for sidecar in sidecars]:
                yield (
                    f"{folder}: region set '{name}' was written for other {split} shards. "
                    + how_to_write(folder, name, again=True)
                )
                continue
            for shard, sidecar in zip(shards, sidecars, strict=True):
                yield from _sidecar_problems(folder / shard["file"], sidecar, entry, split)
            if part and any(part[key] != sum(one[of] for one in sidecars) for key, of in _SUMS):  # type: ignore[literal-required]
                yield f"{folder}: region set '{name}', {split}: its counts are not the sums of its shards'."
        if entry["splits"].keys() == set(SPLITS) and set_hash(entry["splits"]) != entry["hash"]:
            yield f"{folder}: region set '{name}': its hash does not follow from its files."
    for path in sorted(folder.glob("*-regions-*.tar")):
        if (name := set_of(path.name) or "") and path.name not in listed:
            yield f"{path}: of region set '{name}', which is not finished. {how_to_write(folder, name)}"


def _sidecar_problems(shard: Path, sidecar: SidecarEntry, entry: RegionSetEntry, split: str) -> Iterator[str]:
    from datamodules.shard_reader import read_shard  # pulls in webdataset and torch

    path = shard.with_name(sidecar["file"])
    again = how_to_write(path.parent, set_of(path.name) or "", again=True)
    elsewhere = is_elsewhere(path)
    if not elsewhere and not path.is_file():
        yield f"{path}: missing. {again}"
        return
    if not elsewhere and (path.stat().st_size != sidecar["bytes"] or file_sha256(path) != sidecar["sha256"]):
        yield f"{path}: size or sha256 differs from the manifest. {again}"
    counts = Counter[str]()
    # A record may have any number of true boxes.
    members = (("regions.npz", entry), ("truth.npz", {"width": entry["width"], "max": _ANY_NUMBER}))
    try:
        for number, sample in enumerate(read_shard(shard, 0, path, truth=True)):
            counts["samples"] += 1
            where = f"{path}, sample {_id(sample.members.get('json', b''), number)}"
            for suffix, expected in members:
                if suffix in sample.members:
                    problems = region_problems(sample.members[suffix], expected, suffix, "write the set again")
                    yield from (f"{where}: {problem}" for problem in problems)
            counts.update(truth="truth.npz" in sample.members)
            if "truth.npz" in sample.members and split not in WITH_TRUTH:
                yield f"{where}: .truth.npz in {split}, where true boxes are not to be read. {again}"
            if "regions.npz" in sample.members:
                counts.update(_found(sample.members["regions.npz"]))
            else:
                yield f"{where}: no .regions.npz. {again}"
    except DataError as error:
        yield str(error)
        return
    wrong = {key: counts[key] for key in ("samples", "boxes", "without", "truth") if counts[key] != sidecar[key]}
    if wrong:
        yield f"{path}: it holds {wrong}, the manifest says otherwise. {again}"


def _found(data: bytes) -> dict[str, int]:
    try:
        num_found = int((unpack_regions(data).scores_R > 0).sum())
    except BadRegionsError:
        return {}
    return {"boxes": num_found, "without": int(not num_found)}


def _id(record: bytes, number: int) -> str:
    try:
        return f"'{json.loads(record)['id']}'"
    except (ValueError, KeyError, TypeError, RecursionError):
        return str(number)
