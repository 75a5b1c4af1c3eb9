"""GroceryStoreDataset: real photos of fruit, vegetables and cartons in 81 fine classes.

Source: Klasson, Zhang, Kjellström, "A Hierarchical Grocery Store Image Dataset with Visual and Semantic Labels",
WACV 2019; the folder as its authors publish it.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.catalogues.compose import check_composites, compose, draw_number
from datamodules.catalogues.compose_captions import FuzzyRules, fuzzy_caption
from datamodules.catalogues.duplicates import PictureHash, group_near_identical, members_by_group, perceptual_hash
from datamodules.catalogues.grocery_names import GroceryClass, describe
from datamodules.catalogues.picture_files import UnusablePictureError, decode, read_picture
from datamodules.catalogues.record import ProductRecord, Skipped, Split
from datamodules.catalogues.seeding import stream
from datamodules.errors import DataError

LISTS = ("classes.csv", "train.txt", "val.txt", "test.txt")

# Shots of one shelf from nearly one place: kept in one half, else a query finds its own scene in the gallery.
SAME_SCENE_DISTANCE = 10  # of 64 bits
SAME_SCENE_FINE_DISTANCE = 40  # of 256 bits
NEAR_DUPLICATE_DISTANCE = 4

# Fixed before the first training (see `compose_captions`).
SINGLE_RULES = FuzzyRules(cross_sell_prob=0.5, cross_sell_exact_prob=0.9)
MULTI_RULES = FuzzyRules(cross_sell_prob=0.85, cross_sell_exact_prob=0.9)


class Photo(NamedTuple):
    path: str  # relative to the dataset folder
    label: int  # fine class id


class GroceryItem(NamedTuple):
    """One planned picture: a photo as it is, or a composite of several."""

    id: str
    photos: tuple[Photo, ...]
    other: int  # fine class id of a product that is not shown
    skip: str = ""  # reason, where the photo must not be used


def dataset_folder(raw: Path) -> Path:
    """The folder that holds classes.csv: `raw` itself or its `dataset`."""
    for folder in (raw / "dataset", raw):
        if (folder / "classes.csv").is_file():
            return folder
    raise DataError(
        f"no classes.csv in {raw} or {raw / 'dataset'}: give the GroceryStoreDataset repository or its dataset folder"
    )


@lru_cache(maxsize=2)
def read_classes(folder: Path) -> tuple[GroceryClass, ...]:
    """The fine classes in order of their id."""
    classes: dict[int, GroceryClass] = {}
    table = folder / "classes.csv"
    with table.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(list(csv.reader(lines))[1:], start=2):
            if len(row) < 6 or not row[1].strip().isdigit():
                raise DataError(f"{table}:{number}: six columns expected (name, id, coarse name, coarse id, two paths)")
            text = folder / row[5].strip().lstrip("/")
            if not text.is_file():
                raise DataError(f"{table}:{number}: the description {text} is missing; get the dataset again")
            aisle = {"fruit": "fruit", "vegetables": "vegetable"}.get(
                row[5].strip("/ ").split("/")[1].lower(), "package"
            )
            description = text.read_text(encoding="utf-8", errors="replace")
            classes[int(row[1])] = describe(row[0].strip(), row[2].strip(), aisle, description)
    if sorted(classes) != list(range(len(classes))) or not classes:
        raise DataError(f"{table}: class ids must run from 0 without gaps")
    return tuple(classes[number] for number in range(len(classes)))


@lru_cache(maxsize=8)
def read_photo_list(folder: Path, file: str, num_classes: int) -> tuple[Photo, ...]:
    """Lines "path, fine id, coarse id"."""
    path = folder / file
    if not path.is_file():
        raise DataError(f"{path} is missing: give the whole GroceryStoreDataset folder")
    photos: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 3 or not fields[1].isdigit() or int(fields[1]) >= num_classes:
            raise DataError(f"{path}:{number}: expected 'path, class id below {num_classes}, coarse class id'")
        if fields[0] in photos:
            raise DataError(f"{path}:{number}: {fields[0]} is listed twice; remove one line")
        photos[fields[0]] = int(fields[1])
    return tuple(Photo(*entry) for entry in photos.items())


@lru_cache(maxsize=2)
def _hash_photos(folder: Path, paths: tuple[str, ...]) -> dict[str, PictureHash]:
    hashes = {}
    for path in paths:
        try:
            hashes[path] = perceptual_hash(read_picture(folder / path))
        except UnusablePictureError:
            continue  # `make` will skip and count it
    return hashes


def picture_id(path: str) -> str:
    """train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg -> train_Golden-Delicious_001."""
    parts = Path(path).parts
    # The test and train folders number their photos alike, so the folder belongs to the id.
    return f"{parts[0].split('-')[0]}_{Path(path).stem}"


@dataclass(frozen=True)
class Grocery:
    """The 81 fine classes as labels.

    train = train.txt and composites of its photos; gallery = one half of test.txt and the iconic pictures; test
    queries = composites of the other half; val queries = composites of val.txt.

    Args:
        raw: the repository of the dataset or its `dataset` folder.
        seed: decides the halves, the composites and the captions.
        image_size_px: side of composites; single photos keep their bytes.
        num_train_composites, num_val, num_test: composites of 2 to 5 photos each.
        iconic: whether the iconic pictures stand in the gallery.
    """

    raw: str
    seed: int = 0
    image_size_px: int = 224
    num_train_composites: int = 6000
    num_val: int = 300
    num_test: int = 600
    iconic: bool = True

    name = "grocery"

    def __post_init__(self) -> None:
        counts = {key: getattr(self, key) for key in ("num_train_composites", "num_val", "num_test")}
        check_composites(counts, self.image_size_px)
        _ = self.classes  # a wrong folder is reported at once

    @property
    def folder(self) -> Path:
        return dataset_folder(Path(self.raw))

    @property
    def classes(self) -> tuple[GroceryClass, ...]:
        return read_classes(self.folder)

    def _photos(self, file: str) -> tuple[Photo, ...]:
        return read_photo_list(self.folder, file, len(self.classes))

    def plan(self, split: Split) -> Sequence[GroceryItem]:
        """Single photos first, then composites."""
        in_gallery = self._in_gallery()
        near = self._near_evaluation(in_gallery)
        test = self._photos("test.txt")
        if split == "gallery":
            photos = [photo for photo in test if in_gallery[photo.path]]
            return self._singles(split, [*photos, *(self._iconic() if self.iconic else ())], near)
        if split == "train":
            train = self._photos("train.txt")
            usable = [photo for photo in train if photo.path not in near]
            return self._singles(split, train, near) + self._composites(split, usable, self.num_train_composites)
        photos = (
            [photo for photo in test if not in_gallery[photo.path]] if split == "test" else [*self._photos("val.txt")]
        )
        usable = [photo for photo in photos if photo.path not in near]
        return self._composites(split, usable, self.num_val if split == "val" else self.num_test)

    def _iconic(self) -> list[Photo]:
        root = "iconic-images-and-descriptions"
        found = {path.stem.removesuffix("_Iconic"): path for path in sorted((self.folder / root).rglob("*_Iconic.*"))}
        return [
            Photo(found[entry.label].relative_to(self.folder).as_posix(), number)
            for number, entry in enumerate(self.classes)
            if entry.label in found
        ]

    def _hashes(self) -> dict[str, PictureHash]:
        paths = [photo.path for file in ("train.txt", "val.txt", "test.txt") for photo in self._photos(file)]
        return _hash_photos(self.folder, tuple(paths))

    def _in_gallery(self) -> dict[str, bool]:
        """For each photo of test.txt whether it is in the gallery half; groups of one scene stay together."""
        photos, hashes = self._photos("test.txt"), self._hashes()
        label_of = {photo.path: photo.label for photo in photos}
        own = {path: hashes[path] for path in label_of if path in hashes}
        scenes = group_near_identical(own, SAME_SCENE_DISTANCE, SAME_SCENE_FINE_DISTANCE, apart=label_of)
        by_label: dict[int, list[list[str]]] = defaultdict(list)
        for group in members_by_group(scenes, list(label_of)).values():
            by_label[label_of[group[0]]].append(group)
        halves: dict[str, bool] = {}
        for groups in by_label.values():
            groups.sort(key=lambda group: hashlib.sha256(f"{self.seed}/{group[0]}".encode()).digest())
            taken = [0, 0]  # query half, gallery half; the gallery gets the first, so that no label is without item
            for group in sorted(groups, key=len, reverse=True):
                half = taken[1] <= taken[0]
                taken[half] += len(group)
                halves.update(dict.fromkeys(group, half))
        return halves

    def _near_evaluation(self, in_gallery: dict[str, bool]) -> dict[str, str]:
        """Photos that must not be used because a near-identical one is in a split that matters more."""
        rank = {photo.path: 0 for photo in self._photos("train.txt")}
        rank |= {photo.path: 1 for photo in self._photos("val.txt")}
        rank |= {path: 3 if gallery else 2 for path, gallery in in_gallery.items()}
        groups = group_near_identical(self._hashes(), NEAR_DUPLICATE_DISTANCE)
        best: dict[str, int] = defaultdict(int)
        for path, group in groups.items():
            best[group] = max(best[group], rank[path])
        return {path: group for path, group in groups.items() if rank[path] < best[group]}

    def _singles(self, split: Split, photos: Iterable[Photo], near: dict[str, str]) -> list[GroceryItem]:
        items = []
        for photo in photos:
            key = picture_id(photo.path)
            other = self._other(split, key, {photo.label})
            items.append(GroceryItem(key, (photo,), other, "near_duplicate" if photo.path in near else ""))
        return items

    def _composites(self, split: Split, photos: Sequence[Photo], number: int) -> list[GroceryItem]:
        items = []
        for index in range(number):
            rng = stream(self.seed, "set", split, index)
            if len(photos) < 2:
                raise DataError(f"{self.folder}: {split} needs at least 2 photos for composites, found {len(photos)}")
            chosen = tuple(rng.sample(photos, draw_number(rng, len(photos))))
            key = f"{split}-set-{index:06d}"
            items.append(GroceryItem(key, chosen, self._other(split, key, {photo.label for photo in chosen})))
        return items

    def _other(self, split: Split, key: str, shown: set[int]) -> int:
        rest = [number for number in range(len(self.classes)) if number not in shown]
        return stream(self.seed, "other", split, key).choice(rest or sorted(shown))

    def make(self, split: Split, item: GroceryItem) -> ProductRecord | Skipped:
        """Reads one photo or composes several."""
        if item.skip:
            return Skipped(item.id, item.skip)
        try:
            pictures = [read_picture(self.folder / photo.path) for photo in item.photos]
            if len(pictures) == 1:
                image, boxes = pictures[0], None
            else:
                rng = stream(self.seed, "picture", split, item.id)
                image, boxes = compose(rng, [decode(picture) for picture in pictures], self.image_size_px)
        except UnusablePictureError as error:
            return Skipped(item.id, error.reason)
        shown = [self.classes[photo.label] for photo in item.photos]
        rules = SINGLE_RULES if len(shown) == 1 else MULTI_RULES
        rng = stream(self.seed, "caption", split, item.id)
        return ProductRecord(
            id=item.id,
            image=image,
            caption=fuzzy_caption(rng, shown, self.classes[item.other], rules),
            labels=tuple(entry.label for entry in shown),
            kind="single" if len(shown) == 1 else "multi",
            source="+".join(photo.path for photo in item.photos),
            boxes=boxes,
        )

    def settings(self) -> dict[str, Any]:
        lists = b"".join((self.folder / file).read_bytes() for file in LISTS)
        digest = hashlib.sha256(lists).hexdigest()
        return {"source": self.name, **asdict(self), "raw": self.folder.resolve().name, "lists_sha256": digest}
