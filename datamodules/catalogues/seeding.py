"""Random streams: one per item, independent of every other item, so that items can be made in any order or process."""

from __future__ import annotations

import random


def stream(*key: object) -> random.Random:
    """A generator that depends on `key` alone.

    A string seed is hashed with SHA-512 by `random.Random`, so streams of neighbouring keys are unrelated and the
    same on every platform, process and value of PYTHONHASHSEED.

    Args:
        key: what identifies the stream, for example seed, split and item number.
    """
    return random.Random("/".join(str(part) for part in key))


def flip(rng: random.Random, prob: float) -> bool:
    """True with probability `prob`."""
    return rng.random() < prob
