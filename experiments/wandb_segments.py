"""What W&B keeps of a run on disk: a folder per start of its process, each with a log of records, `run-<id>.wandb`.

A run that was interrupted and went on has several of these segments under one id. Here they are found, read and cut;
uploading them is `wandb_sync`'s. The log is LevelDB's format with a header of W&B's own: blocks of 32 KiB, in which a
record is one fragment (FULL) or several (FIRST, MIDDLE…, LAST), each with checksum, length and kind before it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK_BYTES = 32 * 1024
FRAGMENT_HEADER = struct.Struct("<IHB")  # checksum of kind and data, length of the data, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
STEP = "trainer/global_step"  # Lightning's name of the step a row is about


class Segment(NamedTuple):
    """What one process left of a run."""

    folder: Path

    @property
    def log(self) -> Path:
        """The file of records; it may be missing, if W&B was stopped before it wrote any."""
        return next(iter(sorted(self.folder.glob("*.wandb"))), self.folder / "run.wandb")

    @property
    def online(self) -> bool:
        """Whether it went to the server as it was made."""
        return not self.folder.name.startswith("offline-")

    @property
    def synced(self) -> Path:
        """W&B's own mark of a segment that `wandb sync` has uploaded."""
        return self.log.with_suffix(".wandb.synced")

    @property
    def sync_state(self) -> Path:
        """Where `wandb sync` notes the step a segment starts at: there before its first record is uploaded."""
        return self.log.with_suffix(".wandb.syncstate")

    @property
    def uploaded(self) -> bool:
        return self.online or self.synced.is_file()


def segments(home: Path) -> list[Segment]:
    """Those of the run folder `home`, in the order they were made."""
    folders = [path for path in (home / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink()]
    return [Segment(folder) for folder in sorted(folders, key=lambda path: path.name.removeprefix("offline-"))]


def read_records(log: Path) -> Iterator[tuple[int, Any]]:
    """The records of a log, each with the byte it ends at; what follows a torn one is left out.

    Yields:
        End of the record in bytes from the start of the file, and the record, a `wandb_internal_pb2.Record`.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    parse: Any = getattr(wandb_internal_pb2, "Record").FromString  # noqa: B009  (made at run time)

    content = log.read_bytes()
    if not content.startswith(FILE_HEADER):
        return
    parts: list[bytes] = []
    for end, kind, data in _fragments(content):
        if (kind in (FULL, FIRST)) == bool(parts):
            return  # a beginning inside of a record, or a continuation of none
        parts.append(data)
        if kind in (FULL, LAST):
            try:
                yield end, parse(b"".join(parts))
            except DecodeError:
                return
            parts = []


def _fragments(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """End, kind and data of each whole fragment."""
    at = len(FILE_HEADER)
    while True:
        if BLOCK_BYTES - at % BLOCK_BYTES < FRAGMENT_HEADER.size:
            at += BLOCK_BYTES - at % BLOCK_BYTES  # the rest of a block that holds no header is filled with zeros
        start = at + FRAGMENT_HEADER.size
        if start > len(content):
            return
        checksum, length, kind = FRAGMENT_HEADER.unpack_from(content, at)
        at = start + length
        data = content[start:at]
        if len(data) < length or kind not in (FULL, FIRST, MIDDLE, LAST) or zlib.crc32(data, _seed(kind)) != checksum:
            return
        yield at, kind, data


def _seed(kind: int) -> int:
    return zlib.crc32(bytes([kind]))


def row_of(record: Any) -> dict[str, Any] | None:
    """What a record of the history says, by key; None for records of other kinds."""
    if record.WhichOneof("record_type") != "history":
        return None
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}


def goes_on(segment: Segment) -> bool:
    """Whether W&B will append it to what the server has; one that does not takes the place of all before."""
    for _, record in read_records(segment.log):
        if record.WhichOneof("record_type") == "run":
            return bool(record.run.resume)
    return False


def trim(segment: Segment, before_step: int | None = None) -> int:
    """Cut a torn last record off a log, and rows that the run is about to repeat.

    A process that was killed leaves both. `wandb sync` would stop at the first, and upload no later segment either.

    Args:
        before_step: Rows of this step and later are repeated; None: none are.

    Returns:
        How many bytes were cut.
    """
    if not segment.log.is_file():
        return 0
    keep = len(FILE_HEADER)
    for end, record in read_records(segment.log):
        row = row_of(record) if before_step is not None else None
        if row is not None and row.get(STEP, -1) >= before_step:
            break
        keep = end
    size = segment.log.stat().st_size
    if keep < size:
        os.truncate(segment.log, keep)
    return max(0, size - keep)


def told_already(found: Iterable[Segment], from_step: int) -> set[tuple[int, str]]:
    """Step and key of what the server has of these segments, from a step on; it cannot be taken back."""
    told: set[tuple[int, str]] = set()
    for segment in found:
        if segment.uploaded and segment.log.is_file():
            for _, record in read_records(segment.log):
                row = row_of(record) or {}
                if row.get(STEP, -1) >= from_step:
                    told |= {(int(row[STEP]), key) for key in row if key != STEP and not key.startswith("_")}
    return told
