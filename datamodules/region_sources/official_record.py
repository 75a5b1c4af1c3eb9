"""One record of the CAPTURE release, as its LMDB and its TSV hold it: what the two sources have in common.

Source: Zhan et al., CAPTURE/tools/bp_feature/convert/convert_train_all.py of the Product1M repository. The release has
no class scores; records of ViLBERT's converter, from which theirs descends, do: `cls_prob`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.catalogues.record import ProductRecord
from datamodules.errors import DataError
from datamodules.region_sources.id_index import IdIndex
from datamodules.regions import BadRegionsError, Regions

log = logging.getLogger(__name__)


class OfficialRecord(NamedTuple):
    """As stored, nothing checked. Rows after the first `num_boxes` are padding."""

    image_id: Any
    features: Any  # float32, rows × D, or flat
    boxes: Any  # float32 px, rows × 4 (x1 y1 x2 y2), or flat
    num_boxes: Any  # int, or its digits
    image_h: Any  # px
    image_w: Any
    cls_prob: Any = None  # float32 probabilities, rows × C, or flat; None = none


class OfficialFile(ABC):
    """Records by image id, found through an index that takes one pass over the file.

    The file is opened for each record: that takes a tenth of a millisecond beside 300 kB to read, and no open file has
    to be pickled, forked or closed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index: IdIndex | None = None

    def prepare(self) -> int:
        """Index the file: reads all of it once, as fast as the disk delivers, and keeps 16 bytes a record."""
        log.info("%s: looking up the image ids; this reads the whole file once.", self.path)
        self._index = IdIndex.of(self.ids())
        if not len(self._index):
            raise DataError(f"region features {self.path}: no records; give the file that holds the features")
        if self._index.num_repeats:
            log.warning(
                "%s: %d records repeat the image id of an earlier one and are left out.",
                self.path,
                self._index.num_repeats,
            )
        return len(self._index)

    def __call__(self, record: ProductRecord) -> Regions | None:
        """The regions of the record's picture; None = it is not in the file, or no box was found in it.

        Raises:
            BadRegionsError: its record is damaged.
            DataError: the file has changed since it was indexed.
        """
        if self._index is None:
            self.prepare()
        assert self._index is not None
        place = self._index.place(record.id)
        if place is None:
            return None
        where = f"{self.path}, image '{record.id}'"
        try:
            found = self.read(place)
            if str(found.image_id) != record.id:
                raise DataError(f"{where}: its record is of {found.image_id!r} now; the file was changed. Build again.")
            return to_regions(found)
        except BadRegionsError as error:
            raise BadRegionsError(error.reason, f"{where}: {error}") from None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """See `RegionStore`."""

    @abstractmethod
    def ids(self) -> Iterator[tuple[str, Any]]:
        """(image id, place) of every record, in file order.

        Raises:
            DataError: the file is not what it should be.
        """

    @abstractmethod
    def read(self, place: Any) -> OfficialRecord:
        """The record at a place.

        Raises:
            BadRegionsError: it does not decode.
        """


def to_regions(record: OfficialRecord) -> Regions | None:
    """The real rows of a record; None if it has none. Scores are not in the release: ones.

    Raises:
        BadRegionsError: numbers or shapes that contradict each other.
    """
    num_boxes, height, width = (_count(key, getattr(record, key)) for key in ("num_boxes", "image_h", "image_w"))
    boxes, features = (_array(key, getattr(record, key)) for key in ("boxes", "features"))
    if boxes.dtype.kind not in "fiu" or features.dtype.kind not in "fiu":
        raise _malformed("boxes or features are not numbers")
    if boxes.size % 4:
        raise _malformed(f"{boxes.size} numbers in boxes are not four a box")
    boxes_R4 = boxes.reshape(-1, 4)
    features = _by_row(features, len(boxes_R4))
    if num_boxes > min(len(boxes_R4), len(features)):
        raise _malformed(
            f"num_boxes is {num_boxes}, but {len(boxes_R4)} boxes and features of shape {features.shape} are stored"
        )
    if not num_boxes:
        return None
    scores_R = np.ones(num_boxes, np.float32)
    regions = Regions(boxes_R4[:num_boxes], features[:num_boxes], scores_R, (height, width))
    if record.cls_prob is None:
        return regions
    class_scores = _by_row(_array("cls_prob", record.cls_prob), len(boxes_R4))
    if class_scores.dtype.kind not in "fiu" or class_scores.ndim != 2 or len(class_scores) < num_boxes:
        raise _malformed(f"num_boxes is {num_boxes}, but cls_prob of shape {class_scores.shape} is stored")
    return regions._replace(class_scores_RC=class_scores[:num_boxes])


def _array(key: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:  # lists of unequal length
        raise _malformed(f"{key} is no array ({error})") from None
    if not array.ndim:
        raise _malformed(f"{key} is one value, no array")
    return array


def _by_row(values: np.ndarray, num_rows: int) -> np.ndarray:
    """Flat values cut into rows; what cannot be cut is left as it is."""
    if values.ndim == 1 and num_rows and not values.size % num_rows:
        return values.reshape(num_rows, -1)
    return values


def _count(key: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0:
        raise _malformed(f"{key} is {value!r}, not a number of boxes or pixels")
    return number


def _malformed(message: str) -> BadRegionsError:
    return BadRegionsError("malformed_regions", f"{message}; run the detector on this picture again")
