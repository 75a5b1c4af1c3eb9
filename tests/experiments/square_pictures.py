"""A stand-in for PastedPictures: bright squares on grey, drawn from their number; no shard is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from datamodules.batch import DetectionBatch

SIDE_PX = 20


class SquarePictures(LightningDataModule):
    """Two squares per picture; the interface of datamodules.PastedPictures as far as experiments use it."""

    cut_outs = {"source": "train", "outline": 3, "tile": 5}  # noqa: RUF012

    def __init__(
        self,
        folder: str = "data/synthetic",
        batch_size: int = 4,
        eval_batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
        steps_per_epoch: int = 3,
    ) -> None:
        super().__init__()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.steps_per_epoch = seed, steps_per_epoch
        self.image_size_px = 0

    def use_image_size(self, px: int) -> None:
        self.image_size_px = px

    def setup(self, stage: str | None = None) -> None:
        assert self.image_size_px

    def eval_names(self, stage: str) -> tuple[str, ...]:
        return ("pasted", "val") if stage == "val" else ("test",)

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        first = self.trainer.global_step * self.batch_size
        return _Loader(self, first, self.steps_per_epoch)

    def val_dataloader(self) -> Any:
        return [_Loader(self, 10**6, 2), _Loader(self, 2 * 10**6, 2)]

    def test_dataloader(self) -> Any:
        return [_Loader(self, 3 * 10**6, 2)]


class _Loader:
    def __init__(self, data: SquarePictures, first: int, steps: int) -> None:
        self.data, self.first, self.steps = data, first, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[DetectionBatch]:
        for _ in range(self.steps):
            numbers = range(self.first, self.first + self.data.batch_size)
            self.first += self.data.batch_size
            yield _batch(numbers, self.data.seed, self.data.image_size_px)


def _batch(numbers: range, seed: int, size_px: int) -> DetectionBatch:
    images_B3HW = torch.full((len(numbers), 3, size_px, size_px), 90, dtype=torch.uint8)
    boxes_BN4 = torch.zeros(len(numbers), 2, 4)
    for row, number in enumerate(numbers):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        corners = torch.randint(0, size_px - SIDE_PX, (2, 2), generator=draw)
        for n, (x, y) in enumerate(corners.tolist()):
            images_B3HW[row, :, y : y + SIDE_PX, x : x + SIDE_PX] = 200 + 40 * n
            boxes_BN4[row, n] = torch.tensor([x, y, x + SIDE_PX, y + SIDE_PX])
    return DetectionBatch(
        torch.tensor(list(numbers)),
        images_B3HW,
        boxes_BN4,
        torch.ones(len(numbers), 2, dtype=torch.bool),
        torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(len(numbers), 4),
        torch.full((len(numbers), 2), size_px),
    )
