"""The order of the training stream: which shard, which rows, for which consumer. Pure numbers, no files.

A consumer is one worker of one rank. A *unit* is a shard, or with few shards a strided part of one. Each pass permutes
all units, seeded by (seed, pass); the permutations follow one another without end, and unit g of that sequence belongs
to consumer g mod consumers. Within a unit rows are permuted, seeded by (seed, pass, shard). So every sample is seen
once per pass over any ranks × workers, and position n is found by adding up counts, without reading a byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile, takewhile
from math import gcd
from typing import NamedTuple

import numpy as np

# With this many shards per consumer the ragged end of a pass is a small part of it; below, shards are split so that
# every consumer gets equally many units of every pass and no batch can hold an item twice.
_SHARDS_PER_CONSUMER = 4

_UNITS, _ROWS = 1, 2  # keep the seeds of the two kinds of permutation apart


class Unit(NamedTuple):
    """A run of rows a consumer reads at a time."""

    pass_number: int
    shard: int
    part: int
    parts: int


def parts_per_shard(num_shards: int, num_consumers: int) -> int:
    """In how many parts each shard is split: 1 if there are plenty, else the fewest that deal out evenly."""
    if num_shards >= _SHARDS_PER_CONSUMER * num_consumers:
        return 1
    return num_consumers // gcd(num_shards, num_consumers)


def units_of(seed: int, num_shards: int, consumer: int, num_consumers: int) -> Iterator[Unit]:
    """The endless sequence of units of one consumer."""
    parts = parts_per_shard(num_shards, num_consumers)
    per_pass = num_shards * parts
    pass_number, order = -1, np.empty(0, np.int64)
    number = consumer
    while True:
        if number // per_pass != pass_number:
            pass_number = number // per_pass
            order = np.random.default_rng((seed, _UNITS, pass_number)).permutation(per_pass)
        shard, part = divmod(int(order[number % per_pass]), parts)
        yield Unit(pass_number, shard, part, parts)
        number += num_consumers


def rows_of(seed: int, unit: Unit, shard_samples: int) -> np.ndarray:
    """Row numbers within the shard, in the order this unit delivers them."""
    order = np.random.default_rng((seed, _ROWS, unit.pass_number, unit.shard)).permutation(shard_samples)
    return order[unit.part :: unit.parts]


def units_from(
    seed: int, shard_samples: Sequence[int], consumer: int, num_consumers: int, position: int
) -> Iterator[tuple[Unit, int]]:
    """Units from raw position `position` on, as (unit, rows of it already delivered).

    Args:
        shard_samples: samples in each shard, from the manifest.
        position: raw samples this consumer has consumed, skipped ones included.
    """
    assert sum(shard_samples) > 0, "an empty split has no stream"
    passed = 0
    for unit in units_of(seed, len(shard_samples), consumer, num_consumers):
        size = len(range(unit.part, shard_samples[unit.shard], unit.parts))
        if passed + size > position:
            yield unit, max(0, position - passed)
        passed += size


def samples_of_pass(
    seed: int, shard_samples: Sequence[int], consumer: int, num_consumers: int, pass_number: int = 0
) -> int:
    """Raw samples that one consumer has of one pass."""
    units = units_of(seed, len(shard_samples), consumer, num_consumers)
    later = dropwhile(lambda unit: unit.pass_number < pass_number, units)
    of_pass = takewhile(lambda unit: unit.pass_number == pass_number, later)
    return sum(len(range(unit.part, shard_samples[unit.shard], unit.parts)) for unit in of_pass)


def evaluation_batches(
    num_samples: int, batch_size: int, rank: int, world_size: int, worker: int = 0, num_workers: int = 1
) -> list[range]:
    """The global batches of one consumer, as ranges of rows.

    Batch j is rows [j·B, (j+1)·B) whatever the number of processes, so that a batch is computed from the same
    neighbours everywhere; it goes to rank j mod world_size and there to the workers in turn.
    """
    starts = range(0, num_samples, batch_size)[rank::world_size][worker::num_workers]
    return [range(start, min(start + batch_size, num_samples)) for start in starts]
