"""Region features on disk as the CAPTURE release writes them, with its encodings spelt out."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np

from datamodules.catalogues.record import ProductRecord
from datamodules.regions import Regions

SIZE_HW = (60, 80)
FIELDS = ("features", "boxes", "num_boxes", "image_h", "image_w", "image_id", "caption")


def record(item_id: str) -> ProductRecord:
    """A record as a catalogue without pictures yields it."""
    return ProductRecord(item_id, b"", "标题", (), "unknown", "x")


def some_regions(item_id: str, num: int = 3, width: int = 8) -> Regions:
    """Boxes within `SIZE_HW` and float32 features, a function of the id."""
    rng = np.random.default_rng(list(item_id.encode()))
    height, wide = SIZE_HW
    corners = rng.uniform(0, 1, (num, 2, 2)) * (wide, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    features = rng.normal(size=(num, width)).astype(np.float32)
    return Regions(boxes, features, np.ones(num, np.float32), SIZE_HW)


def some_class_scores(item_id: str, num: int = 3, classes: int = 5) -> np.ndarray:
    """float32 probabilities R × C, a function of the id."""
    rng = np.random.default_rng([1, *item_id.encode()])
    return rng.dirichlet(np.full(classes, 0.5), num).astype(np.float32)


def datapoint(item_id: str, **changes: Any) -> list[Any]:
    """What the authors' converter yields for a picture; like theirs, `num_boxes` is text."""
    regions = some_regions(item_id)
    fields = {
        "features": regions.features_RD,
        "boxes": regions.boxes_R4,
        "num_boxes": str(len(regions.boxes_R4)),
        "image_h": SIZE_HW[0],
        "image_w": SIZE_HW[1],
        "image_id": item_id,
        "caption": "标题",
    }
    return [(fields | changes)[key] for key in FIELDS]


def packed(value: Any) -> bytes:
    """As tensorpack packs with msgpack and msgpack_numpy."""
    return msgpack.packb(value, use_bin_type=True, default=_encoded)


def _encoded(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray):
        shape = list(value.shape)
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": shape, b"data": value.tobytes()}
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


def write_lmdb(
    path: Path, values: Iterable[Any], dumps: Callable[[Any], bytes] = packed, directory: bool = False
) -> Path:
    """As `LMDBSerializer.save`: running keys of eight digits, then the list of keys."""
    if directory:
        path.mkdir()
    with lmdb.open(str(path), subdir=directory, map_size=64 << 20) as environment:
        with environment.begin(write=True) as transaction:
            keys = []
            for number, value in enumerate(values):
                keys.append(f"{number:08}".encode())
                transaction.put(keys[-1], dumps(value))
            transaction.put(b"__keys__", dumps(keys))
        environment.sync()
    return path


def vilbert_datapoint(item_id: str, **changes: Any) -> list[Any]:
    """What ViLBERT's converter yields: the same, with the class scores in the second place."""
    features, *others = datapoint(item_id, **changes)
    return [features, some_class_scores(item_id), *others]


def tsv_line(item_id: str, num_boxes: int | str | None = None, title: str = "标题", regions: Any = None) -> str:
    """A line of the TSV, without its end; regions with class scores have them before the title."""
    regions = regions or some_regions(item_id)
    arrays = (*regions[:2], *([] if regions.class_scores_RC is None else [regions.class_scores_RC]))
    coded = (base64.b64encode(part.tobytes()).decode() for part in arrays)
    number = len(regions.boxes_R4) if num_boxes is None else num_boxes
    return "\t".join([item_id, str(SIZE_HW[1]), str(SIZE_HW[0]), str(number), *coded, title])


def write_tsv(path: Path, lines: Iterable[str]) -> Path:
    """A TSV of lines."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
