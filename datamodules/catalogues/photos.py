"""Any list of single-product photos with titles and labels: the way to use data of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.catalogues.compose import check_composites, compose, draw_number
from datamodules.catalogues.compose_captions import FuzzyRules, fuzzy_caption
from datamodules.catalogues.duplicates import group_near_identical, perceptual_hash
from datamodules.catalogues.photo_lists import PhotoRow, find_list, read_list
from datamodules.catalogues.photo_splits import MIN_PICTURES, split_photos
from datamodules.catalogues.photo_titles import PhotoTitle
from datamodules.catalogues.picture_files import UnusablePictureError, decode, find_picture, read_picture
from datamodules.catalogues.record import ProductRecord, Skipped, Split
from datamodules.catalogues.seeding import stream
from datamodules.errors import DataError

# Fixed before the first training (see `compose_captions`).
SINGLE_RULES = FuzzyRules(cross_sell_prob=0.2, cross_sell_exact_prob=0.5)
MULTI_RULES = FuzzyRules(cross_sell_prob=0.3, cross_sell_exact_prob=0.5)


class PhotoItem(NamedTuple):
    """One planned picture: a photo as it is, or a composite of several."""

    id: str
    rows: tuple[PhotoRow, ...]
    other: str  # title of a product that is not shown


@lru_cache(maxsize=2)
def _groups(raw: Path, rows: tuple[PhotoRow, ...]) -> dict[str, str]:
    hashes = {}
    for row in rows:
        try:
            hashes[row.id] = perceptual_hash(read_picture(find_picture(raw, row.id, row.urls)))
        except UnusablePictureError:
            continue  # stays in training, where `make` skips and counts it
    return group_near_identical(hashes)


@dataclass(frozen=True)
class Photos:
    """Single photos for training and gallery; queries are composites of photos that are in neither.

    Args:
        raw: folder with the list and its pictures.
        seed: decides the split, the composites and the captions.
        image_size_px: side of composites; single photos keep their bytes.
        num_train_composites, num_val, num_test: composites of 2 to 5 photos each.
        list_file: name of the list, where the folder has several.
    """

    raw: str
    seed: int = 0
    image_size_px: int = 224
    num_train_composites: int = 12000
    num_val: int = 400
    num_test: int = 800
    list_file: str = ""

    name = "photos"

    def __post_init__(self) -> None:
        counts = {key: getattr(self, key) for key in ("num_train_composites", "num_val", "num_test")}
        check_composites(counts, self.image_size_px)
        _ = self.rows  # a bad list is reported at once

    @property
    def path(self) -> Path:
        return find_list(Path(self.raw), self.list_file)

    @property
    def rows(self) -> tuple[PhotoRow, ...]:
        return read_list(self.path)

    def plan(self, split: Split) -> Sequence[PhotoItem]:
        """Single photos in list order, then composites."""
        groups = _groups(Path(self.raw), self.rows)
        if not groups:
            raise DataError(
                f"{self.path}: not one of {len(self.rows)} pictures is there and can be read, e.g. that of "
                f"'{self.rows[0].id}' at {', '.join(self.rows[0].urls) or 'no address'}; are they where the list says?"
            )
        # What cannot be used stays in training, where it is skipped and counted; in a query it would spoil a composite.
        groups = {row.id: groups[row.id] for row in self.rows if row.caption and row.id in groups}
        splits = split_photos(self.rows, groups, self.seed)
        if "gallery" not in splits.values():
            raise DataError(
                f"{self.path}: no label has {MIN_PICTURES} different pictures, so there is nothing to ask for; "
                "check the label column"
            )
        rows = [row for row in self.rows if splits[row.id] == split]
        usable = [row for row in rows if row.id in groups]
        if split == "gallery":
            return self._singles(split, rows)
        if split == "train":
            return self._singles(split, rows) + self._composites(split, usable, self.num_train_composites)
        return self._composites(split, usable, self.num_val if split == "val" else self.num_test)

    def num_present(self, split: Split) -> int:
        """Items whose pictures are all there and can be read."""
        groups = _groups(Path(self.raw), self.rows)
        return sum(all(row.id in groups for row in item.rows) for item in self.plan(split))

    def _singles(self, split: Split, rows: Sequence[PhotoRow]) -> list[PhotoItem]:
        return [PhotoItem(row.id, (row,), self._other(split, row.id, {row.label})) for row in rows]

    def _composites(self, split: Split, rows: Sequence[PhotoRow], number: int) -> list[PhotoItem]:
        if number and len(rows) < 2:
            raise DataError(
                f"{self.path}: {len(rows)} usable photos for {split} composites, 2 are needed; add photos per label "
                f"or set num_{'train_composites' if split == 'train' else split}=0"
            )
        items = []
        for index in range(number):
            rng = stream(self.seed, "set", split, index)
            chosen = tuple(rng.sample(rows, draw_number(rng, len(rows))))
            key = f"{split}-set-{index:06d}"
            items.append(PhotoItem(key, chosen, self._other(split, key, {row.label for row in chosen})))
        return items

    def _other(self, split: Split, key: str, shown: set[str]) -> str:
        rng = stream(self.seed, "other", split, key)
        row = rng.choice(self.rows)
        return row.caption if row.label not in shown else ""

    def make(self, split: Split, item: PhotoItem) -> ProductRecord | Skipped:
        """Reads one photo or composes several."""
        if not all(row.caption for row in item.rows):
            return Skipped(item.id, "empty_caption")
        raw = Path(self.raw)
        try:
            pictures = [read_picture(find_picture(raw, row.id, row.urls)) for row in item.rows]
            if len(pictures) == 1:
                image, boxes = pictures[0], None
            else:
                rng = stream(self.seed, "picture", split, item.id)
                image, boxes = compose(rng, [decode(picture) for picture in pictures], self.image_size_px)
        except UnusablePictureError as error:
            return Skipped(item.id, error.reason)
        other = PhotoTitle(item.other) if item.other else None
        titles = [PhotoTitle(row.caption) for row in item.rows]
        labels = tuple(row.label for row in item.rows)
        known = "" not in labels  # boxes are aligned with labels, so both or neither
        rules = SINGLE_RULES if len(titles) == 1 else MULTI_RULES
        return ProductRecord(
            id=item.id,
            image=image,
            caption=fuzzy_caption(stream(self.seed, "caption", split, item.id), titles, other, rules),
            labels=labels if known else (),
            kind="single" if len(titles) == 1 else "multi",
            source=item.rows[0].urls[0] if len(titles) == 1 else "+".join(row.id for row in item.rows),
            boxes=boxes if known else None,
        )

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"source": self.name, **asdict(self), "raw": Path(self.raw).resolve().name, "list_file": self.path.name,
                "list_sha256": digest}  # fmt: skip
