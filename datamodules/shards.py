"""Samples of tar shards -> streams of batches.

The order of shards and samples is our own (`shard_order`): webdataset's resampling is not reproducible, and its node
splitting reads environment variables that Lightning does not set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import IterableDataset, get_worker_info

from datamodules.batch import ProductBatch
from datamodules.batching import BatchMaker, RawSample, UnusableSampleError
from datamodules.errors import DataError
from datamodules.manifest import ShardEntry
from datamodules.shard_order import evaluation_batches, rows_of, units_from
from datamodules.shard_reader import read_shard, remedy, sidecar_of


class Delivery(NamedTuple):
    """A training batch with the bookkeeping that makes resuming exact."""

    batch: ProductBatch
    worker: int  # which of the rank's worker streams it comes from
    position: int  # raw samples of that stream consumed up to the end of this batch
    skipped: dict[str, int]  # since the previous delivery of that stream


class Failure(NamedTuple):
    """A DataError on its way out of a worker: as data, because DataLoader wraps exceptions in their traceback."""

    message: str


class Place(NamedTuple):
    """Where a stream runs. Explicit: nothing here reads the environment."""

    rank: int = 0
    world_size: int = 1
    num_workers: int = 1  # at least 1: without worker processes the rank is its own single worker


class TrainStream(IterableDataset):
    """The endless training stream of one rank, cut into batches in its workers.

    Args:
        folder: shard folder.
        shards: of the train split.
        maker: makes batches of samples.
        batch_size: samples in a batch of this rank.
        seed: of the order and of the augmentation.
        place: rank, world size and number of workers.
        positions: raw samples already consumed by each of the rank's worker streams.
        first_worker: which stream the next batch comes from (DataLoader asks its workers in turn, from 0).
        region_set: the set whose regions are read; None = those in the shards, if any.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[ShardEntry],
        maker: BatchMaker,
        batch_size: int,
        seed: int,
        place: Place,
        positions: list[int],
        first_worker: int,
        region_set: str | None = None,
    ) -> None:
        assert len(positions) == place.num_workers
        self.folder, self.shards, self.maker, self.batch_size = folder, shards, maker, batch_size
        self.seed, self.place, self.positions, self.first_worker = seed, place, positions, first_worker
        self.region_set = region_set

    def __iter__(self) -> Iterator[Delivery | Failure]:
        info = get_worker_info()
        stream = ((info.id if info else 0) + self.first_worker) % self.place.num_workers
        try:
            yield from self._deliveries(stream)
        except DataError as error:
            yield Failure(str(error))

    def _deliveries(self, stream: int) -> Iterator[Delivery]:
        position, skipped, since_good = self.positions[stream], Counter[str](), 0
        num_samples = sum(shard["samples"] for shard in self.shards)
        self.maker.start(self.batch_size)
        for sample, pass_number in self._samples(stream):
            position += 1
            try:
                self.maker.add(sample, (self.seed, pass_number))
            except UnusableSampleError as error:
                skipped[error.reason] += 1
                since_good += 1
                if since_good > num_samples:
                    raise DataError(f"Not one training sample is usable. The last one: {error}") from None
                continue
            since_good = 0
            if len(self.maker) == self.batch_size:
                yield Delivery(self.maker.finish(), stream, position, dict(skipped))
                skipped.clear()
                self.maker.start(self.batch_size)

    def _samples(self, stream: int) -> Iterator[tuple[RawSample, int]]:
        counts = [shard["samples"] for shard in self.shards]
        consumer = self.place.rank * self.place.num_workers + stream
        consumers = self.place.world_size * self.place.num_workers
        for unit, done in units_from(self.seed, counts, consumer, consumers, self.positions[stream]):
            rows = rows_of(self.seed, unit, counts[unit.shard])[done:]
            # A whole shard fits in memory by construction, and training rows were shuffled when they were written.
            samples = self._load(unit.shard, sum(counts[: unit.shard]), {int(row) for row in rows})
            for row in rows:
                yield samples.pop(int(row)), unit.pass_number

    def _load(self, number: int, first_row: int, wanted: set[int]) -> dict[int, RawSample]:
        entry = self.shards[number]
        path = self.folder / entry["file"]
        found, total = {}, 0
        for total, sample in enumerate(read_shard(path, first_row, sidecar_of(path, self.region_set)), start=1):
            if total - 1 in wanted:
                found[total - 1] = sample
        if total != entry["samples"]:
            raise _count_mismatch(path, total, entry["samples"])
        return found


class EvaluationStream(IterableDataset):
    """One rank's share of an evaluation split, in fixed global batches, each sample exactly once over all ranks.

    Args:
        folder, shards, maker: as in `TrainStream`.
        batch_size: samples in a global batch.
        place: rank, world size and number of workers.
        region_set: as in `TrainStream`; here with the regions of the true boxes, where the set has them.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[ShardEntry],
        maker: BatchMaker,
        batch_size: int,
        place: Place,
        region_set: str | None = None,
    ) -> None:
        self.folder, self.shards, self.maker = folder, shards, maker
        self.batch_size, self.place, self.region_set = batch_size, place, region_set

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches(0, 1))

    def __iter__(self) -> Iterator[ProductBatch | Failure]:
        info = get_worker_info()
        try:
            yield from self._deliveries(info.id if info else 0)
        except DataError as error:
            yield Failure(str(error))

    def _batches(self, worker: int, num_workers: int) -> list[range]:
        total = sum(shard["samples"] for shard in self.shards)
        return evaluation_batches(total, self.batch_size, self.place.rank, self.place.world_size, worker, num_workers)

    def _deliveries(self, worker: int) -> Iterator[ProductBatch]:
        size, total = self.batch_size, sum(shard["samples"] for shard in self.shards)
        wanted = {batch.start // size for batch in self._batches(worker, self.place.num_workers)}
        self.maker.start(size)
        first = 0
        for entry in self.shards:
            last = first + entry["samples"] - 1
            if wanted.isdisjoint(range(first // size, last // size + 1)):
                first = last + 1
                continue
            path, count = self.folder / entry["file"], 0
            for sample in read_shard(path, first, sidecar_of(path, self.region_set), truth=True):
                count += 1
                if sample.row // size in wanted:
                    self.maker.add(sample, None)
                    if sample.row + 1 == min((sample.row // size + 1) * size, total):
                        yield self.maker.finish()
                        self.maker.start(size)
            if count != entry["samples"]:
                raise _count_mismatch(path, count, entry["samples"])
            first = last + 1


def unchanged(delivery: object) -> object:
    """Collate function of a DataLoader whose dataset yields finished batches."""
    return delivery


def _count_mismatch(path: Path, found: int, expected: int) -> DataError:
    return DataError(f"Shard {path} holds {found} samples, manifest.json says {expected}. {remedy(path)}")
