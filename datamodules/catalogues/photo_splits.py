"""Splits one list of photos by a hash of the id, so that no picture is on two sides and every query can be answered."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from datamodules.catalogues.duplicates import members_by_group
from datamodules.catalogues.photo_lists import PhotoRow
from datamodules.catalogues.record import Split

MIN_PICTURES = 3  # one each for gallery, queries and training
SHARES: tuple[tuple[Split, float], ...] = (("train", 0.45), ("gallery", 0.25), ("test", 0.20), ("val", 0.10))
TEST_SHARE = 2 / 3  # of a label's first query picture


def unit_hash(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _share(value: float) -> Split:
    for split, share in SHARES:
        if value < share:
            return split
        value -= share
    return "train"


def split_photos(rows: Sequence[PhotoRow], group_of: Mapping[str, str], seed: int) -> dict[str, Split]:
    """The split of each photo, by id.

    Near-identical pictures move together. A label with at least three different pictures gives its first (in hash
    order) to the gallery, its second to val or test, its third to training, and the rest by shares; all other photos
    are trained on, and so is a picture that carries several labels: it could answer for none of them.

    Args:
        rows: the list.
        group_of: id to group of near-identical pictures; an id without entry (no readable picture) is trained on,
            where it will be skipped and counted.
        seed: other seeds give other splits.
    """
    labels = {row.id: row.label for row in rows}
    splits: dict[str, Split] = dict.fromkeys(labels, "train")
    by_label: dict[str, list[list[str]]] = defaultdict(list)
    for group in members_by_group(group_of, [row.id for row in rows if row.id in group_of]).values():
        names = {labels[key] for key in group}
        if len(names) == 1 and "" not in names:
            by_label[names.pop()].append(group)
    for groups in by_label.values():
        if len(groups) < MIN_PICTURES:
            continue
        groups.sort(key=lambda group: (unit_hash(seed, min(group)), min(group)))
        first: list[Split] = [
            "gallery",
            "test" if unit_hash(seed, "query/" + min(groups[1])) < TEST_SHARE else "val",
            "train",
        ]
        for position, group in enumerate(groups):
            split = first[position] if position < len(first) else _share(unit_hash(seed, "share/" + min(group)))
            splits.update(dict.fromkeys(group, split))
    return splits
