"""Many terms in a text at once, by Aho–Corasick. The only file that imports pyahocorasick."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from datamodules.entity_sources.entity import Span
from datamodules.entity_sources.text import cuts_word
from datamodules.errors import DataError


class Matcher:
    """Finds the terms of a lexicon in normalised texts, without overlap: leftmost first, and of those the longest.

    All occurrences are looked at, not only the automaton's longest: the longest may begin or end inside a word, and a
    shorter one be whole. Time is linear in the text and its occurrences, whatever the number of terms.

    Args:
        tags: normalised term -> tag.
        cover: choose the terms that cover most of the text, of these the fewest, instead of the longest: for lexicons
            whose longer terms are not to be trusted more than their shorter ones.

    Raises:
        DataError: no terms, or the library is not installed.
    """

    def __init__(self, tags: Mapping[str, str], cover: bool = False) -> None:
        if not tags:
            raise DataError("The lexicon of entities is empty; give one with at least one term.")
        try:
            import ahocorasick
        except ImportError as error:
            raise DataError(f"Entities in captions are found with pyahocorasick ({error}): run `make setup`.") from None
        self._choose = _most_covering if cover else _longest
        self._automaton: Any = ahocorasick.Automaton()
        for term, tag in tags.items():
            self._automaton.add_word(term, (len(term), tag))
        self._automaton.make_automaton()

    def spans(self, text: str) -> list[Span]:
        """The terms in a normalised text, from left to right."""
        found = []
        for last, (length, tag) in self._automaton.iter(text):
            start, end = last + 1 - length, last + 1
            if not cuts_word(text, start) and not cuts_word(text, end):
                found.append(Span(start, end, tag))
        return self._choose(found)


def _longest(found: list[Span]) -> list[Span]:
    spans, free = [], 0
    for span in sorted(found, key=lambda span: (span.start, -span.end)):
        if span.start >= free:
            free = span.end
            spans.append(span)
    return spans


def _most_covering(found: list[Span]) -> list[Span]:
    """By dynamic programming over the ends; `found` ascends by end, as the automaton yields it."""
    ends, best = [0], [(0, 0)]  # covered characters, minus the number of terms, up to an end
    last: list[Span | None] = [None]
    for span in found:
        before = bisect_right(ends, span.start) - 1
        covered, fewer = best[before]
        worth = (covered + span.end - span.start, fewer - 1)
        if worth <= best[-1]:
            continue
        if ends[-1] < span.end:
            ends.append(span.end)
            best.append(worth)
            last.append(span)
        else:
            best[-1], last[-1] = worth, span
    spans, place = [], len(ends) - 1
    while (chosen := last[place]) is not None:
        spans.append(chosen)
        place = bisect_right(ends, chosen.start) - 1
    return spans[::-1]
