"""Pictures of a shard folder as a detector sees them: on squares, with the true boxes where evaluation knows them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from datamodules.batch import DetectionBatch
from datamodules.batching import PICTURE, RECORD, BatchMaker, RawSample
from datamodules.errors import DataError
from datamodules.loaders import open_stream
from datamodules.manifest import ShardEntry
from datamodules.pictures import PictureError, upright_size
from datamodules.regions import BOX_TOLERANCE_PX
from datamodules.shards import EvaluationStream, Failure, Place
from datamodules.transforms import picture_to_square


class DetectionBatchMaker:
    """Collects samples into batches, as `EvaluationStream` asks for it.

    Args:
        folder: shard folder, for messages.
        size_px: side of the square.
        true_boxes: read the records' boxes; never for a split that is trained on.
        first_row: of the first shard the stream reads, where that is not the first of its split.
    """

    def __init__(self, folder: Path, size_px: int, true_boxes: bool, first_row: int = 0) -> None:
        self.folder, self.size_px, self.true_boxes, self.first_row = folder, size_px, true_boxes, first_row
        self.start(0)

    def start(self, batch_size: int) -> None:
        """Forget what was collected and make room for a batch."""
        self._images_BSS3 = np.empty((batch_size, self.size_px, self.size_px, 3), np.uint8)
        self._rows: list[int] = []
        self._boxes: list[np.ndarray] = []
        self._letterboxes: list[tuple[float, ...]] = []
        self._sizes: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sample: RawSample, _seed: tuple[int, ...] | None) -> None:
        """Decode one sample into the next free row.

        Raises:
            DataError: damaged record or picture, or boxes that cannot be; nothing is left out of an evaluation.
        """
        where = f"{self.folder / sample.file}, sample "
        remedy = (
            f"List all damaged samples with `python -m experiments data verify {self.folder}`, then repair the raw "
            "data and build again with ARGS=--again."
        )
        try:
            record = json.loads(sample.members[RECORD])
            where += f"'{record['id']}'"
        except (KeyError, TypeError, ValueError, RecursionError):
            where += f"'row {sample.row + self.first_row}'"
            raise DataError(f"{where}: its .{RECORD} is missing or malformed. {remedy}") from None
        if PICTURE not in sample.members:
            raise DataError(f"{where}: it has no .{PICTURE}. {remedy}")
        try:
            box = picture_to_square(sample.members[PICTURE], self._images_BSS3[len(self._rows)])
            width, height = upright_size(sample.members[PICTURE])
        except PictureError as error:
            raise DataError(f"{where}: the picture does not decode ({error}). {remedy}") from None
        boxes_N4 = np.zeros((0, 4), np.float32)
        if self.true_boxes and record.get("boxes"):
            boxes_N4 = box.boxes(_checked_boxes(record["boxes"], width, height, where))
        self._rows.append(sample.row + self.first_row)
        self._boxes.append(boxes_N4)
        self._letterboxes.append((box.scale_x, box.scale_y, box.left_px, box.top_px))
        self._sizes.append((height, width))

    def finish(self) -> DetectionBatch:
        """The batch of what was added."""
        return detection_batch(
            self._rows, self._images_BSS3[: len(self._rows)], self._boxes, self._letterboxes, self._sizes
        )


def detection_batch(
    rows: list[int],
    images_BSS3: np.ndarray,
    boxes: list[np.ndarray],
    letterboxes: Sequence[tuple[float, ...]],
    sizes: list[tuple[int, int]],
    cut_outs: list[np.ndarray] | None = None,
) -> DetectionBatch:
    """Tensors of one batch; boxes are padded to the most that one of its pictures has."""
    most = max((len(boxes_N4) for boxes_N4 in boxes), default=0)
    boxes_BN4, box_mask_BN = torch.zeros(len(rows), most, 4), torch.zeros(len(rows), most, dtype=torch.bool)
    for row, boxes_N4 in enumerate(boxes):
        boxes_BN4[row, : len(boxes_N4)] = torch.from_numpy(boxes_N4)
        box_mask_BN[row, : len(boxes_N4)] = True
    cut_outs_BN = None if cut_outs is None else torch.full(box_mask_BN.shape, -1, dtype=torch.int64)
    if cut_outs_BN is not None and cut_outs is not None:
        cut_outs_BN[box_mask_BN] = torch.from_numpy(np.concatenate(cut_outs))
    return DetectionBatch(
        index_B=torch.tensor(rows, dtype=torch.int64),
        images_B3HW=torch.from_numpy(images_BSS3).permute(0, 3, 1, 2),  # channels last, as convolutions like it
        boxes_BN4=boxes_BN4,
        box_mask_BN=box_mask_BN,
        letterbox_B4=torch.tensor(letterboxes, dtype=torch.float32).reshape(-1, 4),
        size_B2=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
        cut_outs_BN=cut_outs_BN,
    )


class PictureLoader:
    """Batches of some shards' pictures, each exactly once over all ranks, from the beginning at each `iter()`.

    Args:
        folder: shard folder.
        shards: to be read, in order.
        maker: makes the batches.
        batch_size: pictures in a global batch.
        place: this rank, and how many workers it has.
        num_workers: loader processes; 0 = this one.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[ShardEntry],
        maker: DetectionBatchMaker,
        batch_size: int,
        place: Place,
        num_workers: int,
        pin_memory: bool = False,
    ) -> None:
        # The stream only starts, fills and empties its maker, which ours does under the same names.
        self._stream = EvaluationStream(folder, shards, cast(BatchMaker, maker), batch_size, place)
        self._num_workers, self._pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[DetectionBatch]:
        for delivered in open_stream(self._stream, self._num_workers, self._pin_memory):
            if isinstance(delivered, Failure):
                raise DataError(delivered.message)
            yield delivered


def _checked_boxes(values: Any, width: int, height: int, where: str) -> np.ndarray:
    """True boxes of a record, px of the upright picture, clipped to it.

    Raises:
        DataError: not numbers, NaN, without area, or outside the picture.
    """
    try:
        boxes_N4 = np.array(values, np.float64)
        if boxes_N4.ndim != 2 or boxes_N4.shape[1] != 4:
            raise ValueError
    except (TypeError, ValueError):
        raise DataError(f"{where}: 'boxes' are not rows of four numbers. {_BOXES_REMEDY}") from None
    inside_N4 = np.clip(boxes_N4, 0, (width, height, width, height))
    for number, (box, inside) in enumerate(zip(boxes_N4, inside_N4, strict=True)):
        if not np.isfinite(box).all():
            what = "holds NaN or infinity"
        elif np.abs(box - inside).max() > BOX_TOLERANCE_PX:
            what = f"lies outside the picture of {width} × {height} px"
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            what = "has no area"
        else:
            continue
        raise DataError(f"{where}: 'boxes' row {number} is {box.tolist()} and {what}. {_BOXES_REMEDY}")
    return inside_N4


_BOXES_REMEDY = (
    "Give x1, y1, x2, y2 in pixels of the upright picture, x1 < x2 and y1 < y2, or no boxes at all, and build the "
    "folder again."
)
