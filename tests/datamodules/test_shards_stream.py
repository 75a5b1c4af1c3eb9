"""The streams over real tars: ids, skips, resuming and evaluation over ranks × workers, all in one process."""

from __future__ import annotations

import gzip
import io
import itertools
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batch import InputSpec
from datamodules.batching import BatchMaker
from datamodules.errors import DataError
from datamodules.manifest import ShardEntry, read_manifest
from datamodules.shard_reader import read_range, read_shard
from datamodules.shards import Delivery, EvaluationStream, Failure, Place, TrainStream
from datamodules.transforms import Jitter
from datamodules.write_shards import build
from tests.datamodules.damage import damage_samples
from tests.datamodules.tiny_catalogue import TinyCatalogue

SPEC = InputSpec(visual_input="grid", image_size_px=8, text_length=12)
NUM_TRAIN = 24  # four shards of six


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    catalogue = TinyCatalogue({"train": NUM_TRAIN, "val": 5, "test": 13, "gallery": 6}, size_px=8)
    build(catalogue, folder, shard_size=6, vocab_size=60, progress=False)
    return folder


def _shards(folder: Path, split: str) -> list[ShardEntry]:
    return read_manifest(folder)["splits"][split]["shards"]


def _train(
    folder: Path, place: Place, stream: int, batch_size: int, seed: int = 0, position: int = 0
) -> Iterator[Delivery | Failure]:
    """What worker `stream` of a rank delivers: in one process, the first worker's turn is given to it."""
    positions = [position] * place.num_workers
    maker = BatchMaker(folder, SPEC, Jitter())
    return iter(TrainStream(folder, _shards(folder, "train"), maker, batch_size, seed, place, positions, stream))


def _take(deliveries: Iterator[Delivery | Failure], count: int) -> list[Delivery]:
    found = list(itertools.islice(deliveries, count))
    assert all(isinstance(one, Delivery) for one in found), found
    return found  # type: ignore[return-value]


def _rows(deliveries: list[Delivery]) -> list[int]:
    return [row for delivery in deliveries for row in delivery.batch.index_B.tolist()]


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.integers(1, 3),
    num_workers=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    batches=st.integers(0, 9),
    seed=st.integers(0, 2),
)
def test_a_stream_resumed_at_any_batch_goes_on_exactly(
    folder: Path, world_size: int, num_workers: int, batch_size: int, batches: int, seed: int
) -> None:
    for rank in range(world_size):
        place = Place(rank, world_size, num_workers)
        stream = num_workers - 1
        whole = _take(_train(folder, place, stream, batch_size, seed), batches + 3)
        position = whole[batches - 1].position if batches else 0
        resumed = _take(_train(folder, place, stream, batch_size, seed, position), 3)
        assert _rows(resumed) == _rows(whole[batches:])
        assert [one.position for one in resumed] == [one.position for one in whole[batches:]]
        for one, other in zip(resumed, whole[batches:], strict=True):
            assert one.batch.images_B3HW.equal(other.batch.images_B3HW), "the augmentation resumes too"  # type: ignore[union-attr]
            assert one.batch.tokens_BT.equal(other.batch.tokens_BT)


@pytest.mark.parametrize("layout", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 2), (4, 2)])
def test_one_pass_over_all_consumers_holds_every_sample_once(folder: Path, layout: tuple[int, int]) -> None:
    world_size, num_workers = layout
    consumers = world_size * num_workers
    seen: Counter = Counter()
    for rank, stream in itertools.product(range(world_size), range(num_workers)):
        place = Place(rank, world_size, num_workers)
        deliveries = _train(folder, place, stream, 1)
        seen.update(_rows(_take(deliveries, NUM_TRAIN // consumers)))
    assert seen == dict.fromkeys(range(NUM_TRAIN), 1)


def test_the_order_follows_the_seed_and_the_pass(folder: Path) -> None:
    place = Place()
    one = _rows(_take(_train(folder, place, 0, 2), 24))
    assert one == _rows(_take(_train(folder, place, 0, 2), 24))
    assert sorted(one[:NUM_TRAIN]) == sorted(one[NUM_TRAIN:]) == list(range(NUM_TRAIN))
    assert one[:NUM_TRAIN] != one[NUM_TRAIN:]
    assert one != _rows(_take(_train(folder, place, 0, 2, seed=1), 24))


def test_damaged_training_samples_are_counted_replaced_and_resumed_over(folder: Path, tmp_path: Path) -> None:
    faults = {"train.1": "picture", "train.2": "caption", "train.3": "no picture", "train.4": "record"}
    damaged = damage_samples(folder, tmp_path / "damaged", faults)
    deliveries = _take(_train(damaged, Place(), 0, 4), 12)
    assert all(len(one.batch.index_B) == 4 for one in deliveries), "batches stay full"
    skipped: Counter = Counter()
    for number, one in enumerate(deliveries, start=1):
        skipped.update(one.skipped)
        assert one.position == 4 * number + skipped.total(), "positions count skipped samples"
    assert set(skipped) == {"undecodable_picture", "empty_caption", "missing_picture", "malformed_record"}
    assert set(skipped.values()) <= {2, 3}, "twelve batches are 2.4 passes over the 20 sound samples"
    assert len(set(_rows(deliveries[:5]))) == 20
    for start in (1, 4, 7):
        resumed = _take(_train(damaged, Place(), 0, 4, position=deliveries[start - 1].position), 3)
        assert _rows(resumed) == _rows(deliveries[start : start + 3])


def test_nothing_usable_ends_with_a_message_instead_of_a_hang(folder: Path, tmp_path: Path) -> None:
    damaged = damage_samples(folder, tmp_path / "damaged", {f"train.{i}": "picture" for i in range(NUM_TRAIN)})
    (failure,) = _train(damaged, Place(), 0, 3)
    assert isinstance(failure, Failure)
    assert "Not one training sample is usable" in failure.message


def _evaluate(folder: Path, split: str, batch_size: int, world_size: int, num_workers: int) -> list:
    """All batches of all ranks; workers are asked in turn, as DataLoader does."""
    found = []
    for rank in range(world_size):
        place = Place(rank, world_size, num_workers)
        maker = BatchMaker(folder, SPEC, None)
        stream = EvaluationStream(folder, _shards(folder, split), maker, batch_size, place)
        workers = [list(stream._deliveries(worker)) for worker in range(num_workers)]
        assert sum(map(len, workers)) == len(stream)
        found += [batch for turn in itertools.zip_longest(*workers) for batch in turn if batch is not None]
    return found


@settings(max_examples=25, deadline=None)
@given(world_size=st.integers(1, 4), num_workers=st.integers(1, 3), batch_size=st.integers(1, 15))
def test_evaluation_sees_every_item_once_in_the_same_batches(
    folder: Path, world_size: int, num_workers: int, batch_size: int
) -> None:
    alone = {tuple(batch.index_B.tolist()): batch for batch in _evaluate(folder, "test", batch_size, 1, 1)}
    shared = _evaluate(folder, "test", batch_size, world_size, num_workers)
    assert sorted(row for batch in shared for row in batch.index_B.tolist()) == list(range(13))
    for batch in shared:
        assert batch.images_B3HW.equal(alone[tuple(batch.index_B.tolist())].images_B3HW)


def test_a_damaged_evaluation_sample_is_fatal_and_named(folder: Path, tmp_path: Path) -> None:
    damaged = damage_samples(folder, tmp_path / "damaged", {"test.9": "picture"})
    stream = EvaluationStream(damaged, _shards(folder, "test"), BatchMaker(damaged, SPEC, None), 4, Place())
    *batches, failure = list(stream)
    assert len(batches) == 2
    assert isinstance(failure, Failure)
    assert "sample 'test.9'" in failure.message
    assert "data verify" in failure.message


def test_only_the_overlapping_shards_are_read(folder: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    shutil.copytree(folder, partial)
    shards = _shards(folder, "test")  # of 5, 4 and 4 samples
    (partial / shards[1]["file"]).unlink()
    maker = BatchMaker(partial, SPEC, None)
    first = EvaluationStream(partial, shards, maker, 5, Place(0, 3, 1))
    assert [batch.index_B.tolist() for batch in first._deliveries(0)] == [[0, 1, 2, 3, 4]]
    assert [sample.row for sample in read_range(partial, shards, range(10, 12))] == [10, 11]


def test_a_manifest_that_does_not_match_its_tars_is_told(folder: Path) -> None:
    shards = [{**shard, "samples": shard["samples"] + 1} for shard in _shards(folder, "train")]
    stream = TrainStream(folder, shards, BatchMaker(folder, SPEC, None), 3, 0, Place(), [0], 0)  # type: ignore[arg-type]
    (failure,) = list(stream)
    assert isinstance(failure, Failure)
    assert "manifest.json says" in failure.message
    assert "data verify" in failure.message


@pytest.mark.parametrize("damage", ["missing", "truncated", "header", "garbage", "empty"])
def test_a_damaged_tar_is_a_data_error(folder: Path, tmp_path: Path, damage: str) -> None:
    whole = bytearray((folder / "train-000000.tar").read_bytes())
    path = tmp_path / "train-000000.tar"
    if damage == "header":
        with tarfile.open(folder / "train-000000.tar") as tar:
            second = tar.getmembers()[1].offset
        whole[second + 5] ^= 255
    data = {"truncated": whole[:1500], "header": whole, "garbage": b"x" * 5000, "empty": b""}.get(damage)
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000000\.tar cannot be read.*data verify"):
        list(read_shard(path))


def test_tars_of_other_writers_are_read_too(folder: Path, tmp_path: Path) -> None:
    plain = list(read_shard(folder / "train-000000.tar"))
    with tarfile.open(folder / "train-000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    for form, compress in ((tarfile.PAX_FORMAT, False), (tarfile.GNU_FORMAT, True)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for number, (name, data) in enumerate(members):
                if number == 4:  # in the middle: what came before was read by the fast reader
                    tar.addfile(tarfile.TarInfo("a-folder-" + "x" * 120))
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
                tar.addfile(tarfile.TarInfo(f"./{name[:9]}.pickle"))
        path = tmp_path / "other.tar"
        path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
        read = list(read_shard(path))
        assert [sample.members for sample in read] == [sample.members for sample in plain]
        assert all(set(sample.members) == {"jpg", "json"} for sample in read), "a pickle is not even looked at"
