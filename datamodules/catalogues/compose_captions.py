"""Fuzzy captions: some of the products of a picture, by their exact name or only vaguely, among a seller's noise.

Each catalogue has its own `FuzzyRules`, set before any model was trained and tuned by one criterion only: a TF-IDF
caption baseline between 0.25 and 0.65 official mAP@10 on val and test. A caption may also praise a product that is
*not* in the picture ("goes well with …"), as shop titles do, so that only the picture tells which of the named
products is there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from datamodules.catalogues.seeding import flip


class Naming(Protocol):
    """How a caption may speak of one product."""

    def exact(self, rng: random.Random) -> str:
        """The product's full name, perhaps with a detail."""

    def vague(self, rng: random.Random) -> str:
        """Words that fit the product but do not contain its full name; may be empty."""


class FuzzyRules(NamedTuple):
    """What a caption says. Probabilities are per caption but `mention_prob`, which is per product."""

    exact_prob: float = 0.66  # the exact name of one product is given
    mention_prob: float = 0.55  # of the other products
    cross_sell_prob: float = 0.5
    cross_sell_exact_prob: float = 0.9  # that phrase gives an exact name
    noise_prob: float = 0.5


NOISE = {
    "en": ("new in", "best price", "free delivery", "special offer", "top quality", "online only", "while stocks last"),
    "zh": ("包邮", "正品", "新款", "特价", "现货", "官方旗舰店", "限量版"),
}
CROSS_SELL = {
    "en": ("goes well with {}", "see also {}", "combine with {}", "not {}", "others bought {}"),
    "zh": ("搭配{}", "送{}", "另有{}", "非{}"),
}
JOIN = {"en": (" and ", ", ", " with ", " + "), "zh": ("", " ", "+")}


def language(text: str) -> str:
    """ "zh" where the text has Chinese characters, else "en": which noise fits."""
    return "zh" if any("一" <= character <= "鿿" for character in text) else "en"


def fuzzy_caption(rng: random.Random, products: Sequence[Naming], other: Naming | None, rules: FuzzyRules) -> str:
    """A caption for a picture of `products`, never empty.

    Args:
        products: what the picture shows.
        other: a product it does not show, for the cross-sell phrase.
        rules: how much it says.
    """
    order = rng.sample(list(products), len(products))
    first, rest = order[0], order[1:]
    said = [first.exact(rng) if flip(rng, rules.exact_prob) else first.vague(rng)]
    said += [product.vague(rng) for product in rest if flip(rng, rules.mention_prob)]
    said = [words for words in said if words]
    rng.shuffle(said)
    tongue = language(said[0] if said else first.exact(rng))
    text = rng.choice(JOIN[tongue]).join(said)
    tail = []
    if other is not None and flip(rng, rules.cross_sell_prob):
        words = other.exact(rng) if flip(rng, rules.cross_sell_exact_prob) else other.vague(rng)
        tail += [rng.choice(CROSS_SELL[tongue]).format(words)] if words else []
    if not said or flip(rng, rules.noise_prob):
        tail.append(rng.choice(NOISE[tongue]))
    rng.shuffle(tail)
    return (", " if tongue == "en" else " ").join(part for part in [text, *tail] if part)
