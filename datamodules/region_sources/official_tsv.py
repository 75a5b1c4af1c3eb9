"""The TSV of the CAPTURE release, from which its LMDB is made: one line per picture, arrays as base64 of float32.

That of ViLBERT has cls_prob in the place of the title. Neither has a header; without one the seventh column is a title.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.region_sources.official_record import OfficialFile, OfficialRecord
from datamodules.regions import BadRegionsError

log = logging.getLogger(__name__)

_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "title")  # the title may be missing
_NUM_READ = 6
_CLASS_SCORES = "cls_prob"  # the seventh column if a header says so, before the title if there is one
_MAX_LINE = 64 << 20  # bytes; 36 × 2048 take 0.4 MB. Bounds what a file without line ends makes us hold
_HASHED = 1 << 20  # bytes from either end


def is_tsv(path: Path) -> bool:
    """Whether the first line of a file has the columns."""
    with path.open("rb") as file:
        return _has_columns(file.readline(_MAX_LINE))


class OfficialTsv(OfficialFile):
    """Region features by image id from the TSV.

    Args:
        path: the file.
    """

    def settings(self) -> dict[str, Any]:
        """Bytes, and a hash of the first and the last MiB; to count lines, half a terabyte would have to be read."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            digest = hashlib.sha256(file.read(_HASHED))
            file.seek(max(0, size - _HASHED))
            digest.update(file.read(_HASHED))
        return {"kind": "tsv", "name": self.path.resolve().name, "bytes": size, "digest": digest.hexdigest()[:16]}

    def ids(self) -> Iterator[tuple[str, int]]:
        """(image id, byte offset) of every record.

        Lines without the columns are passed over: titles hold line ends, and the authors' converter drops bad lines.

        Raises:
            DataError: the columns stand in another order.
        """
        others, first_other, offset = 0, 0, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, _MAX_LINE), b""), start=1):
                if number == 1 and line.startswith(b"image_id\t"):
                    self._check_header(line)
                elif _has_columns(line):
                    yield line.partition(b"\t")[0].decode("utf-8", "replace"), offset
                elif line.strip():
                    others, first_other = others + 1, first_other or number
                offset += len(line)
        if others:
            log.warning(
                "%s: %d lines without the columns are passed over, first line %d.", self.path, others, first_other
            )

    def read(self, place: int) -> OfficialRecord:
        """The record at a byte offset.

        Raises:
            BadRegionsError: an array is not base64 of float32.
        """
        names = (*_COLUMNS[:_NUM_READ], _CLASS_SCORES if self._has_class_scores else "title", "rest")
        with self.path.open("rb") as file:
            file.seek(place)
            fields = dict(zip(names, file.readline(_MAX_LINE).split(b"\t", len(names) - 1), strict=False))
        try:
            boxes, features, *class_scores = (
                np.frombuffer(base64.b64decode(fields[key].strip(), validate=True), "<f4")
                for key in ("boxes", "features", *((_CLASS_SCORES,) if self._has_class_scores else ()))
            )
            return OfficialRecord(
                fields["image_id"].decode("utf-8", "replace"),
                features,
                boxes,
                *(fields[key].decode("ascii") for key in ("num_boxes", "image_h", "image_w")),
                *class_scores,
            )
        except (KeyError, ValueError) as error:  # of base64, of another length than 4 bytes a number, of ASCII
            message = f"the record at byte {place} does not decode ({error}); run the detector on this picture again"
            raise BadRegionsError("malformed_regions", message) from None

    def _check_header(self, line: bytes) -> None:
        names = _names(line)
        if names[:_NUM_READ] != _COLUMNS[:_NUM_READ] or _CLASS_SCORES in names[_NUM_READ + 1 :]:
            raise DataError(
                f"region features {self.path}: the columns are {', '.join(names)}; write them in the order "
                f"{', '.join(_COLUMNS)}, with {_CLASS_SCORES} before the title if there are class scores"
            )

    @cached_property
    def _has_class_scores(self) -> bool:
        with self.path.open("rb") as file:
            line = file.readline(_MAX_LINE)
        return line.startswith(b"image_id\t") and _CLASS_SCORES in _names(line)[_NUM_READ : _NUM_READ + 1]


def _names(line: bytes) -> tuple[str, ...]:
    return tuple(line.decode("utf-8", "replace").split())


def _has_columns(line: bytes) -> bool:
    return line.count(b"\t") >= _NUM_READ - 1
