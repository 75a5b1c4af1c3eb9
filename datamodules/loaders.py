"""What Lightning iterates: an endless training loader and evaluation loaders. They unwrap what workers deliver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import ProductBatch
from datamodules.batching import PREFETCH_BATCHES
from datamodules.errors import DataError
from datamodules.shard_reader import import_reader
from datamodules.shards import Delivery, EvaluationStream, Failure, unchanged
from datamodules.workers import start_worker

Batch = TypeVar("Batch")


def open_stream(
    stream: Dataset, num_workers: int, pin_memory: bool, numbers: Iterable[int] | None = None
) -> DataLoader:
    """A DataLoader over a stream that makes its own batches, or over batches by number, in the order of `numbers`."""
    import_reader()
    return DataLoader(
        stream,
        batch_size=None,
        sampler=numbers,
        collate_fn=unchanged,
        num_workers=num_workers,
        worker_init_fn=start_worker if num_workers else None,
        prefetch_factor=PREFETCH_BATCHES if num_workers else None,
        pin_memory=pin_memory,
    )


class Receiver:
    """Takes what workers deliver: raises their failures, and copies batches out of the workers' ring of memory."""

    def __init__(self) -> None:
        # Holding on to the last mappings spares mapping the same memory anew for every batch.
        self._mapped: dict[int, Tensor] = {}

    def batch(self, delivered: Delivery | ProductBatch | Failure) -> ProductBatch:
        """The batch, the caller's own.

        Raises:
            DataError: what went wrong in the worker.
        """
        if isinstance(delivered, Failure):
            raise DataError(delivered.message)
        batch = delivered.batch if isinstance(delivered, Delivery) else delivered
        return batch._replace(
            images_B3HW=self._own(batch.images_B3HW),
            features_BRD=self._own(batch.features_BRD),
            class_scores_BRC=self._own(batch.class_scores_BRC),
        )

    def _own(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_shared() or tensor.is_pinned():
            return tensor
        self._mapped[tensor.untyped_storage().data_ptr()] = tensor
        return tensor.clone()


class TrainLoader(Generic[Batch]):
    """A training stream in intervals: each `iter()` continues it for exactly `len()` batches.

    One DataLoader iterator lives across intervals, so the workers go on filling their queues during an evaluation.

    Args:
        open_loader: opens the stream where it stands now.
        length: batches in an interval.
        receive: what the stream delivers -> batch; called at the moment the batch is handed out, so here a place is
            kept. Lightning takes batches one by one from a loader with a length, so what was handed out is what was
            trained on.
    """

    def __init__(self, open_loader: Callable[[], DataLoader], length: int, receive: Callable[[Any], Batch]) -> None:
        self._open_loader, self._length, self._receive = open_loader, length, receive
        self._iterator: Iterator[Any] | None = None  # under this name Lightning shuts its workers down at the end

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._length):
            if self._iterator is None:
                self._iterator = iter(self._open_loader())
            yield self._receive(next(self._iterator))

    def close(self) -> None:
        """Stop the workers; the next `iter()` opens the stream again where it stands."""
        if shut_down := getattr(self._iterator, "_shutdown_workers", None):
            shut_down()
        self._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Empty, as the DataModule keeps the place; its presence tells Lightning that resuming mid-interval is safe."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do, see `state_dict`."""


class EvaluationLoader:
    """One rank's batches of an evaluation split, from the beginning at each `iter()`."""

    def __init__(self, stream: EvaluationStream, num_workers: int, pin_memory: bool) -> None:
        self._stream, self._num_workers, self._pin_memory = stream, num_workers, pin_memory

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[ProductBatch]:
        receiver = Receiver()
        for delivered in open_stream(self._stream, self._num_workers, self._pin_memory):
            yield receiver.batch(delivered)
