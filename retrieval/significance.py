"""Is one model better than another, or did it draw easier queries? Paired bootstrap over queries, and over seeds."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from retrieval.errors import RetrievalError

_DRAWS_AT_ONCE = 4_000_000  # bounds the memory of a block of resamples at about 100 MB


class Interval(NamedTuple):
    """Mean difference a - b with its confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True when the difference is significant at the interval's level."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, samples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Percentile interval of mean(a - b) when queries (and seeds) are drawn again with replacement.

    Both models are scored on the same draw, so what makes a query hard for both cancels.

    Args:
        a, b: scores of the same queries in the same order, shape (Q,) or (S, Q) with S training seeds. Row s of both
            belongs together; one side without seeds (a floor that is not trained) is paired with every seed.
        samples: number of resamples. seed: of the resampling; the same seed gives the same interval.
        confidence: probability mass inside the interval.

    Returns: Interval of the difference a - b; pass zeros as b for the interval of a itself.

    Raises: RetrievalError on shapes that cannot be paired, no queries, or scores that are not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.
    """
    difference_SQ = _paired_difference(a, b)
    if samples < 1 or not 0 < confidence < 1:
        raise RetrievalError(f"need samples >= 1 and 0 < confidence < 1; got {samples} and {confidence}")
    num_seeds, num_queries = difference_SQ.shape
    means, start = np.empty(samples), 0
    for drawn_BQ, share_BS in _draws(num_queries, num_seeds, samples, seed):
        stop = start + len(drawn_BQ)
        if share_BS is None:
            means[start:stop] = difference_SQ[0][drawn_BQ].mean(1)
        else:
            over_seeds_BQ = share_BS @ difference_SQ
            means[start:stop] = over_seeds_BQ.take(drawn_BQ).mean(1)
        start = stop
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(difference_SQ.mean()), float(low), float(high))


Draws = tuple[np.ndarray, np.ndarray | None]


def _draws(num_queries: int, num_seeds: int, samples: int, seed: int) -> Iterable[Draws]:
    """Blocks of resamples. A table asks for the same ones again and again, so that a single block is kept."""
    at_once = max(1, _DRAWS_AT_ONCE // (num_queries + num_seeds))
    return (_one_block if samples <= at_once else _blocks)(num_queries, num_seeds, samples, seed, at_once)


@functools.lru_cache(maxsize=2)  # a table's two tasks have different queries
def _one_block(*sizes: int) -> tuple[Draws, ...]:
    return tuple(_blocks(*sizes))


def _blocks(num_queries: int, num_seeds: int, samples: int, seed: int, at_once: int) -> Iterator[Draws]:
    """Rows of queries; with several seeds as places in (resample, query), beside each seed's share of a resample."""
    generator = np.random.default_rng(seed)
    for start in range(0, samples, at_once):
        num = min(at_once, samples - start)
        drawn_BQ = generator.integers(num_queries, size=(num, num_queries), dtype=np.int32)
        if num_seeds == 1:
            yield drawn_BQ, None
            continue
        seeds_BS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num)
        yield drawn_BQ + np.arange(num, dtype=np.int64)[:, None] * num_queries, seeds_BS / num_seeds


def _paired_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a_SQ, b_SQ = np.atleast_2d(np.asarray(a, float)), np.atleast_2d(np.asarray(b, float))
    fits = a_SQ.ndim == b_SQ.ndim == 2 and a_SQ.shape[1] == b_SQ.shape[1] > 0
    if not fits or (len(a_SQ) != len(b_SQ) and 1 not in (len(a_SQ), len(b_SQ))):
        raise RetrievalError(
            f"scores to compare need the same queries and seeds, shape (Q,) or (S, Q); got {np.shape(a)}, {np.shape(b)}"
        )
    difference_SQ = a_SQ - b_SQ
    if not np.isfinite(difference_SQ).all():
        raise RetrievalError("scores to compare must be finite: count queries that cannot be scored as 0")
    return difference_SQ
