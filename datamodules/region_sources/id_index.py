"""Image id -> place of its record in a large file, in 16 bytes a record; a dict of the ids takes ten times that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class IdIndex(NamedTuple):
    """Sorted hashes with places beside them. Whoever reads a record compares its id: hashes may coincide."""

    hash_N: np.ndarray  # uint64, ascending
    place_N: np.ndarray
    num_repeats: int  # records whose id an earlier one has; they are left out

    @classmethod
    def of(cls, records: Iterable[tuple[str, Any]]) -> IdIndex:
        """Of (image id, place) pairs; places are all integers or all bytes."""
        hashes, places = [], []
        for image_id, place in records:
            hashes.append(_hash(image_id))
            places.append(place)
        hash_N, first_N = np.unique(np.array(hashes, np.uint64), return_index=True)
        return cls(hash_N, np.array(places)[first_N], len(hashes) - len(hash_N))

    def __len__(self) -> int:
        return len(self.hash_N)

    def place(self, image_id: str) -> Any | None:
        """Where the first record of an image stands; None = nowhere."""
        row = int(np.searchsorted(self.hash_N, np.uint64(_hash(image_id))))
        if row < len(self.hash_N) and int(self.hash_N[row]) == _hash(image_id):
            return self.place_N[row].item()
        return None


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode("utf-8", "replace"), digest_size=8).digest(), "little")
