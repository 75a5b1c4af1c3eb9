"""A product record: one picture, its caption and what only the evaluation may know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["single", "multi", "unknown"]
Split = Literal["train", "val", "test", "gallery"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "gallery")


class ProductRecord(NamedTuple):
    """One image-caption pair as a catalogue yields it.

    `labels` keep repeats (a picture with two of the same product lists it twice) and are never read in training.
    `boxes` (px, x1 y1 x2 y2, aligned with `labels`) exist for evaluation only.
    """

    id: str  # matches [A-Za-z0-9_.-]+
    image: bytes  # encoded picture, bytes as found or rendered; empty if the catalogue was told to read none
    caption: str
    labels: tuple[str, ...]
    kind: Kind
    source: str  # url, path or generator the picture comes from
    boxes: tuple[tuple[float, float, float, float], ...] | None = None


class Skipped(NamedTuple):
    """A sample that could not be made into a record; counted by `reason`, never dropped silently."""

    id: str
    reason: str  # snake_case, e.g. empty_caption, missing_picture, undecodable_picture
    detail: str = ""  # what exactly is wrong, for the log


class Catalogue(Protocol):
    """A raw source. `plan` is cheap and deterministic; `make` does the work and runs in worker processes.

    Instances are pickled to worker processes, so they hold settings and small tables, not open files.
    """

    name: str

    def plan(self, split: Split) -> Sequence[Any]:
        """The split's items, in a fixed order, as small picklable values."""

    def make(self, split: Split, item: Any) -> ProductRecord | Skipped:
        """Render, read or compose one planned item. The same item gives the same bytes."""

    def settings(self) -> dict[str, Any]:
        """Everything that determines the bytes (seed, sizes, raw folder's name): goes into the manifest."""


def iterate(catalogue: Catalogue, split: Split) -> Iterator[ProductRecord | Skipped]:
    """All records of a split in plan order."""
    for item in catalogue.plan(split):
        yield catalogue.make(split, item)
