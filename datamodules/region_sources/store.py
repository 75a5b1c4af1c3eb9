"""What a build asks of region features on disk."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from datamodules.catalogues.record import ProductRecord
from datamodules.regions import Regions


@runtime_checkable
class RegionStore(Protocol):
    """Region features by item id. Pickled to worker processes, so it holds a path and an index, no open file."""

    def settings(self) -> dict[str, Any]:
        """What tells these features from others, cheaply: goes into the manifest; another value builds again."""

    def prepare(self) -> int:
        """Read what every worker needs, once, in the building process.

        Returns:
            Number of pictures with regions.

        Raises:
            DataError: the features cannot be read at all.
        """

    def __call__(self, record: ProductRecord) -> Regions | None:
        """The regions of a record's picture; None = it has none.

        Raises:
            BadRegionsError: those of this picture are damaged.
            DataError: the store as a whole is.
        """
