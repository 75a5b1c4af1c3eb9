"""Properties of the training order and the evaluation batches over ranks × workers × shards × resume points."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.shard_order import evaluation_batches, parts_per_shard, rows_of, units_from, units_of

_LAYOUTS = {
    "shard_samples": st.lists(st.integers(1, 9), min_size=1, max_size=9),
    "consumers": st.integers(1, 7),
    "seed": st.integers(0, 3),
}


def _stream(shard_samples: list[int], consumer: int, consumers: int, seed: int, start: int, count: int) -> list:
    """(pass, shard, row) of one consumer."""
    found: list = []
    for unit, done in units_from(seed, shard_samples, consumer, consumers, start):
        rows = rows_of(seed, unit, shard_samples[unit.shard])[done:]
        found += [(unit.pass_number, unit.shard, int(row)) for row in rows]
        if len(found) >= count:
            return found[:count]
    raise AssertionError


@given(**_LAYOUTS)
def test_every_pass_holds_each_sample_once_over_all_consumers(shard_samples: list, consumers: int, seed: int) -> None:
    parts = parts_per_shard(len(shard_samples), consumers)
    seen: Counter = Counter()
    for consumer in range(consumers):
        for unit in units_of(seed, len(shard_samples), consumer, consumers):
            if unit.pass_number > 1:
                break
            assert unit.parts == parts
            for row in rows_of(seed, unit, shard_samples[unit.shard]):
                seen[unit.pass_number, unit.shard, int(row)] += 1
    everything = {(one, shard, row) for one in (0, 1) for shard, n in enumerate(shard_samples) for row in range(n)}
    assert seen == Counter(everything)


@given(start=st.integers(0, 60), **_LAYOUTS)
def test_resuming_goes_on_exactly(shard_samples: list, consumers: int, seed: int, start: int) -> None:
    for consumer in {0, consumers - 1}:
        whole = _stream(shard_samples, consumer, consumers, seed, 0, start + 20)
        assert _stream(shard_samples, consumer, consumers, seed, start, 20) == whole[start:]


@given(shard_samples=st.lists(st.integers(5, 9), min_size=2, max_size=6), consumers=st.integers(1, 4))
def test_the_seed_decides_the_order(shard_samples: list, consumers: int) -> None:
    one = _stream(shard_samples, 0, consumers, 0, 0, 40)
    assert one == _stream(shard_samples, 0, consumers, 0, 0, 40)
    assert one != _stream(shard_samples, 0, consumers, 1, 0, 40)


def test_passes_differ() -> None:
    units = list(islice(units_of(0, 8, 0, 1), 24))
    orders = [[unit.shard for unit in units if unit.pass_number == number] for number in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert not (rows_of(0, units[0], 50) == rows_of(0, units[0]._replace(pass_number=1), 50)).all()


@pytest.mark.parametrize(("shards", "consumers", "parts"), [(8, 2, 1), (1, 2, 2), (3, 2, 2), (4, 4, 1), (6, 4, 2)])
def test_few_shards_are_split_so_that_a_pass_deals_out_evenly(shards: int, consumers: int, parts: int) -> None:
    assert parts_per_shard(shards, consumers) == parts
    # With equal shards no global batch may hold an item twice: at any time all consumers are in the same pass.
    share = 12 * shards // consumers
    streams = [_stream([12] * shards, consumer, consumers, 0, 0, share) for consumer in range(consumers)]
    seen = [sample for stream in streams for sample in stream]
    assert len(set(seen)) == len(seen) == 12 * shards


@settings(max_examples=200)
@given(
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 5),
    num_workers=st.integers(1, 4),
)
def test_evaluation_covers_each_row_once_in_the_same_batches(
    num_samples: int, batch_size: int, world_size: int, num_workers: int
) -> None:
    alone = evaluation_batches(num_samples, batch_size, 0, 1)
    dealt = []
    for rank in range(world_size):
        of_rank = evaluation_batches(num_samples, batch_size, rank, world_size)
        workers = [
            evaluation_batches(num_samples, batch_size, rank, world_size, worker, num_workers)
            for worker in range(num_workers)
        ]
        # DataLoader asks its workers in turn, so this is the order in which the rank sees them.
        turns = [workers[i % num_workers][i // num_workers] for i in range(len(of_rank))]
        assert turns == of_rank
        dealt += of_rank
    assert sorted(dealt, key=lambda batch: batch.start) == alone
    assert [row for batch in alone for row in batch] == list(range(num_samples))
