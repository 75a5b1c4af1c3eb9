"""Pasted pictures by number, as batches: an endless training stream, and a fixed set to validate with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import DetectionBatch
from datamodules.batching import PREFETCH_BATCHES
from datamodules.catalogues.seeding import stream
from datamodules.detection.cut_outs import CutOut
from datamodules.detection.paste import paste_picture
from datamodules.detection.queries import detection_batch
from datamodules.shards import Place, limit_threads, unchanged

SHARED = 4  # cut-outs that two pictures draw from: with as many products on each, most are seen twice


class PastedBatches(Dataset):
    """Batch number -> batch. A picture depends on the key and its number alone, not on who asks for it.

    Pictures 2n and 2n + 1 draw from the same few cut-outs: what is shown twice can be told from all else
    (`InstanceContrast`).

    Args:
        key: what the pictures are seeded with, beside their numbers.
        cut_outs, photos: to paste from, and for grounds.
        size_px: side of a picture.
        max_products: most products of a picture.
        numbers: the pictures of a batch, by the batch's number; a step of training, or a share of a fixed set.
    """

    def __init__(
        self,
        key: tuple[object, ...],
        cut_outs: Sequence[CutOut],
        photos: Sequence[np.ndarray],
        size_px: int,
        max_products: int,
        numbers: Callable[[int], range],
    ) -> None:
        self.key, self.cut_outs, self.photos = key, cut_outs, photos
        self.size_px, self.max_products, self.numbers = size_px, max_products, numbers

    def __getitem__(self, batch: int) -> DetectionBatch:
        numbers, size = self.numbers(batch), self.size_px
        images_BSS3 = np.empty((len(numbers), size, size, 3), np.uint8)
        boxes, cut_outs = [], []
        for row, number in enumerate(numbers):
            few = self._few(number // 2)
            rng = stream(*self.key, number)
            chosen = [self.cut_outs[cut_out] for cut_out in few]
            picture = paste_picture(rng, chosen, self.photos, size, self.max_products)
            images_BSS3[row] = picture.pixels_SS3
            boxes.append(picture.boxes_N4)
            cut_outs.append(np.array(few)[picture.cut_outs_N])
        whole = [(1.0, 1.0, 0.0, 0.0)] * len(numbers)
        return detection_batch(list(numbers), images_BSS3, boxes, whole, [(size, size)] * len(numbers), cut_outs)

    def _few(self, pair: int) -> list[int]:
        rng = stream(*self.key, "cut-outs", pair)
        return rng.sample(range(len(self.cut_outs)), min(SHARED, len(self.cut_outs)))


class Numbers:
    """Pictures of a training batch: step s of rank r takes `batch_size` from (s × world size + r) × batch_size on."""

    def __init__(self, batch_size: int, place: Place) -> None:
        self.batch_size, self.place = batch_size, place

    def __call__(self, step: int) -> range:
        first = (step * self.place.world_size + self.place.rank) * self.batch_size
        return range(first, first + self.batch_size)


class _From:
    """Batch numbers without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


class TrainingPictures:
    """The training stream in intervals: each `iter()` continues it for exactly `len()` batches.

    One DataLoader iterator lives across intervals, so the workers go on filling their queues during an evaluation.

    Args:
        batches: of this rank, by step.
        length: batches in an interval.
        first_step: asked for the next step when the workers are started.
        handed_out: told after each batch; Lightning takes them one by one from a loader with a length, so what was
            handed out is what was trained on.
    """

    def __init__(
        self,
        batches: PastedBatches,
        length: int,
        first_step: Callable[[], int],
        handed_out: Callable[[], None],
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._batches, self._length, self._first_step, self._handed_out = batches, length, first_step, handed_out
        self._num_workers, self._pin_memory = num_workers, pin_memory
        self._iterator: Iterator[Any] | None = None  # under this name Lightning shuts its workers down at the end

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[DetectionBatch]:
        for _ in range(self._length):
            if self._iterator is None:
                steps = _From(self._first_step())
                self._iterator = iter(_open(self._batches, steps, self._num_workers, self._pin_memory))
            batch = next(self._iterator)
            self._handed_out()
            yield batch

    def close(self) -> None:
        """Stop the workers; the next `iter()` starts them where the stream stands."""
        if shut_down := getattr(self._iterator, "_shutdown_workers", None):
            shut_down()
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Empty, as the DataModule keeps the place; its presence tells Lightning that resuming mid-interval is safe."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do, see `state_dict`."""


class ValidationPictures:
    """One rank's share of a fixed set of pasted pictures, from the beginning at each `iter()`.

    Not a DataLoader itself: Lightning would put a sampler of its own into one, which repeats pictures to fill up ranks.

    Args:
        batches: whose numbers are those of `shares`.
        shares: the pictures of each of this rank's batches.
    """

    def __init__(self, batches: PastedBatches, shares: list[range], num_workers: int, pin_memory: bool) -> None:
        self._batches, self._shares = batches, shares
        self._num_workers, self._pin_memory = num_workers, pin_memory

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[DetectionBatch]:
        yield from _open(self._batches, range(len(self._shares)), self._num_workers, self._pin_memory)


def _open(batches: PastedBatches, sampler: Iterable[int], num_workers: int, pin_memory: bool) -> DataLoader:
    """A DataLoader over batch numbers; it keeps their order whatever the number of workers."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=sampler,
        collate_fn=unchanged,
        num_workers=num_workers,
        worker_init_fn=limit_threads if num_workers else None,
        prefetch_factor=PREFETCH_BATCHES if num_workers else None,
        pin_memory=pin_memory,
    )
