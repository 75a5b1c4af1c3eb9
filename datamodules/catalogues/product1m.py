"""Product1M: the official annotation files and the folder of downloaded pictures.

Source: Zhan et al., "Product1M: Towards Weakly Supervised Instance-Level Product Retrieval via Cross-Modal
Pretraining", ICCV 2021; lists as in the authors' repository.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from datamodules.catalogues.official_lines import OfficialLine, parse_line
from datamodules.catalogues.picture_files import (
    MAX_MEGAPIXELS,
    UnusablePictureError,
    find_picture,
    has_picture,
    read_picture,
)
from datamodules.catalogues.record import SPLITS, Kind, ProductRecord, Skipped, Split
from datamodules.downloads.failures import why_missing
from datamodules.errors import DataError

FILES: dict[Split, str] = {
    "train": "product1m_train_ossurl_v2.txt",
    "val": "product1m_dev_ossurl_v2.txt",
    "test": "product1m_test_ossurl_v2.txt",
    "gallery": "product1m_gallery_ossurl_v2.txt",
}


class LinePlace(NamedTuple):
    """Where a line stands: 1.18 million parsed lines would take a gigabyte, their places take 20 MB."""

    number: int  # from 1
    offset: int  # bytes from the start of the file
    twin: int = 0  # line that has this id already, -1 = one of another list; 0 = none


class LinePlan(Sequence[LinePlace]):
    """The lines of a list by place.

    Args:
        number_N, offset_N, twin_N: as in `LinePlace`.
        absent_N: lines that give no sample: no picture, or an id that was there before. True or False.
    """

    def __init__(self, number_N: np.ndarray, offset_N: np.ndarray, twin_N: np.ndarray, absent_N: np.ndarray):
        self._number_N, self._offset_N, self._twin_N, self.absent_N = number_N, offset_N, twin_N, absent_N

    def __len__(self) -> int:
        return len(self._offset_N)

    @overload
    def __getitem__(self, row: int) -> LinePlace: ...
    @overload
    def __getitem__(self, row: slice) -> LinePlan: ...
    def __getitem__(self, row: int | slice) -> LinePlace | LinePlan:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return LinePlace(int(self._number_N[row]), int(self._offset_N[row]), int(self._twin_N[row]))

    def take(self, rows: np.ndarray) -> LinePlan:
        """The lines of some rows, in their order."""
        return LinePlan(self._number_N[rows], self._offset_N[rows], self._twin_N[rows], self.absent_N[rows])


def _lines(path: Path) -> Iterator[tuple[LinePlace, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield LinePlace(number, offset), line
            offset += len(line)


def _parse(path: Path, place: LinePlace, line: bytes, labels_required: bool) -> OfficialLine:
    where = f"{path}:{place.number}"
    try:
        text = line.decode("utf-8-sig" if place.number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text; get the file again") from None
    return parse_line(text, where, labels_required)


def _twins(ids: Iterator[tuple[int, str]], hash_N: np.ndarray, elsewhere: set[str]) -> np.ndarray:
    """For each line the one that has its id already, as in `LinePlace`; `hash_N` spares keeping a million ids."""
    values, counts = np.unique(hash_N, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    twin_N = np.zeros(len(hash_N), dtype=np.int32)
    line_of: dict[str, int] = {}
    for row, (number, item_id) in enumerate(ids):
        if item_id in elsewhere:
            twin_N[row] = -1
        elif hash(item_id) in suspects and line_of.setdefault(item_id, number) != number:
            twin_N[row] = line_of[item_id]
    return twin_N


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Product1MFiles:
    """The published splits as they are; nothing is composed.

    An id that stands twice in a list counts once, and a training line with the id of a query or gallery item is left
    out: its picture would be known from training.

    Args:
        raw: folder with the four `product1m_*_ossurl_v2.txt` and the pictures (at their relative url, else
            `images/<id>.*`).
        seed: accepted like every source's; the published splits are fixed, so nothing here depends on it.
        max_megapixels: larger pictures are skipped.
        pictures: False = none is looked for, and records carry none: for shards of region features only.
    """

    raw: str
    seed: int = 0
    max_megapixels: int = MAX_MEGAPIXELS
    pictures: bool = True

    name = "product1m"

    def __post_init__(self) -> None:
        missing = [file for file in FILES.values() if not (Path(self.raw) / file).is_file()]
        if missing:
            raise DataError(
                f"{', '.join(missing)} not found in {self.raw}; give the folder with the four official annotation files"
            )
        if self.max_megapixels < 1:
            raise DataError(f"max_megapixels is {self.max_megapixels}; give at least 1")

    def _path(self, split: Split) -> Path:
        return Path(self.raw) / FILES[split]

    def lines(self, split: Split) -> Iterator[tuple[LinePlace, OfficialLine]]:
        """The lines of a list in order, one at a time.

        Raises:
            DataError: a malformed line.
        """
        path = self._path(split)
        for place, line in _lines(path):
            yield place, _parse(path, place, line, labels_required=split != "train")

    def plan(self, split: Split) -> LinePlan:
        """Checks every line of the list, looks for its picture and remembers where it stands.

        Raises:
            DataError: a malformed line, an empty list, or an id in two of the lists for evaluation.
        """
        numbers, offsets, hashes, absent = array("i"), array("q"), array("q"), array("b")
        for place, line in self.lines(split):
            numbers.append(place.number)
            offsets.append(place.offset)
            hashes.append(hash(line.id))
            absent.append(self.pictures and not has_picture(Path(self.raw), line.id, line.urls))
        if not numbers:
            raise DataError(f"{self._path(split)}: the list is empty")
        ids = ((place.number, line.id) for place, line in self.lines(split))
        elsewhere = self._evaluation_ids() if split == "train" else set()
        twin_N = _twins(ids, np.asarray(hashes), elsewhere)
        return LinePlan(
            np.asarray(numbers), np.asarray(offsets), twin_N, np.asarray(absent, dtype=bool) | (twin_N != 0)
        )

    def _evaluation_ids(self) -> set[str]:
        place_of: dict[str, str] = {}
        for split in SPLITS[1:]:
            for place, line in self.lines(split):
                here = f"{FILES[split]}:{place.number}"
                there = place_of.setdefault(line.id, here)
                if there.partition(":")[0] != FILES[split]:
                    raise DataError(f"{self.raw}: item id {line.id} stands in {there} and in {here}; remove one")
        return set(place_of)

    def make(self, split: Split, item: LinePlace) -> ProductRecord | Skipped:
        """Reads the line again and its picture, if pictures are wanted."""
        path = self._path(split)
        with path.open("rb") as file:
            file.seek(item.offset)
            line = _parse(path, item, file.readline(), labels_required=split != "train")
        if item.twin:
            where = f"line {item.twin}" if item.twin > 0 else "a list for evaluation"
            return Skipped(line.id, "duplicate_id", f"line {item.number}, also in {where}")
        if not line.caption:
            return Skipped(line.id, "empty_caption")
        image = b""
        if self.pictures:
            try:
                picture = find_picture(Path(self.raw), line.id, line.urls)
            except UnusablePictureError:
                return Skipped(line.id, *why_missing(Path(self.raw), line.id))
            try:
                image = read_picture(picture, self.max_megapixels)
            except UnusablePictureError as error:
                return Skipped(line.id, error.reason)
        kind: Kind = "unknown" if not line.labels else "single" if len(line.labels) == 1 else "multi"
        return ProductRecord(line.id, image, line.caption, line.labels, kind, next(filter(None, line.urls), ""))

    def settings(self) -> dict[str, Any]:
        digests = {split: _digest(self._path(split)) for split in SPLITS}
        raw = Path(self.raw).resolve().name
        settings = {"source": self.name, "raw": raw, "max_megapixels": self.max_megapixels, "list_sha256": digests}
        # Only when off, so that folders built before there was a choice stay up to date.
        return settings if self.pictures else settings | {"pictures": False}
