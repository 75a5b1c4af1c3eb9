"""Counts of all frequent runs of units in one corpus: how often, in how many captions, how cohesive, how free.

An n-gram is only counted where both its (n−1)-grams are frequent, and is numbered by their numbers, so each length is a
few sorts of integer arrays: n log n in the units of the corpus, no strings, no hash maps.

Shape legend: P positions of the corpus, G distinct n-grams of one length.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_END = 0  # number of the mark between two runs


class Corpus(NamedTuple):
    """Runs of units one after another, with a mark before, between and behind them."""

    units_P: np.ndarray  # int32 number of the unit; 0 = mark
    captions_P: np.ndarray  # int32 number of the caption
    vocabulary: list[str]  # unit of each number
    num_captions: int  # those without a unit, too


class Grams(NamedTuple):
    """The frequent n-grams of one length."""

    length: int
    first_G: np.ndarray  # number of the (n−1)-gram without the last unit; the unit itself for n = 1
    last_G: np.ndarray  # number of the (n−1)-gram without the first unit; the unit itself for n = 1
    counts_G: np.ndarray  # occurrences
    captions_G: np.ndarray  # captions that hold it
    entropy_G: np.ndarray  # nats of the unit before or behind it, whichever is less free


def corpus(captions: Iterable[list[list[str]]]) -> Corpus:
    """Number the units of captions, each given as runs of units."""
    numbers: dict[str, int] = {"": _END}
    flat, lengths = [_END], [1]
    for runs in captions:
        before = len(flat)
        for run in runs:
            flat.extend([numbers.setdefault(unit, len(numbers)) for unit in run])
            flat.append(_END)
        lengths.append(len(flat) - before)
    owners_P = np.repeat(np.arange(-1, len(lengths) - 1, dtype=np.int32), lengths)
    return Corpus(np.array(flat, np.int32), owners_P, list(numbers), len(lengths) - 1)


def count_grams(text: Corpus, max_length: int, min_captions: int) -> list[Grams]:
    """The n-grams of 1 to `max_length` units that at least `min_captions` captions hold, length by length."""
    grams_P = np.where(text.units_P == _END, -1, text.units_P).astype(np.int64)
    levels: list[Grams] = []
    for length in range(1, max_length + 1):
        starts_P, keys_P, base = _candidates(grams_P, length)
        if not len(starts_P):
            break
        keys_G, of_P = np.unique(keys_P, return_inverse=True)
        captions_G = _num_captions(of_P, text.captions_P[starts_P], len(keys_G))
        kept_G = captions_G >= min_captions
        renumbered_G = np.where(kept_G, np.cumsum(kept_G) - 1, -1)
        of_P, keys_G = renumbered_G[of_P], keys_G[kept_G]
        starts_P, of_P = starts_P[of_P >= 0], of_P[of_P >= 0]
        if not len(keys_G):
            break
        counts_G = np.bincount(of_P, minlength=len(keys_G))
        first_G, last_G = (keys_G, keys_G) if length == 1 else (keys_G // base, keys_G % base)
        entropy_G = np.minimum(
            _entropies(of_P, text.units_P[starts_P - 1], counts_G, len(text.vocabulary)),
            _entropies(of_P, text.units_P[starts_P + length], counts_G, len(text.vocabulary)),
        )
        levels.append(Grams(length, first_G, last_G, counts_G, captions_G[kept_G], entropy_G))
        grams_P = np.full(len(text.units_P), -1, np.int64)
        grams_P[starts_P] = of_P
    return levels


def spell(levels: list[Grams], length: int, gram: int, vocabulary: list[str]) -> list[str]:
    """The units of an n-gram."""
    backwards = []
    while length > 1:
        level = levels[length - 1]
        last, below = gram, length
        while below > 1:
            last, below = int(levels[below - 1].last_G[last]), below - 1
        backwards.append(last)
        gram, length = int(level.first_G[gram]), length - 1
    backwards.append(gram)
    return [vocabulary[int(levels[0].first_G[unit])] for unit in reversed(backwards)]


def _candidates(grams_P: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Where an n-gram may start, its key there, and the base of that key."""
    if length == 1:
        starts_P = np.flatnonzero(grams_P >= 0)
        return starts_P, grams_P[starts_P], 1
    starts_P = np.flatnonzero((grams_P[:-1] >= 0) & (grams_P[1:] >= 0))
    base = int(grams_P.max(initial=0)) + 1
    return starts_P, grams_P[starts_P] * base + grams_P[starts_P + 1], base


def _num_captions(of_P: np.ndarray, captions_P: np.ndarray, num_grams: int) -> np.ndarray:
    order = np.argsort(of_P, kind="stable")  # captions ascend within each n-gram
    grams, captions = of_P[order], captions_P[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (captions[1:] != captions[:-1])
    return np.bincount(grams[new], minlength=num_grams)


def _entropies(of_P: np.ndarray, neighbours_P: np.ndarray, counts_G: np.ndarray, num_units: int) -> np.ndarray:
    """Entropy (nats) of the unit beside each n-gram; every end of a run counts as a neighbour of its own."""
    pairs, counts = np.unique(of_P.astype(np.int64) * num_units + neighbours_P, return_counts=True)
    grams, neighbours = pairs // num_units, pairs % num_units
    share = counts / counts_G[grams]
    each = np.where(neighbours == _END, 1 / counts_G[grams], share)
    return np.bincount(grams, -share * np.log(each), minlength=len(counts_G))


def cohesion(levels: list[Grams], standing: list[np.ndarray], is_word_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """count(ab) / √(count(a) count(b)) of the weakest split ab of the longest n-grams: 1 = never apart, 0 = by chance.

    Args:
        levels: n-grams of 1 … n units.
        standing: for 1 … n − 1 units, which n-grams are terms in their own right, or made of such.
        is_word_G: which single units are whole words, not ideographs.

    Returns:
        apart_G: of splits between two words or two terms; infinite without one.
        within_G: of all other splits; infinite without one.
    """
    level = levels[-1]
    apart_G, within_G = np.full((2, len(level.counts_G)), np.inf)
    for left in range(1, level.length):
        right = level.length - left
        head_G = _shortened(levels, level.length, left, "first_G", np.arange(len(level.counts_G)))
        tail_G = _shortened(levels, level.length, right, "last_G", np.arange(len(level.counts_G)))
        parts_G = np.sqrt(levels[left - 1].counts_G[head_G] * levels[right - 1].counts_G[tail_G].astype(float))
        split_G = level.counts_G / parts_G
        terms_G = standing[left - 1][head_G] & standing[right - 1][tail_G]
        words_G = is_word_G[_shortened(levels, left, 1, "last_G", head_G)]
        words_G &= is_word_G[_shortened(levels, right, 1, "first_G", tail_G)]
        apart_G = np.where(terms_G | words_G, np.minimum(apart_G, split_G), apart_G)
        within_G = np.where(terms_G | words_G, within_G, np.minimum(within_G, split_G))
    return apart_G, within_G


def _shortened(levels: list[Grams], length: int, to: int, link: str, grams: np.ndarray) -> np.ndarray:
    """The first ("first_G") or last ("last_G") `to` units of n-grams."""
    for level in reversed(levels[to:length]):
        grams = getattr(level, link)[grams]
    return grams
