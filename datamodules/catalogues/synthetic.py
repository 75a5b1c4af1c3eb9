"""The synthetic catalogue: a seeded shop that needs no download, with the difficulties of Product1M built in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from datamodules.catalogues.record import ProductRecord, Split
from datamodules.catalogues.seeding import flip, stream
from datamodules.catalogues.synthetic_captions import caption
from datamodules.catalogues.synthetic_scene import render
from datamodules.catalogues.synthetic_shop import MAX_LABELS, MIN_LABELS, Product, build_shop
from datamodules.errors import DataError

SAME_BRAND_PROB = 0.7  # a set is mostly of one brand, else of any
NUM_PRODUCTS_WEIGHTS = {2: 40, 3: 35, 4: 17, 5: 8}  # 2.9 products on average, as in Product1M
MIN_GALLERY_PER_LABEL = 2


class SyntheticItem(NamedTuple):
    """One planned picture."""

    number: int
    labels: tuple[int, ...]  # rows of the shop's product table


@lru_cache(maxsize=4)
def _shop(seed: int, num_labels: int) -> tuple[Product, ...]:
    return build_shop(seed, num_labels)


@dataclass(frozen=True)
class Synthetic:
    """A cosmetics shop rendered from `seed`.

    Args:
        seed: decides the shop and every picture and caption.
        image_size_px: side of the square pictures.
        num_labels: distinct products.
        num_train_singles, num_train_multis: pictures of one product and of 2 to 5.
        num_gallery: single-product pictures, dealt evenly over the labels.
        num_val, num_test: multi-product queries.
    """

    seed: int = 0
    image_size_px: int = 128
    num_labels: int = 96
    num_train_singles: int = 6000
    num_train_multis: int = 6000
    num_gallery: int = 768
    num_val: int = 400
    num_test: int = 400

    name = "synthetic"

    def __post_init__(self) -> None:
        if not MIN_LABELS <= self.num_labels <= MAX_LABELS:
            raise DataError(f"num_labels is {self.num_labels}; the synthetic shop has {MIN_LABELS} to {MAX_LABELS}")
        if not 32 <= self.image_size_px <= 2048:
            raise DataError(f"image_size_px is {self.image_size_px}; the renderer draws 32 to 2048 px")
        for key in ("num_train_singles", "num_train_multis", "num_val", "num_test"):
            if getattr(self, key) < 0:
                raise DataError(f"{key} is {getattr(self, key)}; give 0 or more pictures")
        least = MIN_GALLERY_PER_LABEL * self.num_labels
        if self.num_gallery < least:
            raise DataError(
                f"num_gallery is {self.num_gallery}; {self.num_labels} labels with {MIN_GALLERY_PER_LABEL} gallery "
                f"items each need at least {least}: raise num_gallery or lower num_labels"
            )

    @property
    def products(self) -> tuple[Product, ...]:
        """The label table."""
        return _shop(self.seed, self.num_labels)

    def plan(self, split: Split) -> Sequence[SyntheticItem]:
        """Which products stand on which picture."""
        num_singles, num_multis = {
            "train": (self.num_train_singles, self.num_train_multis),
            "gallery": (self.num_gallery, 0),
            "val": (0, self.num_val),
            "test": (0, self.num_test),
        }[split]
        singles = [(number % self.num_labels,) for number in range(num_singles)]
        multis = [self._draw_set(split, number) for number in range(num_multis)]
        return [SyntheticItem(number, labels) for number, labels in enumerate([*singles, *multis])]

    def _draw_set(self, split: Split, number: int) -> tuple[int, ...]:
        """2 to 5 different products; labels repeat only where a seller shows two of one, which is rare."""
        rng = stream(self.seed, "set", split, number)
        size = rng.choices(tuple(NUM_PRODUCTS_WEIGHTS), tuple(NUM_PRODUCTS_WEIGHTS.values()))[0]
        first = rng.randrange(self.num_labels)
        others = [row for row in range(self.num_labels) if row != first]
        if flip(rng, SAME_BRAND_PROB):
            others = [row for row in others if self.products[row].brand == self.products[first].brand]
        chosen = rng.sample(others, min(size - 1, len(others)))
        if flip(rng, 0.05):
            chosen[-1] = first
        return (first, *chosen)

    def make(self, split: Split, item: SyntheticItem) -> ProductRecord:
        """Renders the picture and writes its title."""
        products = [self.products[row] for row in item.labels]
        image, boxes = render(stream(self.seed, "picture", split, item.number), products, self.image_size_px)
        return ProductRecord(
            id=f"{split}-{item.number:06d}",
            image=image,
            caption=caption(stream(self.seed, "caption", split, item.number), products),
            labels=tuple(product.label for product in products),
            kind="single" if len(products) == 1 else "multi",
            source=f"synthetic://{self.seed}/{split}/{item.number}",
            boxes=boxes,
        )

    def settings(self) -> dict[str, Any]:
        return {"source": self.name, **asdict(self)}
