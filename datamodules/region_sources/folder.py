"""A folder with one `<item id>.npz` per picture: what anybody writes who runs a detector of their own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.catalogues.official_lines import check_id
from datamodules.catalogues.record import ProductRecord
from datamodules.errors import DataError
from datamodules.manifest import write_atomically
from datamodules.npz import MAX_BYTES
from datamodules.regions import BadRegionsError, Regions, pack_regions, unpack_regions

_SUFFIX = ".npz"


def write_region_file(
    folder: Path | str,
    item_id: str | int,
    boxes: Any,
    features: Any,
    size: tuple[int, int],
    scores: Any = None,
    class_scores: Any = None,
) -> Path:
    """Write the regions of one picture as `<folder>/<item_id>.npz`, in one step; an older file is replaced.

    Args:
        folder: created if need be.
        item_id: as in the list of the raw source.
        boxes: R × 4 numbers, px of the picture: x1, y1, x2, y2.
        features: R × D numbers within ±65504; stored as float16.
        size: height and width of the picture, px.
        scores: R numbers, None = ones. Stored; no model of this project reads them.
        class_scores: R × C probabilities over the detector's classes (softmax, not logits; background may be left out);
            stored as float16. None = none; all pictures of a folder have them, or none has.

    Returns:
        The file.

    Raises:
        DataError: what a build would refuse, with item id, array and remedy.
    """
    path = Path(folder) / f"{check_id(str(item_id), f'region file in {folder}')}{_SUFFIX}"
    ones = np.ones(np.shape(boxes)[:1], np.float32)
    regions = Regions(
        np.asarray(boxes),
        np.asarray(features),
        ones if scores is None else np.asarray(scores),
        size,
        None if class_scores is None else np.asarray(class_scores),
    )
    try:
        data = pack_regions(regions)
    except BadRegionsError as error:
        raise BadRegionsError(error.reason, f"{path}: {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return path


class RegionFolder:
    """`<item id>.npz` with `boxes`, `features`, `size`, perhaps `scores` and `class_scores`.

    As `write_region_file` or numpy writes it.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self) -> dict[str, Any]:
        """Number of files, and a hash of the first and the last by name. What changes between them is not noticed.

        Raises:
            DataError: there is no `.npz`.
        """
        number, first, last = self._scan()
        digest = hashlib.sha256()
        for name in (first, last):
            digest.update(name.encode() + (self.path / name).read_bytes())
        name = self.path.resolve().name
        return {"kind": "folder", "name": name, "records": number, "digest": digest.hexdigest()[:16]}

    def prepare(self) -> int:
        """Count the files; they are found by name."""
        return self._scan()[0]

    def __call__(self, record: ProductRecord) -> Regions | None:
        """The regions in the record's file.

        Raises:
            BadRegionsError: the file is damaged, or holds what a batch would not take.
        """
        path = self.path / f"{record.id}{_SUFFIX}"
        try:
            if path.stat().st_size > MAX_BYTES:
                raise BadRegionsError("malformed_regions", f"{path}: larger than {MAX_BYTES} bytes")
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BadRegionsError("malformed_regions", f"{path}: not readable ({error.strerror})") from None
        try:
            return unpack_regions(data)
        except BadRegionsError as error:
            raise BadRegionsError(error.reason, f"{path}: {error}") from None

    def _scan(self) -> tuple[int, str, str]:
        number, first, last = 0, "", ""
        with os.scandir(self.path) as entries:  # a million names: not listed, not sorted
            for entry in entries:
                if entry.name.endswith(_SUFFIX):
                    number += 1
                    first, last = min(first or entry.name, entry.name), max(last, entry.name)
        if not number:
            raise DataError(
                f"region features {self.path}: the folder holds no <item id>.npz; write one per picture with "
                "write_region_file (docs/regions.md)"
            )
        return number, first, last
