"""All ranks of a training in one process, without workers: so many layouts can be tried in a second.

The batches are those of the DataModule: only the DataLoader is replaced, by one that asks its workers in turn too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from datamodules.batch import InputSpec
from datamodules.product1m import Product1M
from datamodules.shards import TrainStream

CAPTIONS_ONLY = InputSpec(visual_input="none", text_length=6)


class Ranks:
    """The DataModules of every rank.

    Args:
        folder: shard folder.
        world_size, num_workers, batch_size: the layout.
        seed: of the order.
        state: of a checkpoint to go on from.
    """

    def __init__(
        self,
        folder: Path,
        world_size: int = 1,
        num_workers: int = 1,
        batch_size: int = 1,
        seed: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.modules = []
        for rank in range(world_size):
            data = Product1M(str(folder), batch_size, num_workers=num_workers, seed=seed, pin_memory=False)
            data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
            data.use_input_spec(CAPTIONS_ONLY)
            data.setup("fit")
            if state is not None:
                data.load_state_dict(state)
            self.modules.append(data)
        self._streams = [_endless(data) for data in self.modules]

    def take(self, num_batches: int) -> list[list[list[int]]]:
        """Rows of the next batches, rank after rank."""
        with patch("datamodules.product1m.open_stream", _in_turn):
            return [[next(stream) for _ in range(num_batches)] for stream in self._streams]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: the places of all ranks."""
        sent: list[Any] = []

        def exchange(found: list[Any], mine: Any) -> None:
            sent.append(mine)
            found[:] = sent + [mine] * (len(found) - len(sent))  # those who come later are not heard yet

        with patch("torch.distributed.all_gather_object", exchange):
            return [data.state_dict() for data in self.modules][-1]


def _endless(data: Product1M) -> Iterator[list[int]]:
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            yield batch.index_B.tolist()


def _in_turn(stream: TrainStream, num_workers: int, pin_memory: bool) -> Iterator[Any]:
    workers = [iter(stream) for _ in range(num_workers)]
    for number in cycle(range(num_workers)):
        with patch("datamodules.shards.get_worker_info", lambda number=number: SimpleNamespace(id=number)):
            delivery = next(workers[number])
        yield delivery
