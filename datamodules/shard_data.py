"""What every LightningDataModule over a shard folder has: facts of the folder, one training loader, a place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.errors import DataError
from datamodules.loaders import Batch, TrainLoader
from datamodules.manifest import Manifest
from datamodules.shard_folder import ShardFolder
from datamodules.shards import Place

_LEAST = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0, "steps_per_epoch": 1}


class ShardData(LightningDataModule):
    """Base of the DataModules. A subclass makes the batches and keeps the place in its training stream.

    Args:
        folder: shard folder, as `make data` writes it.
        num_workers: loader processes per rank; 0 loads in the training process.
        pin_memory: None = when training on CUDA.
    """

    def __init__(self, folder: str, num_workers: int, pin_memory: bool | None) -> None:
        super().__init__()
        # With fewer batches than ranks some rank has none; the split is covered exactly once all the same.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.folder, self.num_workers, self._pin_memory = Path(folder), num_workers, pin_memory
        self._contents = ShardFolder(self.folder)
        self._train_loader: TrainLoader[Any] | None = None

    # ---- what is in the folder -------------------------------------------------------------------------------------

    @property
    def manifest(self) -> Manifest:
        """The folder's table of contents."""
        return self._contents.manifest

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the data set."""
        return self.manifest["name"]

    @property
    def data_hash(self) -> str:
        """Hash of all a model can see or is scored on."""
        return self.manifest["data_hash"]

    def num_samples(self, split: str) -> int:
        """Samples in a split."""
        return self._contents.num_samples(split)

    def training_ids(self, rows: Sequence[int]) -> list[str]:
        """What the samples of a training batch are called, for messages; here their numbers."""
        return [str(row) for row in rows]

    # ---- the training loader ---------------------------------------------------------------------------------------

    def _start_training(
        self, open_loader: Callable[[], DataLoader], length: int, receive: Callable[[Any], Batch]
    ) -> TrainLoader[Batch]:
        """The one training loader; the workers of an earlier one are stopped. Arguments are `TrainLoader`'s."""
        self._stop_workers()
        loader = self._train_loader = TrainLoader(open_loader, length, receive)
        return loader

    def _stop_workers(self) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers of the training stream."""
        if stage == "fit":
            self._stop_workers()

    # ---- where this process runs -----------------------------------------------------------------------------------

    @property
    def num_streams(self) -> int:
        """Worker streams of this rank: without worker processes the rank is its own single worker."""
        return max(1, self.num_workers)

    @property
    def _place(self) -> Place:
        # From the trainer, never from the environment: Lightning's spawned workers do not have RANK.
        if self.trainer is None:
            return Place(0, 1, self.num_streams)
        return Place(self.trainer.global_rank, self.trainer.world_size, self.num_streams)

    @property
    def _pins(self) -> bool:
        if self._pin_memory is not None:
            return self._pin_memory
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _for_every_rank(self, split: str, batch_size: int) -> int:
        """A global batch, of that size or small enough that each rank has one of the split."""
        # Lightning leaves out the evaluation on a rank without batches, and the others would wait for it forever.
        return min(batch_size, max(1, self.num_samples(split) // self._place.world_size))


def check_numbers(arguments: Mapping[str, Any], **more: int) -> None:
    """Refuse numbers that are too small among a constructor's arguments; `more` are minima of its own.

    Raises:
        DataError: naming the key.
    """
    for key, minimum in {**_LEAST, **more}.items():
        value = arguments[key]
        if value is not None and value < minimum:
            raise DataError(f"data.{key}={value}: should be at least {minimum}.")
