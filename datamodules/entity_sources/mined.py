"""A lexicon found in the training captions themselves, without any label: what recurs, holds together and moves freely.

A run of units (ideographs, or words of scripts with spaces) is a term if enough captions hold it (frequency), its parts
keep together (cohesion) and many different units stand on both sides of it (boundary entropy), as in new-word discovery
for Chinese. Parts that are words in their own right have to keep together closely, or every "brand + colour" would be a
term. No label says what a term is, so properties come with brands and products.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from datamodules.entity_sources.entity import MINED_TAG, Entity, Item, Span
from datamodules.entity_sources.matcher import Matcher
from datamodules.entity_sources.ngrams import Grams, cohesion, corpus, count_grams, spell
from datamodules.entity_sources.stop_words import INNER_ONLY, MARKETING
from datamodules.entity_sources.text import is_unspaced, join_units, normalise, units
from datamodules.errors import DataError

log = logging.getLogger(__name__)

_BLANK = "\n"  # stands for a stop word: no unit, and not a space, so nothing reaches over it
_LETTER = re.compile(r"[^\W\d_]")


class MiningRules(NamedTuple):
    """When a run of units becomes a term.

    Args:
        max_units: most ideographs or words in a term.
        min_captions: training captions that hold it; 0 = 3, or 1 in 50,000 captions if that is more.
        max_share: of the training captions that hold it; what is in more says little about a product.
        min_cohesion: count(ab) / √(count(a) count(b)) of each split between two words or two terms, 0 … 1.
        min_inner_cohesion: of every other split, at an ideograph.
        min_entropy: nats of the unit before and of the unit behind, each.
        max_terms: those in most captions are kept.
        stop_words: further words and phrases, parted by commas, that name nothing.
    """

    max_units: int = 6
    min_captions: int = 0
    max_share: float = 0.3
    min_cohesion: float = 0.25
    min_inner_cohesion: float = 0.03
    min_entropy: float = 0.8
    max_terms: int = 50_000
    stop_words: str = ""


class MinedSource:
    """Entities by longest match of a mined lexicon.

    Args:
        rules: of mining.

    Raises:
        DataError: a rule out of range.
    """

    def __init__(self, rules: MiningRules | None = None) -> None:
        self.rules = rules or MiningRules()
        for key, low, high in (
            ("max_units", 1, 12), ("min_captions", 0, None), ("max_share", 0, 1), ("min_cohesion", 0, 1),
            ("min_inner_cohesion", 0, 1), ("min_entropy", 0, None), ("max_terms", 1, None),
        ):  # fmt: skip
            value = getattr(self.rules, key)
            if value < low or (high is not None and value > high):
                raise DataError(f"mining: {key}={value}; give {low} to {high or 'any'}.")
        own = (normalise(word) for word in self.rules.stop_words.split(","))
        self._stops = Matcher({word: "" for word in (*MARKETING, *own) if word})
        self.terms: dict[str, int] = {}  # term -> training captions that hold it, the best first
        self._matcher: Matcher | None = None

    def settings(self) -> dict[str, Any]:
        """The rules."""
        return {"kind": "mined", **self.rules._asdict()}

    def prepare(self, train_captions: Iterable[str]) -> None:
        """Mine the lexicon; the order of the captions does not matter.

        Raises:
            DataError: nothing recurs.
        """
        text = corpus(units(self._blanked(normalise(caption))) for caption in train_captions)
        least = self.rules.min_captions or max(3, text.num_captions // 50_000)
        terms = self._terms(count_grams(text, self.rules.max_units, least), text.vocabulary, text.num_captions)
        self.terms = dict(sorted(terms, key=lambda term: (-term[1], term[0]))[: self.rules.max_terms])
        if not self.terms:
            raise DataError(
                f"Mining found no entity in {text.num_captions} training captions: nothing recurs in {least} of them "
                "as the rules want it. Lower min_captions, min_cohesion or min_entropy (--mine KEY=VALUE), or give a "
                "lexicon (--lexicon) or a tagger (docs/entities.md)."
            )
        self._matcher = Matcher(dict.fromkeys(self.terms, MINED_TAG), cover=True)

    def find(self, items: Iterable[Item]) -> Iterator[list[Entity]]:
        """As `EntitySource.find`."""
        for item in items:
            text = normalise(item.caption)
            yield [Entity(text[span.start : span.end], span.tag) for span in self.spans(text)]

    def spans(self, text: str) -> list[Span]:
        """The terms in a normalised text."""
        assert self._matcher is not None, "prepare first"
        return self._matcher.spans(self._blanked(text))

    def problems(self) -> dict[str, int]:
        """None that would not have been raised."""
        return {}

    def _blanked(self, text: str) -> str:
        for start, end, _ in self._stops.spans(text):
            text = text[:start] + _BLANK * (end - start) + text[end:]
        return text

    def _terms(self, levels: list[Grams], vocabulary: list[str], num_captions: int) -> Iterator[tuple[str, int]]:
        """(term, training captions that hold it), shorter ones first."""
        rules, most = self.rules, max(1, self.rules.max_share * num_captions)
        common: set[str] = set()  # words in so many captions that a term neither begins nor ends with them
        standing: list[np.ndarray] = []
        is_word_G = np.array([not is_unspaced(vocabulary[int(unit)]) for unit in (levels[0].first_G if levels else ())])
        for level in levels:
            apart_G, within_G = cohesion(levels[: level.length], standing, is_word_G)
            good_G = (apart_G >= rules.min_cohesion) & (within_G >= rules.min_inner_cohesion)
            good_G &= level.entropy_G >= rules.min_entropy
            for gram in np.flatnonzero(good_G):
                run, captions = spell(levels, level.length, int(gram), vocabulary), int(level.captions_G[gram])
                good_G[gram] = _names_something(run)
                if not good_G[gram]:
                    continue
                if captions > most:
                    common.add(join_units(run))
                elif run[0] not in common and run[-1] not in common:
                    yield join_units(run), captions
            standing.append(good_G | np.isfinite(apart_G))  # a term, or made of terms


def _names_something(run: list[str]) -> bool:
    """Neither a lone character, nor cut at a number (with its measure) or a word of grammar."""
    if run[0] in INNER_ONLY or run[-1] in INNER_ONLY or run[0][0].isdigit() or run[-1][0].isdigit():
        return False
    if len(run) == 1 and (is_unspaced(run[0]) or len(run[0]) < 2):
        return False
    return any(_LETTER.search(unit) for unit in run)
