"""The cut-outs of a shard folder, in memory: those a detector is trained on, and those held out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from datamodules.batching import PICTURE, RECORD, RawSample
from datamodules.detection.cut_outs import CutOut, cut_out
from datamodules.errors import DataError
from datamodules.pictures import PictureError, decode_picture
from datamodules.shard_folder import ShardFolder
from datamodules.shards import read_shard

log = logging.getLogger(__name__)

Source = Literal["train", "gallery"]

HELD_OUT_SHARE = 0.1
FINER = 1.25  # a cut-out is kept at most this much larger than the detector's picture
MOST_BYTES = 768 << 20  # of cut-outs; 2000 of 160 px tiles are 200 MB
MOST_PHOTOS = 200  # kept for photographic grounds
PHOTO_PX = 64  # they are blurred anyway


class Collection(NamedTuple):
    """What pictures are pasted from. Rows are of the source split."""

    source: Source
    train: list[CutOut]
    held_out: list[CutOut]  # never in a training picture
    train_rows: list[int]
    held_out_rows: list[int]
    train_photos: list[np.ndarray]  # small RGB photos for grounds, of train_rows
    held_out_photos: list[np.ndarray]  # of held_out_rows
    unclear: int  # photos left out because no outline on them could be believed
    skipped: dict[str, int]  # reason -> photos that could not be read

    def counts(self) -> dict[str, int]:
        """Cut-outs for training by how they were cut."""
        found = Counter(cut.kind for cut in self.train)
        return {kind: found[kind] for kind in ("outline", "tile")}


def source_of(folder: ShardFolder) -> Source:
    """The split single-product photos come from: the gallery where the train split knows of none."""
    return "train" if folder.manifest["splits"]["train"]["single"] else "gallery"


def is_held_out(row: int) -> bool:
    """Whether a row's cut-out is kept from training: a fixed share, the same in every run."""
    digest = hashlib.sha256(f"held out {row}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def collect(folder: ShardFolder, image_size_px: int, most: int) -> Collection:
    """Cut the first `most` single-product photos of a folder's source split; rows were shuffled when they were written.

    Args:
        image_size_px: side of the detector's picture.
        most: photos cut, held-out ones included.

    Raises:
        DataError: no pictures, or fewer than two usable photos.
    """
    source = source_of(folder)
    side_px = round(FINER * image_size_px)
    found: list[tuple[int, CutOut, np.ndarray]] = []
    unclear, skipped, num_bytes = 0, Counter[str](), 0
    for sample in _singles(folder, source, skipped):
        try:
            photo = decode_picture(sample.members[PICTURE], side_px).image
        except (KeyError, PictureError) as error:
            skipped[error.reason if isinstance(error, PictureError) else "missing_picture"] += 1
            continue
        photo.thumbnail((side_px, side_px), Image.Resampling.BICUBIC)
        cut = cut_out(photo)
        if cut is None:
            unclear += 1
            continue
        photo.thumbnail((PHOTO_PX, PHOTO_PX))
        found.append((sample.row, cut, np.asarray(photo)))
        num_bytes += cut.pixels_HW4.nbytes
        if len(found) == most:
            break
        if num_bytes >= MOST_BYTES:
            log.warning(
                "data.num_cut_outs=%d: %d cut-outs of up to %d px fill the %d MiB kept for them; the rest is not used.",
                *(most, len(found), side_px, MOST_BYTES >> 20),
            )
            break
    if len(found) < 2:
        raise DataError(
            f"{folder.path}: {len(found)} usable single-product photos in its {source} split ({unclear} without a "
            f"clear outline, unreadable: {dict(skipped) or 'none'}), pasting takes 2 at least: one to train on, one to "
            "validate with. Build the folder with single-product photos (records of kind 'single')."
        )
    collection = _divided(source, found, unclear, dict(skipped))
    log.info(
        "%s: cut-outs of %s photos %s, %d more held out, %d photos without a clear outline, unreadable: %s.",
        *(folder.path, source, collection.counts(), len(collection.held_out), unclear, dict(skipped) or "none"),
    )
    return collection


def _divided(
    source: Source, found: list[tuple[int, CutOut, np.ndarray]], unclear: int, skipped: dict[str, int]
) -> Collection:
    held = [item for item in found if is_held_out(item[0])] or found[-1:]
    if len(held) == len(found):
        held = held[1:]
    held_rows = {row for row, _, _ in held}
    train = [item for item in found if item[0] not in held_rows]
    return Collection(
        source=source,
        train=[cut for _, cut, _ in train],
        held_out=[cut for _, cut, _ in held],
        train_rows=[row for row, _, _ in train],
        held_out_rows=[row for row, _, _ in held],
        train_photos=[photo for _, _, photo in train[:MOST_PHOTOS]],
        held_out_photos=[photo for _, _, photo in held[:MOST_PHOTOS]],
        unclear=unclear,
        skipped=skipped,
    )


def _singles(folder: ShardFolder, source: Source, skipped: Counter[str]) -> Iterator[RawSample]:
    """Samples that show one product, told by `kind` alone: labels and boxes are not looked at."""
    if not folder.manifest["pictures"]:
        raise DataError(
            f"{folder.path} holds no pictures, only regions: there is nothing to cut out and to paste. Build the "
            "folder with pictures, or give data.folder another one."
        )
    wanted = ("single",) if source == "train" else ("single", "unknown")
    first = 0
    for shard in folder.shards(source):
        for sample in read_shard(folder.path / shard["file"], first):
            try:
                kind = json.loads(sample.members[RECORD])["kind"]
            except (KeyError, TypeError, ValueError, RecursionError):
                skipped["malformed_record"] += 1
                continue
            if kind in wanted:
                yield sample
        first += shard["samples"]
