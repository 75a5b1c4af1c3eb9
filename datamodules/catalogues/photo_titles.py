"""What captions may say of a photo that only has a title: all of it, or what is left after dropping words."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from datamodules.catalogues.seeding import flip

# What the picture shows anyway is what sellers leave out first: colours, then the kind of thing.
_COLOUR_WORDS = (
    "black white red blue navy green yellow orange purple pink brown grey gray beige gold golden silver maroon olive "
    "turquoise cream khaki tan teal magenta lavender peach rust charcoal bronze copper burgundy mustard multi steel "
    "coffee skin nude metallic 黑色 白色 红色 蓝色 绿色 黄色 粉色 紫色 灰色 棕色 金色 银色"
)
COLOUR_WORDS = frozenset(_COLOUR_WORDS.split())
SYNONYMS = {
    "tshirt": ("T-shirt", "Tee"), "t-shirt": ("Tshirt", "Tee"), "tshirts": ("T-shirts", "Tees"), "tee": ("T-shirt",),
    "shoes": ("footwear", "shoe"), "shoe": ("footwear", "shoes"), "watch": ("timepiece", "wristwatch"),
    "shirt": ("shirts",), "shirts": ("shirt",), "bag": ("handbag",), "handbag": ("bag", "purse"),
    "trousers": ("pants",),
    "pants": ("trousers",), "top": ("blouse",), "men": ("mens", "gents"), "women": ("womens", "ladies"),
    "sunglasses": ("shades", "eyewear"), "kids": ("children",), "heels": ("pumps",), "jeans": ("denims",),
    "printed": ("print",), "striped": ("stripes",), "stripes": ("striped",), "solid": ("plain",), "check": ("checked",),
}  # fmt: skip
COLOUR_DROP_PROB = 0.7
WORD_DROP_PROB = 0.35
SYNONYM_PROB = 0.4


def words_of(title: str) -> list[str]:
    """Words at spaces; runs of Chinese characters, which have none, in pieces of two."""
    pieces: list[str] = []
    for word in title.split():
        pieces += re.findall(r"[一-鿿]{1,2}|[^一-鿿]+", word)
    return pieces


class PhotoTitle(NamedTuple):
    """Both manners of naming a photo by its title (see `compose_captions.Naming`)."""

    title: str

    def exact(self, rng: random.Random) -> str:
        return self.title

    def vague(self, rng: random.Random) -> str:
        """The title with words dropped and replaced; at least one dropped, at least one kept where there are two."""
        words = words_of(self.title)
        if len(words) < 2:
            return ""
        prob = [COLOUR_DROP_PROB if word.lower() in COLOUR_WORDS else WORD_DROP_PROB for word in words]
        keep = [not flip(rng, drop) for drop in prob]
        if all(keep):
            keep[rng.randrange(len(keep))] = False
        if not any(keep):
            keep[rng.randrange(len(keep))] = True
        kept = []
        for word in (word for word, kept_word in zip(words, keep, strict=True) if kept_word):
            choices = SYNONYMS.get(word.lower(), ())
            kept.append(rng.choice(choices) if choices and flip(rng, SYNONYM_PROB) else word)
        return ("" if re.search("[一-鿿]", self.title) else " ").join(kept)
