"""Pasted pictures by number, as batches: an endless training stream, and a fixed set to validate with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
from torch.utils.data import Dataset

from datamodules.batch import DetectionBatch
from datamodules.catalogues.seeding import stream
from datamodules.detection.cut_outs import CutOut
from datamodules.detection.paste import paste_picture
from datamodules.detection.queries import detection_batch
from datamodules.loaders import open_stream
from datamodules.shards import Place

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


class NumbersFrom:
    """Batch numbers without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return count(self.first)


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
        yield from open_stream(self._batches, self._num_workers, self._pin_memory, range(len(self._shares)))
