"""Pairs of Product1M's number and make, for tests of size: small pictures, captions as long as real ones, no download.

Nothing is to be learnt from them. What a pair costs to write, verify, stream and tokenise is meant to be real: each
picture is a file of its own, each caption has a word that no other has (an article number), and each id occurs once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from datamodules.catalogues.record import SPLITS, ProductRecord, Split
from datamodules.catalogues.seeding import stream
from datamodules.catalogues.synthetic_captions import NOISE, caption
from datamodules.catalogues.synthetic_shop import Product, build_shop
from datamodules.errors import DataError

PRODUCT1M_PAIRS = {"train": 1_132_830, "val": 2_673, "test": 6_547, "gallery": 40_033}
NUM_LABELS = 392  # as in Product1M's val and test

# Of the real val and test lists: characters of a caption, and products of a picture, as thousandths.
_MEAN_LENGTH, _LENGTH_DEVIATION, _SHORTEST, _LONGEST = 31.4, 5.8, 14, 54
_NUM_PRODUCTS_WEIGHTS = {1: 24, 2: 429, 3: 346, 4: 123, 5: 78}

_PICTURES_PER_SPLIT = 2_048  # drawn once in each process: encoding one takes as long as all the rest of a pair
_TEXTURE = {4: 8, 16: 3, 64: 1}  # cells on a side -> weight: files of some 1.4 kB at 64 px
_AFTER_JFIF = 20  # bytes, where a comment may stand


@lru_cache(maxsize=2)
def _shop(seed: int) -> tuple[Product, ...]:
    return build_shop(seed, NUM_LABELS)


@dataclass(frozen=True)
class Million:
    """As many pairs as Product1M, or fewer in the same proportions.

    Args:
        seed: decides every picture and caption.
        num_pairs: of all splits together.
        image_size_px: side of the square pictures.
    """

    seed: int = 0
    num_pairs: int = sum(PRODUCT1M_PAIRS.values())
    image_size_px: int = 64

    name = "million"

    def __post_init__(self) -> None:
        if self.num_pairs < 2 * len(SPLITS):
            raise DataError(f"num_pairs is {self.num_pairs}; give {2 * len(SPLITS)} or more")
        if not 16 <= self.image_size_px <= 2048:
            raise DataError(f"image_size_px is {self.image_size_px}; pictures are drawn in 16 to 2048 px")

    def plan(self, split: Split) -> Sequence[int]:
        """Numbers of the pairs; training gets what the others leave."""
        if split == "train":
            return range(self.num_pairs - sum(len(self.plan(other)) for other in SPLITS[1:]))
        share = self.num_pairs / sum(PRODUCT1M_PAIRS.values())
        return range(max(1, round(PRODUCT1M_PAIRS[split] * share)))

    def make(self, split: Split, item: int) -> ProductRecord:
        """Draws the products, titles them, and takes a picture from the pool."""
        rng = stream(self.seed, split, item)
        sold = _shop(self.seed)[: len(self.plan("gallery"))]
        if split == "gallery" or (split == "train" and item % 2):
            products = [sold[item % len(sold)]]
        else:
            size = rng.choices(tuple(_NUM_PRODUCTS_WEIGHTS), tuple(_NUM_PRODUCTS_WEIGHTS.values()))[0]
            products = rng.sample(sold, min(size, len(sold)))
        item_id = f"{split}-{item:07d}"
        return ProductRecord(
            id=item_id,
            image=_of_its_own(self._picture(split, item), item_id),
            caption=_title(rng, products, item),
            labels=tuple(product.label for product in products),
            kind="single" if len(products) == 1 else "multi",
            source=f"million://{self.seed}/{split}/{item}",
        )

    def _picture(self, split: Split, item: int) -> bytes:
        return _encoded(self.seed, SPLITS.index(split), item % _PICTURES_PER_SPLIT, self.image_size_px)

    def settings(self) -> dict[str, Any]:
        return {"source": self.name, **asdict(self)}


def _title(rng: Random, products: Sequence[Product], number: int) -> str:
    """A seller's words up to a real caption's length, then the article number."""
    article = f" {number // 10_000:04d}-{number % 10_000:04d}"
    drawn = round(rng.gauss(_MEAN_LENGTH, _LENGTH_DEVIATION))
    length = min(max(drawn, _SHORTEST), _LONGEST) - len(article)
    text = caption(rng, products)
    while len(text) < length:
        text += rng.choice(NOISE)
    return text[:length].strip() + article


def _of_its_own(jpeg: bytes, item_id: str) -> bytes:
    """The picture with its id as a comment, so that no two files are the same."""
    text = item_id.encode()
    comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
    return jpeg[:_AFTER_JFIF] + comment + jpeg[_AFTER_JFIF:]


@lru_cache(maxsize=len(SPLITS) * _PICTURES_PER_SPLIT)
def _encoded(seed: int, split: int, number: int, side_px: int) -> bytes:
    rng = np.random.default_rng((seed, split, number))
    layers = [_noise(rng, cells, side_px) for cells in _TEXTURE]
    pixels = np.average(layers, axis=0, weights=list(_TEXTURE.values())).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def _noise(rng: np.random.Generator, cells: int, side_px: int) -> np.ndarray:
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
    return np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC), np.float32)
