"""One shard: planned items -> a tar and a receipt. Runs in worker processes; torch-free.

The receipt says what the tar holds, so that a build killed half way goes on without opening finished tars.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.annotations import FIELD_SEPARATOR, LABEL_SEPARATOR
from datamodules.catalogues.record import Catalogue, ProductRecord, Skipped, Split
from datamodules.errors import DataError
from datamodules.manifest import file_sha256, write_atomically
from datamodules.near_duplicates import fingerprint
from datamodules.pictures import PictureError, decode_picture
from datamodules.regions import BadRegionsError, Regions, pack_regions

log = logging.getLogger(__name__)

RECEIPTS = ".build"  # folder of receipts inside the shard folder; gone when the build is finished

RegionSource = Callable[[ProductRecord], Regions | None]

_ID = re.compile(r"[A-Za-z0-9_.-]+")
_NAMED_PER_SHARD = 3  # damaged samples of a kind that the log names; all are counted
_FINGERPRINT_PX = 64  # a JPEG need not be decoded larger for its fingerprint


class ShardJob(NamedTuple):
    """A shard to write."""

    folder: Path
    split: Split
    number: int  # within the split
    first_key: int  # running number of the first item; members are named by it, since ids may contain dots
    items: Sequence[Any]
    digest: str  # of everything that determines the bytes
    present: int  # items that are not known to give no sample

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def receipt(self) -> Path:
        return self.folder / RECEIPTS / f"{self.split}-{self.number:06d}.json"


class RegionSizes(NamedTuple):
    """What the regions of a picture, a shard or a folder have in common, and the most of them; all 0 = no regions."""

    width: int = 0  # of the features
    most: int = 0  # regions of a picture
    classes: int = 0  # with scores; receipts of builds before there were any do not have it


class Options(NamedTuple):
    """What goes into a sample beside the record."""

    pictures: bool
    regions: RegionSource | None


def write_shard(catalogue: Catalogue, job: ShardJob, options: Options) -> None:
    """Make the items of a shard, write its tar, then its receipt (in this order: a receipt vouches for a tar)."""
    temporary = job.folder / f".{job.file}.{os.getpid()}.tmp"
    rows: list[dict[str, Any]] = []
    left_out: list[Skipped] = []
    kinds, skipped, region_sizes = Counter[str](), Counter[str](), RegionSizes()
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, item in enumerate(job.items, start=job.first_key):
                made = _make(catalogue, job.split, item, options)
                if isinstance(made, Skipped):
                    skipped[made.reason] += 1
                    left_out.append(made)
                    if made.detail and skipped[made.reason] <= _NAMED_PER_SHARD:
                        log.warning("Left out %s item '%s', %s: %s", job.split, made.id, made.reason, made.detail)
                    continue
                _add_members(tar, f"{key:09d}", made)
                rows.append(made.row)
                kinds[made.record.kind] += 1
                if made.regions is not None:
                    region_sizes = larger_of(region_sizes, made.region_sizes, f"{job.split} item '{made.record.id}'")
        size, digest = temporary.stat().st_size, file_sha256(temporary)
        if rows:
            os.replace(temporary, job.folder / job.file)
    finally:
        temporary.unlink(missing_ok=True)
    receipt = {
        "digest": job.digest,
        "shard": {"file": job.file, "samples": len(rows), "bytes": size, "sha256": digest},
        "kinds": kinds,
        "skipped": skipped,
        "regions": region_sizes,
        "left_out": [(one.reason, one.id, one.detail) for one in left_out],
        "rows": rows,
    }
    write_atomically(job.receipt, json.dumps(receipt, ensure_ascii=False).encode("utf-8"))


def read_receipt(job: ShardJob) -> dict[str, Any] | None:
    """The receipt of a shard that is finished under the same settings, else None."""
    try:
        receipt = json.loads(job.receipt.read_bytes())
        shard = receipt["shard"]
        finished = (
            "left_out" in receipt
            and receipt["digest"] == job.digest
            and (not shard["samples"] or (job.folder / job.file).stat().st_size == shard["bytes"])
        )
        return receipt if finished else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def larger_of(before: RegionSizes, now: RegionSizes, where: str) -> RegionSizes:
    """Sizes so far and of what comes next.

    Raises:
        DataError: two widths, or scores of two numbers of classes (0 is one), which no model can read.
    """
    if not before.width or not now.width:
        return before if before.width else now
    if before.width != now.width:
        raise DataError(
            f"{where}: its region features are {now.width} wide, those before it {before.width}. A folder holds the "
            "features of one detector: remove the others, then build again."
        )
    if before.classes != now.classes:
        raise DataError(
            f"{where}: its regions have class scores of {now.classes} classes, those before it of {before.classes}. "
            "Give all pictures the class scores of one detector, or none, then build again."
        )
    return now._replace(most=max(before.most, now.most))


class _Made(NamedTuple):
    record: ProductRecord
    picture: bytes | None
    regions: bytes | None
    region_sizes: RegionSizes
    row: dict[str, Any]


def _make(catalogue: Catalogue, split: Split, item: Any, options: Options) -> _Made | Skipped:
    record = catalogue.make(split, item)
    if isinstance(record, Skipped):
        return record
    record = _cleaned(record)
    if not record.caption:
        return Skipped(record.id, "empty_caption")
    row: dict[str, Any] = record._asdict() | {"image": None, "boxes": None, "print": None}
    if options.pictures:
        try:
            row["print"] = fingerprint(decode_picture(record.image, needed_px=_FINGERPRINT_PX).image)
        except PictureError as error:
            return Skipped(record.id, error.reason)
    picture = record.image if options.pictures else None
    if options.regions is None:
        return _Made(record, picture, None, RegionSizes(), row)
    try:
        regions = options.regions(record)
        packed = None if regions is None else pack_regions(regions)
    except BadRegionsError as error:
        return Skipped(record.id, error.reason, str(error))
    if regions is None or packed is None:
        return Skipped(record.id, "missing_regions")
    num, width = np.shape(regions.features_RD)
    return _Made(record, picture, packed, RegionSizes(width, num, regions.num_classes), row)


def _cleaned(record: ProductRecord) -> ProductRecord:
    """Caption on one line and free of the list's separator; anything the official line cannot carry is refused."""
    if not _ID.fullmatch(record.id):
        raise DataError(f"Item id {record.id!r} ({record.source}) should match [A-Za-z0-9_.-]+; rename the item.")
    for field in (record.source, *record.labels):
        if FIELD_SEPARATOR in field or "\n" in field or "\r" in field:
            raise DataError(f"Item '{record.id}': {field!r} holds '{FIELD_SEPARATOR}' or a line end; rename it.")
    for label in record.labels:
        if not label or LABEL_SEPARATOR in label:
            raise DataError(f"Item '{record.id}': label {label!r} is empty or holds '{LABEL_SEPARATOR}'; rename it.")
    text = " ".join(record.caption.encode("utf-8", "replace").decode("utf-8").replace(FIELD_SEPARATOR, " ").split())
    # A sign of the separator right before one would become the next field's: shade "01#", a url's empty fragment.
    caption = f"{text} " if text.endswith(FIELD_SEPARATOR[0]) else text
    return record._replace(caption=caption, source=record.source.rstrip(FIELD_SEPARATOR[0]))


def _add_members(tar: tarfile.TarFile, key: str, made: _Made) -> None:
    record = made.record
    fields: dict[str, Any] = {
        "id": record.id,
        "caption": record.caption,
        "labels": list(record.labels),
        "kind": record.kind,
        "source": record.source,
    }
    if record.boxes is not None:
        fields["boxes"] = [[float(value) for value in box] for box in record.boxes]
    if made.picture is not None:
        add_member(tar, f"{key}.jpg", made.picture)
    if made.regions is not None:
        add_member(tar, f"{key}.regions.npz", made.regions)
    add_member(tar, f"{key}.json", json.dumps(fields, ensure_ascii=False).encode("utf-8"))


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member with time 0 and no owner, so that equal samples give equal tars."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o644
    tar.addfile(entry, io.BytesIO(data))
