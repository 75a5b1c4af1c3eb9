"""What every source of entities yields, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

MINED_TAG = "mined"  # terms that were found without labels have no kind


class Entity(NamedTuple):
    """A word or phrase of a caption."""

    name: str  # normalised, as `text.normalise` writes it
    tag: str  # its kind in the source's own words; "" = the source knows none


class Span(NamedTuple):
    """An entity with its place in a normalised text."""

    start: int
    end: int
    tag: str


class Item(NamedTuple):
    """What a source may look at."""

    id: str
    caption: str


@runtime_checkable
class EntitySource(Protocol):
    """Finds the entities of captions. `prepare` is called once, before `find`."""

    def settings(self) -> dict[str, Any]:
        """What decides the result, to be compared with an earlier build's; plain JSON values."""

    def prepare(self, train_captions: Iterable[str]) -> None:
        """Learn from the training captions, or open what is needed."""

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        """The entities of each item in the order of the caption, repeats and all tags included."""

    def problems(self) -> dict[str, int]:
        """What went wrong so far, by kind."""
