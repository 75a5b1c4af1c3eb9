"""The LightningDataModule over a shard folder, of Product1M or of any other catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import InputSpec, ProductBatch
from datamodules.batching import BatchMaker
from datamodules.caption_entities import CaptionEntities, check_tokenizer, node_tokens
from datamodules.entities import EntityTable, open_rows, read_table
from datamodules.errors import DataError
from datamodules.instance_batches import InstanceBatchMaker
from datamodules.instances import DETECTED, InstanceOptions, check_boxes_known, check_options
from datamodules.loaders import EvaluationLoader, Receiver, TrainLoader, open_stream
from datamodules.manifest import check_shard_files
from datamodules.region_sets import check_name, check_region_set
from datamodules.shard_data import ShardData, check_numbers
from datamodules.shards import Delivery, EvaluationStream, Failure, Place, TrainStream
from datamodules.stream_state import StreamState, gather_states, restore
from datamodules.tokenizer import AnyTokenizer, check_vocabulary, load_tokenizer
from datamodules.transforms import Jitter

_SPLITS_OF_STAGE = {"fit": ("train", "val", "gallery"), "validate": ("val", "gallery"), "test": ("test", "gallery")}


class Product1M(ShardData):
    """Batches of image-caption pairs from a shard folder.

    Training is one endless stream cut into intervals of `steps_per_epoch` batches; evaluation sees each item once.
    The object keeps its place in the stream: a second `fit` on it goes on, a new object starts over.

    Args:
        folder: shard folder, as `make data` writes it.
        batch_size: training pairs per process and step.
        eval_batch_size: items in a global evaluation batch.
        num_workers: loader processes per rank; 0 loads in the training process.
        seed: of the order and augmentation of the training stream.
        steps_per_epoch: batches per process in an interval; None = as many as fit in one pass.
        pin_memory: None = when training on CUDA.
        augment: light jitter of scale and place of training pictures ("grid" input only).
        region_set: the region set whose regions are read, see `region_sets`; None = those in the shards, if any.
        max_regions: the most regions read of a picture or an instance, those with the highest scores; None = all.
        instances: also evaluate queries by instance, one row per box (docs/instances.md): "detected", the boxes of the
            regions the folder is read with, "true", the known ones, which are an upper bound; both, or none.
        instance_min_score: a detected box with less is no instance; a query without any is one, its whole picture.
        max_instances: the most instances of a query, best first.
        instance_nms_iou: of two detected boxes that overlap by more, the better one is kept.
        crop_margin: added on every side of a box that is cropped ("grid" input), as a share of its longer side.

    Raises:
        DataError: a number out of range, a set that cannot be called that.
    """

    def __init__(
        self,
        folder: str = "data/product1m",
        batch_size: int = 64,
        eval_batch_size: int = 128,
        num_workers: int = 1,
        seed: int = 0,
        steps_per_epoch: int | None = None,
        pin_memory: bool | None = None,
        augment: bool = True,
        region_set: str | None = None,
        instances: list[str] = [],  # noqa: B006  (read only; jsonargparse shows it as the default)
        instance_min_score: float = 0.5,
        max_instances: int = 10,
        instance_nms_iou: float = 0.5,
        crop_margin: float = 0.05,
        max_regions: int | None = None,
    ) -> None:
        check_numbers(locals(), max_regions=1)
        super().__init__(folder, num_workers, pin_memory)
        self.instances = tuple(instances)
        self.instance_options = InstanceOptions(instance_min_score, max_instances, instance_nms_iou, crop_margin)
        check_options(self.instances, self.instance_options)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.augment = seed, augment
        self.region_set = None if region_set is None else check_name(region_set)
        self.max_regions = max_regions
        self._interval = steps_per_epoch
        self.input_spec = InputSpec()
        self._stream = StreamState.fresh(self.num_streams)
        self._receiver = Receiver()  # of the training stream

    # ---- what is in the folder -------------------------------------------------------------------------------------

    def ids(self, split: str) -> np.ndarray:
        """Item ids in row order, as strings (val, test, gallery)."""
        return self._contents.ids(split)

    def labels(self, split: str) -> list[tuple[str, ...]]:
        """Labels in row order, repeats kept (val, test, gallery)."""
        return [row.labels for row in self._contents.annotations(split)]

    def captions(self, split: str) -> list[str]:
        """Captions in row order; those of "train" are read from the tars."""
        if split == "train":
            return list(self.train_captions())
        return [row.caption for row in self._contents.annotations(split)]

    def train_captions(self) -> Iterator[str]:
        """Stream the training captions from the tars."""
        return self._contents.train_captions()

    def training_ids(self, rows: Sequence[int]) -> list[str]:
        """Item ids of rows of the train split, read from the tars: for messages, as it takes its time."""
        return [self._contents.training_id(row) for row in rows]

    def picture(self, split: str, row: int) -> bytes:
        """The encoded picture of a row, for panels and reports."""
        return self._contents.picture(split, row)

    @cached_property
    def entity_table(self) -> EntityTable:
        """The distinct entities of the captions; the first `num_nodes` are those of the training captions.

        Raises:
            DataError: the folder has none, with the command that adds them.
        """
        return read_table(self.folder, self.manifest)

    # ---- what the model wants --------------------------------------------------------------------------------------

    def use_input_spec(self, spec: InputSpec) -> None:
        """Take over what the model needs; before `setup`."""
        self.input_spec = spec
        self.__dict__.pop("tokenizer", None)

    @cached_property
    def tokenizer(self) -> AnyTokenizer:
        """The tokenizer the model asked for."""
        return load_tokenizer(self.input_spec.tokenizer, self.folder)

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary."""
        return self.tokenizer.vocab_size

    def entity_tokens(self) -> Tensor:
        """Tokens of the entity graph's nodes, int32 [num_nodes, L]: without [CLS], with [SEP], filled up with 0."""
        table = self.entity_table
        return node_tokens(table.names[: table.num_nodes], self.tokenizer)

    def _maker(self, split: str, jitter: Jitter | None) -> BatchMaker:
        return BatchMaker(self.folder, self.input_spec, jitter, self._entities(split), self.max_regions)

    def _entities(self, split: str) -> CaptionEntities | None:
        if not self.input_spec.num_entities:
            return None
        return CaptionEntities(self.folder, split, self.manifest, self.entity_table.names)

    # ---- Lightning -------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Check the folder against its manifest, the model's wishes and the batch size; true boxes are looked for.

        Raises:
            DataError: with the remedy.
        """
        name = getattr(stage, "value", stage)  # Lightning hands over an enum, whose str() is not its value
        splits = _SPLITS_OF_STAGE.get(name or "", ("train", "val", "test", "gallery"))
        check_shard_files(self.folder, splits, self.manifest)
        if self.region_set is not None:
            check_region_set(self.folder, splits, self.manifest, self.region_set)
        self._contents.check_visual_input(self.input_spec, self.region_set, self.max_regions)
        query_splits = [split for split in splits if split in ("val", "test")]
        check_boxes_known(self._contents, self.instances, self.input_spec, query_splits, self.region_set)
        check_vocabulary(self.tokenizer, self.input_spec)
        if self.input_spec.num_entities:
            read_table(self.folder, self.manifest)
            for split in splits:
                open_rows(self.folder, split, self.manifest)
            check_tokenizer(self.tokenizer, self.input_spec)
        global_batch = self.batch_size * self._place.world_size
        if "train" in splits and global_batch > self.num_samples("train"):
            raise DataError(
                f"data.batch_size={self.batch_size} × {self._place.world_size} process(es) is larger than the "
                f"{self.num_samples('train')} training samples of {self.folder}. Choose a smaller data.batch_size."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches per process in an interval."""
        if self._interval is not None:
            return self._interval
        return max(1, self.num_samples("train") // (self.batch_size * self._place.world_size))

    def train_dataloader(self) -> TrainLoader[ProductBatch]:
        """The endless stream, from where it stands."""
        return self._start_training(self._open_train_stream, self.steps_per_epoch, self._receive)

    def eval_splits(self, stage: str) -> tuple[str, str]:
        """Splits behind the loaders of a stage ("val" or "test"): queries, gallery."""
        return (stage, "gallery")

    def levels(self, stage: str) -> tuple[str, ...]:
        """How the queries of a stage are read, in the order of their loaders: "whole", then kinds of instances."""
        return ("whole", *self.instances)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """Loaders of the validation queries, the gallery, and the queries' instances, one for each kind."""
        return self._evaluation_loaders("val")

    def test_dataloader(self) -> list[EvaluationLoader]:
        """Loaders of the test queries, the gallery, and the queries' instances, one for each kind."""
        return self._evaluation_loaders("test")

    def _evaluation_loaders(self, stage: str) -> list[EvaluationLoader]:
        queries, gallery = self.eval_splits(stage)
        by_instance = [self.instance_loader(queries, kind) for kind in self.instances]
        return [self.evaluation_loader(queries), self.evaluation_loader(gallery), *by_instance]

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        """This rank's share of a split."""
        return self._in_batches(split, self._maker(split, jitter=None), self.eval_batch_size, self._regions_read)

    def instance_loader(self, split: str, kind: str) -> EvaluationLoader:
        """This rank's share of a split's queries, each as one row per box; a batch holds whole queries."""
        common = (self._entities(split), self.max_regions)
        maker = InstanceBatchMaker(self.folder, self.input_spec, kind, self.instance_options, *common)
        num_queries = max(1, self.eval_batch_size // self.instance_options.max_instances)
        return self._in_batches(split, maker, num_queries, self.region_set if kind == DETECTED else self._regions_read)

    def _in_batches(self, split: str, maker: BatchMaker, num_samples: int, regions: str | None) -> EvaluationLoader:
        shards, global_batch = self._contents.shards(split), self._for_every_rank(split, num_samples)
        stream = EvaluationStream(self.folder, shards, maker, global_batch, self._place, regions)
        return EvaluationLoader(stream, self.num_workers, self._pins)

    def training_sample(self, num_samples: int) -> Iterator[ProductBatch]:
        """This rank's share of a fixed random draw of training pictures, unchanged by augmentation.

        The same for every call; the training stream does not notice.
        """
        place = self._place._replace(num_workers=1)
        maker = self._maker("train", jitter=None)
        stream = self._train_stream(maker, place, positions=[0], first_worker=0)
        receiver = Receiver()
        num_batches = -(-num_samples // (self.batch_size * place.world_size))
        for delivery in islice(stream, num_batches):  # in this process: starting workers would take longer
            yield receiver.batch(delivery)

    # ---- the place in the training stream --------------------------------------------------------------------------

    @property
    def skipped(self) -> Counter[str]:
        """Training samples skipped so far on this rank: reason -> number."""
        return self._stream.skipped

    def state_dict(self) -> dict[str, Any]:
        """Place of every rank in the training stream; under DDP all ranks have to call it together."""
        if self._stream.batches == 0:
            return {}
        return gather_states(self._stream, self._place, self.seed, self.data_hash)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a run stood, also with another number of ranks or workers (then from the mean position)."""
        self._stop_workers()
        self._stream = restore(state_dict, self._place, self.seed, self.data_hash)

    def _receive(self, delivery: Delivery | Failure) -> ProductBatch:
        batch = self._receiver.batch(delivery)
        assert isinstance(delivery, Delivery)
        self._stream.positions[delivery.worker] = delivery.position
        self._stream.skipped.update(delivery.skipped)
        self._stream.batches += 1
        return batch

    def _open_train_stream(self) -> DataLoader:
        self._receiver = Receiver()
        maker = self._maker("train", Jitter() if self.augment else None)
        turn = self._stream.batches % self.num_streams
        stream = self._train_stream(maker, self._place, list(self._stream.positions), turn)
        return open_stream(stream, self.num_workers, self._pins)

    def _train_stream(self, maker: BatchMaker, place: Place, positions: list[int], first_worker: int) -> TrainStream:
        shards, regions = self._contents.shards("train"), self._regions_read
        return TrainStream(
            self.folder, shards, maker, self.batch_size, self.seed, place, positions, first_worker, regions
        )

    @property
    def _regions_read(self) -> str | None:
        """The set whose sidecars are opened: a model that looks at none of its regions does not pay for them."""
        return self.region_set if self.input_spec.visual_input == "regions" else None
