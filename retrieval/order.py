"""The one order of this package: by falling score, equal scores by gallery id in code-point order.

Score and id are packed into one int64 that sorts accordingly, so a plain row-wise sort puts any list in order and
the sorted numbers still hold both.
"""

from __future__ import annotations

import numpy as np

LAST = np.iinfo(np.int64).max  # sorts behind every real item: no item


def id_ranks(ids: np.ndarray) -> np.ndarray:
    """Place of each id in code-point order (int64 N); numpy compares strings by code point."""
    ranks = np.empty(len(ids), np.int64)
    ranks[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    return ranks


def pack(score: np.ndarray, id_rank: np.ndarray) -> np.ndarray:
    """One int64 per item, smaller = better. Scores float32 without nan, ranks below 2**32."""
    # Adding +0.0 turns -0.0 into 0.0: they are equal as scores and must not differ as bits.
    bits = (np.asarray(score, np.float32) + np.float32(0.0)).view(np.int32)
    # Floats of one sign compare like integers; flipping the lower bits of negative ones mends their direction.
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return (np.invert(rising).astype(np.int64) << 32) | id_rank


def unpack(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (float32, -inf at LAST) and id ranks (int64, -1 at LAST)."""
    rising = np.invert((packed >> 32).astype(np.int32))
    bits = np.where(rising < 0, rising ^ np.int32(0x7FFFFFFF), rising)
    ended = packed == LAST
    score = np.where(ended, np.float32(-np.inf), bits.view(np.float32))
    return score, np.where(ended, np.int64(-1), packed & np.int64(0xFFFFFFFF))
