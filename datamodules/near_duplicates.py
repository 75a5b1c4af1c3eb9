"""Pictures that occur in two splits, also re-encoded or resized: found when a folder is built, and reported.

A 64-bit perceptual hash sees shapes only, and packs of one series share theirs, so a small colour thumbnail has to
agree as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

MAX_HASH_BITS = 3  # differing bits of the perceptual hash; four bands of 16 bits find all such pairs
MAX_COLOUR_STEP = 12  # of 255, largest difference in the 4×4 thumbnail
METHOD = f"imagehash.phash, at most {MAX_HASH_BITS} of 64 bits, and 4x4 RGB thumbnail within {MAX_COLOUR_STEP}/255"

_MAX_CANDIDATES = 20_000_000  # per pair of splits; beyond it (thousands of equal pictures) counting stops, and says so
_CHUNK = 1_000_000
_EXAMPLES = 20


class Fingerprint(NamedTuple):
    """What is kept of a picture: 8 + 48 bytes as hex."""

    phash: str
    colours: str


def fingerprint(image: Image.Image) -> Fingerprint:
    """Hash an RGB picture."""
    import imagehash

    small = image.resize((4, 4), Image.Resampling.BOX)
    return Fingerprint(str(imagehash.phash(image)), small.tobytes().hex())


class Prints:
    """Fingerprints and ids of many pictures in some 70 bytes each: there may be millions."""

    def __init__(self) -> None:
        self._hashes, self._colours, self._ids = array("Q"), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, item_id: str, one: Fingerprint) -> None:
        """Append a picture."""
        self._hashes.append(int(one.phash, 16))
        self._colours += bytes.fromhex(one.colours)
        self._ids += item_id.encode() + b"\n"

    def ids(self, rows: Iterable[int]) -> list[str]:
        """Ids of some rows."""
        wanted = set(rows)
        found = {row: one.decode() for row, one in enumerate(self._ids.splitlines()) if row in wanted} if wanted else {}
        return [found[row] for row in rows]

    def table(self) -> _Table:
        """As arrays that share this memory: no more can be added while they are there."""
        colours = np.frombuffer(self._colours, np.uint8)
        return _Table(np.frombuffer(self._hashes, np.uint64), colours.reshape(len(self), -1))


def across_splits(prints: Mapping[str, Prints]) -> dict[str, Any]:
    """Count near-duplicate pairs between different splits.

    Args:
        prints: of the pictures of each split.

    Returns:
        The manifest's entry: method, pairs_across_splits, examples (split, id, split, id), complete.
    """
    tables = {split: rows.table() for split, rows in prints.items() if len(rows)}
    names = list(tables)
    pairs, complete = 0, True
    examples: list[list[str]] = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            found, all_seen = _pairs(tables[first], tables[second])
            pairs, complete = pairs + len(found), complete and all_seen
            shown = found[: max(0, _EXAMPLES - len(examples))].T.tolist()
            for one, other in zip(prints[first].ids(shown[0]), prints[second].ids(shown[1]), strict=True):
                examples.append([first, one, second, other])
    return {"method": METHOD, "pairs_across_splits": pairs, "examples": examples, "complete": complete}


class _Table(NamedTuple):
    hashes_N: np.ndarray  # uint64
    colours_NC: np.ndarray  # uint8


def _pairs(first: _Table, second: _Table) -> tuple[np.ndarray, bool]:
    """Pairs (row, row) that agree: two hashes within 3 bits are equal in one of four 16-bit bands at least."""
    keys: list[np.ndarray] = []
    budget = _MAX_CANDIDATES
    for band in range(4):
        shift = np.uint64(16 * band)
        mask = np.uint64(0xFFFF)
        ones, others = (first.hashes_N >> shift) & mask, (second.hashes_N >> shift) & mask
        order = np.argsort(others, kind="stable")
        low = np.searchsorted(others[order], ones, "left")
        counts = np.searchsorted(others[order], ones, "right") - low
        ends = np.cumsum(counts)
        start = 0
        while start < len(ones) and budget > 0:
            done = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + min(_CHUNK, budget), "right")))
            rows = np.arange(start, stop)
            one = np.repeat(rows, counts[rows])
            within = np.arange(len(one)) - np.repeat(ends[rows] - counts[rows] - done, counts[rows])
            other = order[np.repeat(low[rows], counts[rows]) + within]
            agree = _agree(first, second, one, other)
            keys.append(one[agree] * len(second.hashes_N) + other[agree])
            budget -= len(one)
            start = stop
        if start < len(ones):
            break
    unique = np.unique(np.concatenate(keys)) if keys else np.empty(0, np.int64)
    return np.stack(np.divmod(unique, len(second.hashes_N)), axis=1), budget > 0


def _agree(first: _Table, second: _Table, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    differing = first.hashes_N[one] ^ second.hashes_N[other]
    bits = np.unpackbits(differing.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1, dtype=np.int64)
    near = np.flatnonzero(bits <= MAX_HASH_BITS)
    steps = np.abs(first.colours_NC[one[near]].astype(np.int16) - second.colours_NC[other[near]]).max(axis=1, initial=0)
    return near[steps <= MAX_COLOUR_STEP]
