"""Chinese shop titles for the synthetic catalogue: they name brand and series, and little of what the picture shows.

Each fact of a product is dropped, kept or replaced by a synonym on its own; sellers add noise and gifts ("送口红小样"),
so that a word in a title is no proof that the product is in the picture. The probabilities were set before any model
was trained, with one criterion: a TF-IDF caption baseline between 0.25 and 0.65 official mAP@10.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.catalogues.seeding import flip
from datamodules.catalogues.synthetic_shop import COLOUR_CATEGORIES, PLAIN_CATEGORIES, SERIES, Brand, Product

NOISE = (
    "包邮", "正品", "官方旗舰店", "专柜", "新款", "学生党", "女", "男女通用", "孕妇可用", "限量版", "礼盒装",
    "明星同款", "香港直邮", "代购", "国货", "特价", "买一送一", "现货", "小众", "高级感", "敏感肌", "四季可用",
)  # fmt: skip
SET_WORDS = ("套装", "套盒", "组合", "{}件套", "全套", "护肤彩妆套装")
COUNT_WORDS = "零一两三四五"


class CaptionRules(NamedTuple):
    """Probabilities of each fact being said."""

    brand_prob: float
    series_prob: float
    category_prob: float  # per product
    shade_prob: float  # per product whose category is named
    gift_prob: float = 0.25  # names a category that is not for sale here
    set_prob: float = 0.0


SINGLE = CaptionRules(brand_prob=0.85, series_prob=0.65, category_prob=0.60, shade_prob=0.35)
MULTI = CaptionRules(brand_prob=0.80, series_prob=0.45, category_prob=0.35, shade_prob=0.15, set_prob=0.6)


def _brand_words(rng: random.Random, brand: Brand) -> str:
    form = rng.random()
    if form < 0.40:
        return brand.chinese
    if form < 0.75:
        return rng.choice((brand.latin, brand.latin.lower(), brand.latin.capitalize()))
    return brand.latin + brand.chinese


def _product_words(rng: random.Random, product: Product, rules: CaptionRules) -> str:
    """Category and shade of one product, or nothing; a shade without its category is never said."""
    if not flip(rng, rules.category_prob):
        return ""
    words = rng.choice(product.category.words)
    if product.shade and flip(rng, rules.shade_prob):
        words = product.shade + words if flip(rng, 0.5) else f"{words}{product.shade}"
    return words


def _gift(rng: random.Random) -> str:
    category = rng.choice(PLAIN_CATEGORIES + COLOUR_CATEGORIES)
    return rng.choice(("送{}", "送{}小样", "赠{}")).format(rng.choice(category.words))


def caption(rng: random.Random, products: Sequence[Product], rules: CaptionRules | None = None) -> str:
    """A seller's title for a picture of `products` (1 to 5), never empty."""
    rules = rules or (SINGLE if len(products) == 1 else MULTI)
    named: list[str] = []
    for brand in dict.fromkeys(product.brand for product in products):
        if flip(rng, rules.brand_prob):
            named.append(_brand_words(rng, brand))
    for series in dict.fromkeys(product.series for product in products):
        if flip(rng, rules.series_prob):
            named.append(rng.choice(SERIES[series]))
    facts = [words for product in products if (words := _product_words(rng, product, rules))]
    rng.shuffle(facts)
    if flip(rng, rules.set_prob):
        facts.append(rng.choice(SET_WORDS).format(COUNT_WORDS[len(products)]))
    extras = [rng.choice(rng.choice(products).category.benefits)] if flip(rng, 0.4) else []
    extras += rng.sample(NOISE, rng.randint(1, 3))
    if flip(rng, rules.gift_prob):
        extras.append(_gift(rng))
    rng.shuffle(extras)
    cut = rng.randint(0, min(1, len(extras)))
    parts = extras[:cut] + named + facts + extras[cut:]
    return rng.choice(("", "", " ")).join(parts)
