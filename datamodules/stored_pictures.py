"""Single pictures out of a shard folder, for pages that show some: without webdataset, which brings torch along.

Members are sought by the tar's headers alone, so the pictures in between are never read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datamodules.errors import DataError
from datamodules.manifest import Manifest, how_to_mend
from datamodules.plain_tar import content_of, open_tar, regular_members
from datamodules.remote import at_hand

PICTURE = ".jpg"  # ending of a sample's picture, whatever its codec


def stored_pictures(folder: Path, manifest: Manifest, split: str, rows: Iterable[int]) -> dict[int, bytes]:
    """The encoded pictures of some rows of a split, by row; those that have none are left out.

    Raises:
        DataError: a tar is missing or damaged.
    """
    wanted, first = set(rows), 0
    found: dict[int, bytes] = {}
    for shard in manifest["splits"][split]["shards"]:
        here = {row - first for row in wanted if first <= row < first + shard["samples"]}
        if here:
            try:
                with at_hand(folder / shard["file"]) as path:
                    found |= {first + number: data for number, data in _pictures(path, here).items()}
            except DataError:
                raise
            except Exception as error:  # damaged headers make tarfile raise whatever they like
                shown = folder / shard["file"]
                raise DataError(f"Shard {shown} cannot be read ({error}). {how_to_mend(folder)}") from None
        first += shard["samples"]
    return found


def _pictures(path: Path, numbers: set[int]) -> dict[int, bytes]:
    """Of one tar, by the sample's place in it: the members of a sample share their name up to the first dot."""
    found: dict[int, bytes] = {}
    with open_tar(path) as tar:
        number, last = -1, None
        for member in regular_members(tar):
            folder, _, name = member.name.rpartition("/")
            key = folder, name.partition(".")[0]
            if key != last:
                number, last = number + 1, key
            if number > max(numbers):
                break
            if number in numbers and name == key[1] + PICTURE:
                found[number] = content_of(tar, member)
    return found
