"""Where the training stream stands, on every rank, and how to go on from there."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from datamodules.errors import DataError
from datamodules.shards import Place


@dataclass
class StreamState:
    """Position of one rank.

    Positions count raw samples, skipped ones included: a batch count would miss those and resume at another sample.
    """

    positions: list[int]  # per worker stream
    batches: int = 0  # handed out so far; says whose turn the next one is
    skipped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def fresh(cls, num_workers: int) -> StreamState:
        """The beginning."""
        return cls([0] * num_workers)


def gather_states(local: StreamState, place: Place, seed: int, data_hash: str) -> dict[str, Any]:
    """One state for all ranks, of plain numbers and words (checkpoints are read without pickle).

    Lightning keeps what rank 0 returns, and skipped samples make ranks differ, so they are collected here.
    """
    mine = {"positions": list(local.positions), "skipped": dict(local.skipped)}
    ranks: list[Any] = [mine]
    if place.world_size > 1:
        import torch.distributed as dist

        ranks = [None] * place.world_size
        dist.all_gather_object(ranks, mine)
    return {
        "seed": seed,
        "data_hash": data_hash,
        "batches": local.batches,
        "positions": [rank["positions"] for rank in ranks],
        "skipped": [rank["skipped"] for rank in ranks],
    }


def restore(state: dict[str, Any], place: Place, seed: int, data_hash: str) -> StreamState:
    """This rank's part of a gathered state.

    Another seed or other data make another stream: it starts over, and says so. Another number of ranks or workers
    deals the same permutations differently: the stream goes on from the mean position, and says so.

    Raises:
        DataError: the state is malformed.
    """
    if not state:
        return StreamState.fresh(place.num_workers)
    try:
        positions = [[int(position) for position in rank] for rank in state["positions"]]
        skipped = [Counter({str(key): int(number) for key, number in rank.items()}) for rank in state["skipped"]]
        batches, before = int(state["batches"]), (int(state["seed"]), str(state["data_hash"]))
        if not positions or not all(len(rank) == len(positions[0]) > 0 for rank in positions):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError("The checkpoint's training-stream position is malformed; resume from an older one.") from None
    if before != (seed, data_hash):
        warnings.warn(
            f"The checkpoint's training stream had seed {before[0]} and data {before[1]}, this run has {seed} and "
            f"{data_hash}: the stream starts from its beginning.",
            stacklevel=2,
        )
        return StreamState.fresh(place.num_workers)
    layout = (len(positions), len(positions[0]))
    if layout == (place.world_size, place.num_workers):
        return StreamState(positions[place.rank], batches, skipped[place.rank])
    total = sum(sum(rank) for rank in positions)
    mean = total // (place.world_size * place.num_workers)
    warnings.warn(
        f"The checkpoint was written with {layout[0]} process(es) × {layout[1]} loader worker(s), this run has "
        f"{place.world_size} × {place.num_workers}: the training stream goes on from the mean position ({mean} samples "
        "per worker), so the order of samples differs from an uninterrupted run's.",
        stacklevel=2,
    )
    # The sum over ranks is what is reported, so one rank carries the old counts.
    carried = sum(skipped, Counter()) if place.rank == 0 else Counter()
    return StreamState([mean] * place.num_workers, batches, carried)
