"""The LightningDataModule over a shard folder, of Product1M or of any other catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from datamodules.batching import BatchMaker
from datamodules.caption_entities import CaptionEntities, check_tokenizer, node_tokens
from datamodules.entities import EntityTable, open_rows, read_table
from datamodules.errors import DataError
from datamodules.instance_batches import InstanceBatchMaker
from datamodules.instances import DETECTED, InstanceOptions, check_boxes_known, check_options
from datamodules.loaders import EvaluationLoader, Receiver, TrainLoader, open_stream
from datamodules.manifest import Manifest, check_shard_files
from datamodules.region_sets import check_name, check_region_set
from datamodules.shard_folder import ShardFolder
from datamodules.shards import Delivery, EvaluationStream, Place, TrainStream
from datamodules.stream_state import StreamState, gather_states, restore
from datamodules.tokenizer import AnyTokenizer, check_vocabulary, load_tokenizer
from datamodules.transforms import Jitter

_SPLITS_OF_STAGE = {"fit": ("train", "val", "gallery"), "validate": ("val", "gallery"), "test": ("test", "gallery")}


class Product1M(LightningDataModule):
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
    ) -> None:
        super().__init__()
        least = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "seed": 0, "steps_per_epoch": 1}
        for key, minimum in least.items():
            value = locals()[key]
            if value is not None and value < minimum:
                raise DataError(f"data.{key}={value}: should be at least {minimum}.")
        self.instances = tuple(instances)
        self.instance_options = InstanceOptions(instance_min_score, max_instances, instance_nms_iou, crop_margin)
        check_options(self.instances, self.instance_options)
        # With fewer batches than ranks some rank has none; the split is covered exactly once all the same.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.folder, self.batch_size, self.eval_batch_size = Path(folder), batch_size, eval_batch_size
        self.num_workers, self.seed, self.augment = num_workers, seed, augment
        self.region_set = None if region_set is None else check_name(region_set)
        self._interval, self._pin_memory = steps_per_epoch, pin_memory
        self._contents = ShardFolder(self.folder)
        self.input_spec = InputSpec()
        self._stream = StreamState.fresh(self.num_streams)
        self._train_loader: TrainLoader | None = None

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
        return BatchMaker(self.folder, self.input_spec, jitter, self._entities(split))

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
        self._contents.check_visual_input(self.input_spec, self.region_set)
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

    def train_dataloader(self) -> TrainLoader:
        """The endless stream, from where it stands."""
        self._stop_workers()
        self._train_loader = TrainLoader(self._open_train_stream, self.steps_per_epoch, self._record)
        return self._train_loader

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
        maker = InstanceBatchMaker(self.folder, self.input_spec, kind, self.instance_options, self._entities(split))
        num_queries = max(1, self.eval_batch_size // self.instance_options.max_instances)
        return self._in_batches(split, maker, num_queries, self.region_set if kind == DETECTED else self._regions_read)

    def _in_batches(self, split: str, maker: BatchMaker, num_samples: int, regions: str | None) -> EvaluationLoader:
        # Lightning leaves out the evaluation on a rank without batches, and the others would wait for it forever.
        num_samples = min(num_samples, max(1, self.num_samples(split) // self._place.world_size))
        shards = self._contents.shards(split)
        stream = EvaluationStream(self.folder, shards, maker, num_samples, self._place, regions)
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
            yield receiver.batch(delivery.batch if isinstance(delivery, Delivery) else delivery)

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers of the training stream."""
        if stage == "fit":
            self._stop_workers()

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

    def _record(self, delivery: Delivery) -> None:
        self._stream.positions[delivery.worker] = delivery.position
        self._stream.skipped.update(delivery.skipped)
        self._stream.batches += 1

    def _open_train_stream(self) -> Any:
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

    def _stop_workers(self) -> None:
        if self._train_loader is not None:
            self._train_loader.close()

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
