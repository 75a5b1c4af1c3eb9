"""The LightningDataModule a detector is trained with: copy-and-paste pictures out of an unlabelled shard folder."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from datamodules.batch import DetectionBatch
from datamodules.detection.collection import Collection, Source, collect, source_of
from datamodules.detection.queries import DetectionBatchMaker, PictureLoader
from datamodules.detection.streams import Numbers, NumbersFrom, PastedBatches, ValidationPictures
from datamodules.errors import DataError
from datamodules.loaders import TrainLoader, open_stream
from datamodules.manifest import check_shard_files
from datamodules.shard_data import ShardData, check_numbers
from datamodules.shard_order import evaluation_batches

_SPLITS_OF_STAGE: dict[str, tuple[str, ...]] = {"fit": ("val",), "validate": ("val",), "test": ("test",)}


class PastedPictures(ShardData):
    """Pasted pictures to train and to validate on, and the queries of a shard folder with their true boxes.

    Products are cut out of single-product photos by their ground; no label and no true box takes part in training. A
    tenth of the cut-outs is held out: the "pasted" validation pictures are made of those alone, and are the same in
    every run. The object keeps its place in the stream: a second `fit` on it goes on, a new object starts over.

    Args:
        folder: shard folder, as `make data` writes it, with pictures.
        batch_size: training pictures per process and step.
        eval_batch_size: pictures in a global evaluation batch.
        num_workers: loader processes per rank; 0 loads in the training process.
        seed: of the training pictures.
        steps_per_epoch: batches per process in an interval.
        num_cut_outs: most photos that are cut and kept in memory, held-out ones included.
        max_products: most products of a pasted picture.
        num_pasted: pasted pictures to validate with.
        pin_memory: None = when training on CUDA.

    Raises:
        DataError: a number out of range.
    """

    def __init__(
        self,
        folder: str = "data/product1m",
        batch_size: int = 8,
        eval_batch_size: int = 32,
        num_workers: int = 1,
        seed: int = 0,
        steps_per_epoch: int = 250,
        num_cut_outs: int = 2000,
        max_products: int = 6,
        num_pasted: int = 200,
        pin_memory: bool | None = None,
    ) -> None:
        check_numbers(locals(), num_cut_outs=2, max_products=1, num_pasted=1)
        super().__init__(folder, num_workers, pin_memory)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.steps_per_epoch = seed, steps_per_epoch
        self.num_cut_outs, self.max_products, self.num_pasted = num_cut_outs, max_products, num_pasted
        self.image_size_px = 128
        self._collected: tuple[int, Collection] | None = None  # for which picture size
        self._steps = 0  # batches handed out for training on this rank

    # ---- what is in the folder -------------------------------------------------------------------------------------

    def num_samples(self, split: str) -> int:
        """Samples in a split of the folder; of "pasted", the pictures to validate with."""
        return self.num_pasted if split == "pasted" else super().num_samples(split)

    @property
    def source(self) -> Source:
        """The split the cut-outs come from: "train", or "gallery" where the train split knows no single products."""
        return source_of(self._contents)

    @property
    def collection(self) -> Collection:
        """The cut-outs; read and cut on first use, for the picture size of that moment."""
        if self._collected is None or self._collected[0] != self.image_size_px:
            self._collected = self.image_size_px, collect(self._contents, self.image_size_px, self.num_cut_outs)
        return self._collected[1]

    @property
    def cut_outs(self) -> dict[str, Any]:
        """For the record of a run: source, training cut-outs by how they were cut, held-out ones, photos left out."""
        found = self.collection
        left_out = {"unclear": found.unclear, "unreadable": sum(found.skipped.values())}
        return {"source": found.source, **found.counts(), "held_out": len(found.held_out), **left_out}

    def use_image_size(self, px: int) -> None:
        """Take over the side of the detector's square picture; before `setup`.

        Raises:
            DataError: too small to show anything.
        """
        if px < 32:
            raise DataError(f"image_size_px={px}: a detector's picture should have a side of at least 32 px.")
        self.image_size_px = px

    # ---- Lightning -------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Check the folder against its manifest; where pictures are going to be pasted, cut the products out.

        Raises:
            DataError: with the remedy.
        """
        name = getattr(stage, "value", stage)  # Lightning hands over an enum, whose str() is not its value
        splits = _SPLITS_OF_STAGE.get(name or "", ("val", "test"))
        pastes = "val" in splits
        check_shard_files(self.folder, {*splits, *([self.source] if pastes else [])}, self.manifest)
        self._check_pictures()
        if pastes:
            _ = self.collection

    def train_dataloader(self) -> TrainLoader[DetectionBatch]:
        """The endless stream, from where it stands."""
        collection = self.collection
        batches = PastedBatches(
            ("pasted", self.seed),
            collection.train,
            collection.train_photos,
            self.image_size_px,
            self.max_products,
            Numbers(self.batch_size, self._place),
        )

        def open_loader() -> DataLoader:
            return open_stream(batches, self.num_workers, self._pins, NumbersFrom(self._steps))

        return self._start_training(open_loader, self.steps_per_epoch, self._receive)

    def eval_names(self, stage: str) -> tuple[str, ...]:
        """What the loaders of a stage ("val" or "test") show, in their order."""
        return ("pasted", "val") if stage == "val" else ("test",)

    def val_dataloader(self) -> list[ValidationPictures | PictureLoader]:
        """Loaders of the held-out pasted pictures and of the validation queries."""
        return [self.pasted_loader(), self.query_loader("val")]

    def test_dataloader(self) -> list[PictureLoader]:
        """The loader of the test queries."""
        return [self.query_loader("test")]

    def pasted_loader(self) -> ValidationPictures:
        """This rank's share of the pasted validation pictures."""
        place, collection = self._place, self.collection
        global_batch = self._for_every_rank("pasted", self.eval_batch_size)
        shares = evaluation_batches(self.num_pasted, global_batch, place.rank, place.world_size)
        batches = PastedBatches(
            ("pasted to validate with",),
            collection.held_out,
            collection.held_out_photos,
            self.image_size_px,
            self.max_products,
            shares.__getitem__,
        )
        return ValidationPictures(batches, shares, self.num_workers, self._pins)

    def query_loader(self, split: str) -> PictureLoader:
        """This rank's share of a split's pictures with their true boxes (val, test)."""
        maker = DetectionBatchMaker(self.folder, self.image_size_px, true_boxes=split in ("val", "test"))
        shards, global_batch = self._contents.shards(split), self._for_every_rank(split, self.eval_batch_size)
        return PictureLoader(self.folder, shards, maker, global_batch, self._place, self.num_workers, self._pins)

    def prediction_loader(self, split: str, number: int) -> PictureLoader:
        """All pictures of one shard in order, on this rank alone; true boxes in val and test only.

        Raises:
            DataError: while iterating, at a picture that does not decode, with the sample's id.
        """
        self._check_pictures()
        shards = self._contents.shards(split)
        first_row = sum(shard["samples"] for shard in shards[:number])
        maker = DetectionBatchMaker(self.folder, self.image_size_px, split in ("val", "test"), first_row)
        place = self._place._replace(rank=0, world_size=1)
        return PictureLoader(
            self.folder, [shards[number]], maker, self.eval_batch_size, place, self.num_workers, self._pins
        )

    def state_dict(self) -> dict[str, Any]:
        """Place in the training stream, the same on every rank."""
        return {"steps": self._steps} if self._steps else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stood."""
        self._stop_workers()
        steps = state_dict.get("steps", 0)
        if not isinstance(steps, int) or steps < 0:
            raise DataError("The checkpoint's training-stream position is malformed; resume from an older one.")
        self._steps = steps

    def _receive(self, batch: DetectionBatch) -> DetectionBatch:
        self._steps += 1
        return batch

    def _check_pictures(self) -> None:
        if not self.manifest["pictures"]:
            raise DataError(
                f"{self.folder} holds no pictures, only regions: a detector looks at pictures. Build the folder with "
                "them, or give data.folder another one."
            )
