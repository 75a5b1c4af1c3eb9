"""Pictures that occur in two splits, also re-encoded or resized: found when a folder is built, and reported.

A 64-bit perceptual hash sees shapes only, and packs of one series share theirs, so a small colour thumbnail has to
agree as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def across_splits(prints: Mapping[str, Sequence[tuple[str, Fingerprint]]]) -> dict[str, Any]:
    """Count near-duplicate pairs between different splits.

    Args:
        prints: split -> (id, fingerprint) of its pictures.

    Returns:
        The manifest's entry: method, pairs_across_splits, examples (split, id, split, id), complete.
    """
    tables = {split: _table(rows) for split, rows in prints.items() if rows}
    names = list(tables)
    pairs, complete = 0, True
    examples: list[list[str]] = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            found, all_seen = _pairs(tables[first], tables[second])
            pairs, complete = pairs + len(found), complete and all_seen
            for one, other in found[: max(0, _EXAMPLES - len(examples))]:
                examples.append([first, prints[first][one][0], second, prints[second][other][0]])
    return {"method": METHOD, "pairs_across_splits": pairs, "examples": examples, "complete": complete}


class _Table(NamedTuple):
    hashes_N: np.ndarray  # uint64
    colours_NC: np.ndarray  # int16


def _table(rows: Sequence[tuple[str, Fingerprint]]) -> _Table:
    hashes_N = np.array([int(one.phash, 16) for _, one in rows], np.uint64)
    colours = np.frombuffer(bytes.fromhex("".join(one.colours for _, one in rows)), np.uint8)
    return _Table(hashes_N, colours.reshape(len(rows), -1).astype(np.int16))


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
    steps = np.abs(first.colours_NC[one[near]] - second.colours_NC[other[near]]).max(axis=1, initial=0)
    return near[steps <= MAX_COLOUR_STEP]
