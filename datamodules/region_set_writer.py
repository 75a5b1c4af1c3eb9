"""Writing a region set: proposals of a detector, shard by shard, and the entry in the manifest when all are there."""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.catalogues.record import SPLITS, Split
from datamodules.errors import DataError
from datamodules.manifest import (
    RegionSetEntry,
    RegionSplitEntry,
    SidecarEntry,
    file_sha256,
    iterate_shards,
    read_manifest,
    write_atomically,
    write_manifest,
)
from datamodules.plain_tar import content_of, open_tar, regular_members
from datamodules.region_sets import (
    RECEIPTS,
    WITH_TRUTH,
    check_name,
    how_to_write,
    remove_receipts,
    set_hash,
    sidecar_file,
)
from datamodules.regions import BadRegionsError, Regions, pack_regions
from datamodules.remote import at_hand
from datamodules.shard_reader import remedy
from datamodules.shard_writer import add_member


class RegionSetWriter:
    """Writes a set shard by shard, on any number of ranks; what a killed one had finished is kept.

    Args:
        folder: a finished shard folder.
        name: of the set.
        about: the detector and its settings, plain values. What they determine is never mixed under one name.

    Raises:
        DataError: a bad name, no shard folder, or a set of that name about something else.
    """

    def __init__(self, folder: Path | str, name: str, about: dict[str, Any]) -> None:
        self.folder, self.name, self.about = Path(folder), check_name(name), json.loads(json.dumps(about))
        self.manifest = read_manifest(self.folder)
        listed = self.manifest["region_sets"].get(name)
        if listed:
            self._check_about(listed["about"])
        self._listed = (
            {one["file"]: one for part in listed["splits"].values() for one in part["shards"]} if listed else {}
        )
        for path in sorted((self.folder / RECEIPTS / name).glob("*.json")):
            self._check_about(_receipt(path).get("about", self.about))

    def _check_about(self, other: dict[str, Any]) -> None:
        mine = self.about
        differing = [
            f"{key} {other.get(key)!r} -> {mine.get(key)!r}"
            for key in sorted(other.keys() | mine.keys())
            if other.get(key) != mine.get(key)
        ]
        if differing:
            raise DataError(
                f"Region set '{self.name}' of {self.folder} is of another detector or of other settings: "
                f"{', '.join(differing)}. Give this one another name (--name), or write it over (--fresh)."
            )

    def pending(self, rank: int = 0, world_size: int = 1) -> list[tuple[Split, int]]:
        """The shards of this rank that are still to be written: (split, number within it)."""
        mine = list(iterate_shards(self.manifest["splits"]))[rank::world_size]
        return [(split, number) for split, number, _ in mine if self._finished(split, number) is None]

    def write(self, split: Split, number: int, rows: Sequence[tuple[Regions, Regions | None]]) -> None:
        """Write the tar beside a shard, then its receipt (in this order: a receipt vouches for a tar).

        Args:
            rows: for each sample of the shard, in order, what was found (at least one region, see `whole_picture`) and
                the regions of its true boxes; None = it has none, or they are nobody's business in this split.

        Raises:
            DataError: not as many rows as samples, or features of two widths.
            BadRegionsError: regions that no model can use, with the sample's id.
        """
        shard = self.manifest["splits"][split]["shards"][number]
        path = self.folder / sidecar_file(shard["file"], self.name)
        samples = _samples(self.folder / shard["file"])
        if len(rows) != len(samples):
            raise DataError(f"{path}: {len(rows)} pictures were looked at, {shard['file']} holds {len(samples)}.")
        for torn in self.folder.glob(f".{path.name}.*.tmp"):  # of a killed process
            torn.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        counts, most, width = Counter[str](), 0, 0
        try:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for (key, item), (found, truth) in zip(samples, rows, strict=True):
                    assert truth is None or split in WITH_TRUTH, "true boxes are for evaluation only"
                    for suffix, regions in (("regions.npz", found), ("truth.npz", truth)):
                        if regions is not None:
                            where = f"{path}, sample '{item}', .{suffix}"
                            add_member(tar, f"{key}.{suffix}", _packed(regions, where))
                            width = _same_width(width, regions, where)
                    num_found = int((np.asarray(found.scores_R) > 0).sum())
                    counts.update(boxes=num_found, without=not num_found, truth=truth is not None)
                    most = max(most, len(found.boxes_R4))
            size, sha256 = temporary.stat().st_size, file_sha256(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        entry = SidecarEntry(
            file=path.name,
            samples=len(rows),
            bytes=size,
            sha256=sha256,
            of=shard["sha256"],
            width=width,
            most=most,
            boxes=counts["boxes"],
            without=counts["without"],
            truth=counts["truth"],
        )
        receipt = self._receipt_of(split, number)
        receipt.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(receipt, json.dumps({"about": self.about, "shard": entry}, ensure_ascii=False).encode())

    def finish(self) -> RegionSetEntry:
        """List the set in the manifest, once the last rank is done; for one rank to call.

        Raises:
            DataError: a shard is missing, or the detector's features changed their width.
        """
        splits: dict[str, RegionSplitEntry] = {}
        for split in SPLITS:
            shards = []
            for number, shard in enumerate(self.manifest["splits"][split]["shards"]):
                entry = self._finished(split, number)
                if entry is None:
                    file = sidecar_file(shard["file"], self.name)
                    raise DataError(f"{self.folder / file} is not written yet. {how_to_write(self.folder, self.name)}")
                shards.append(entry)
            splits[split] = _summed(shards)
        every = [one for part in splits.values() for one in part["shards"]]
        widths = sorted({one["width"] for one in every})
        if len(widths) != 1:
            raise DataError(f"Region set '{self.name}' of {self.folder} has features of widths {widths}; use --fresh.")
        most = max(one["most"] for one in every)
        done = RegionSetEntry(width=widths[0], max=most, hash=set_hash(splits), about=self.about, splits=splits)
        manifest = read_manifest(self.folder)
        sets = {**manifest["region_sets"], self.name: done}
        write_manifest(self.folder, {**manifest, "region_sets": dict(sorted(sets.items()))})
        remove_receipts(self.folder, self.name)
        return done

    def _receipt_of(self, split: str, number: int) -> Path:
        return self.folder / RECEIPTS / self.name / f"{split}-{number:06d}.json"

    def _finished(self, split: str, number: int) -> SidecarEntry | None:
        """The entry of a tar that is there and was written for the shard as it is."""
        shard = self.manifest["splits"][split]["shards"][number]
        path = self.folder / sidecar_file(shard["file"], self.name)
        for entry in (_receipt(self._receipt_of(split, number)).get("shard"), self._listed.get(path.name)):
            if entry and entry["of"] == shard["sha256"] and path.is_file() and path.stat().st_size == entry["bytes"]:
                return entry
        return None


def whole_picture(size_hw: tuple[int, int], feature_D: np.ndarray) -> Regions:
    """What stands in a set for a picture in which nothing was found: all of it, with score 0."""
    box = np.array([[0, 0, size_hw[1], size_hw[0]]], np.float32)
    return Regions(box, np.asarray(feature_D)[None], np.zeros(1, np.float32), size_hw)


def _packed(regions: Regions, where: str) -> bytes:
    try:
        if not len(regions.boxes_R4):
            raise BadRegionsError("malformed_regions", "no region; the whole picture stands where nothing was found")
        packed = pack_regions(regions)
        scores_R = np.asarray(regions.scores_R)
        bad_R = ~((scores_R >= 0) & (scores_R <= 1))  # NaN compares as false
        if bad_R.any():
            raise BadRegionsError("malformed_regions", f"'scores' hold {scores_R[bad_R][0]}, which is no probability")
        empty_R = (np.asarray(regions.boxes_R4)[:, :2] >= np.asarray(regions.boxes_R4)[:, 2:]).any(1)
        if empty_R.any():
            row = int(empty_R.argmax())
            raise BadRegionsError(
                "misplaced_boxes", f"'boxes' row {row} is {np.asarray(regions.boxes_R4)[row].tolist()}, without area"
            )
    except BadRegionsError as error:
        raise BadRegionsError(error.reason, f"{where}: {error}") from None
    return packed


def _same_width(before: int, regions: Regions, where: str) -> int:
    """Width of the features, which is that of those before (0 = there are none)."""
    width = int(np.shape(regions.features_RD)[-1])
    if before not in (0, width):
        raise DataError(f"{where}: its features are {width} wide, those before it {before}.")
    return width


def _summed(shards: list[SidecarEntry]) -> RegionSplitEntry:
    pictures, truth = sum(one["samples"] for one in shards), sum(one["truth"] for one in shards)
    return RegionSplitEntry(
        pictures=pictures,
        boxes=sum(one["boxes"] for one in shards),
        without=sum(one["without"] for one in shards),
        truth=bool(pictures) and truth == pictures,
        shards=shards,
    )


def _samples(path: Path) -> list[tuple[str, str]]:
    """(key, id) of each sample of a shard, in order; the key twice where the record is damaged."""
    ids: dict[str, str] = {}
    try:
        with at_hand(path) as local, open_tar(local) as tar:
            for member in regular_members(tar):
                key, _, suffix = member.name.partition(".")
                ids.setdefault(key, key)
                if suffix == "json":
                    try:
                        ids[key] = str(json.loads(content_of(tar, member))["id"])
                    except (ValueError, KeyError, TypeError, RecursionError):
                        continue
    except DataError:
        raise
    except Exception as error:  # damaged headers make tarfile raise whatever they like
        raise DataError(f"Shard {path} cannot be read ({error}). {remedy(path)}") from None
    return list(ids.items())


def _receipt(path: Path) -> dict[str, Any]:
    """A receipt; {} if there is none, or half of one."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
