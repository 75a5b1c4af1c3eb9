"""Facts of a shard folder: names, ids, labels, captions, single pictures. Knows no trainer and no stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.annotations import AnnotationRow, read_rows
from datamodules.batch import InputSpec
from datamodules.batching import PICTURE, RECORD, REGIONS, other_classes
from datamodules.catalogues.record import SPLITS
from datamodules.errors import DataError
from datamodules.manifest import Manifest, ShardEntry, how_to_build, read_manifest
from datamodules.region_sets import region_set as region_set_of
from datamodules.regions import unpack_regions
from datamodules.shard_reader import read_range, read_shard, sidecar_of


class ShardFolder:
    """Read access to everything that is not a stream.

    Args:
        path: the folder with `manifest.json`. It is opened on first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, list[AnnotationRow]] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The table of contents, checked."""
        return read_manifest(self.path)

    def shards(self, split: str) -> list[ShardEntry]:
        """Shards of a split in row order.

        Raises:
            DataError: no such split, or it is empty.
        """
        if split not in SPLITS:
            raise DataError(f"There is no split '{split}'; there are {', '.join(SPLITS)}.")
        shards = self.manifest["splits"][split]["shards"]
        if not shards:
            raise DataError(f"{self.path} has no {split} samples. {how_to_build(self.path)}")
        return shards

    def num_samples(self, split: str) -> int:
        """Samples in a split."""
        return sum(shard["samples"] for shard in self.shards(split))

    def annotations(self, split: str) -> list[AnnotationRow]:
        """Rows of an evaluation split, without opening a tar.

        Raises:
            DataError: for "train", whose ids and labels are not listed: training must not read labels.
        """
        if split == "train":
            raise DataError("Training ids and labels are not listed: labels are for evaluation only.")
        if split not in self._rows:
            self._rows[split] = read_rows(self.path, split, self.num_samples(split))
        return self._rows[split]

    def ids(self, split: str) -> np.ndarray:
        """Item ids in row order."""
        return np.array([row.id for row in self.annotations(split)], dtype=np.str_)

    def train_captions(self) -> Iterator[str]:
        """Stream the training captions from the tars, damaged records left out."""
        for shard in self.shards("train"):
            for sample in read_shard(self.path / shard["file"]):
                try:
                    yield str(json.loads(sample.members[RECORD])["caption"])
                except (KeyError, TypeError, ValueError):
                    continue

    def captions_by_row(self, split: str) -> Iterator[tuple[str, str]]:
        """(id, caption) of every row of a split from the tars; both empty where the record is damaged."""
        for shard in self.shards(split):
            for sample in read_shard(self.path / shard["file"]):
                try:
                    record = json.loads(sample.members[RECORD])
                    yield str(record["id"]), str(record["caption"])
                except (KeyError, TypeError, ValueError):
                    yield "", ""

    def training_id(self, row: int) -> str:
        """The item id of a training row, from its tar; "row 7" where there is none."""
        for sample in read_range(self.path, self.shards("train"), range(row, row + 1)):
            try:
                return str(json.loads(sample.members[RECORD])["id"])
            except (KeyError, TypeError, ValueError):
                break
        return f"row {row}"

    def picture(self, split: str, row: int) -> bytes:
        """The encoded picture of one row.

        Raises:
            DataError: no such row, or it has no picture.
        """
        for sample in read_range(self.path, self.shards(split), range(row, row + 1)):
            if PICTURE in sample.members:
                return sample.members[PICTURE]
        raise DataError(f"{self.path}: row {row} of {split} has no picture.")

    def has_true_boxes(self, split: str) -> bool:
        """Whether the record of any sample has `boxes`; reads up to the first one that has."""
        for shard in self.shards(split):
            for sample in read_shard(self.path / shard["file"]):
                try:
                    if json.loads(sample.members[RECORD]).get("boxes"):
                        return True
                except (AttributeError, KeyError, ValueError):
                    continue
        return False

    def has_true_features(self, split: str, region_set: str) -> bool:
        """Whether a region set holds features of the true boxes of any sample."""
        entry = region_set_of(self.path, self.manifest, region_set)
        return any(sidecar["truth"] for sidecar in entry["splits"][split]["shards"])

    def _sample_with_more(self, num_regions: int, region_set: str | None) -> str:
        """File and id of the first sample with more regions, to be named in an error; reads up to there."""
        for split in SPLITS:
            for entry in self.manifest["splits"][split]["shards"]:
                path = self.path / entry["file"]
                for sample in read_shard(path, sidecar=sidecar_of(path, region_set)):
                    if len(unpack_regions(sample.members[REGIONS], class_scores=False).boxes_R4) > num_regions:
                        item = json.loads(sample.members[RECORD])["id"]
                        return f"{self.path / (sample.sidecar or sample.file)}, sample '{item}', .{REGIONS}"
        return str(self.path)  # the manifest overstates

    def region_sizes(self, region_set: str | None) -> Mapping[str, Any] | None:
        """Width of the regions' features and most regions of a picture, in a set or (None) in the shards themselves.

        Raises:
            DataError: there is no such set.
        """
        if region_set is None:
            return self.manifest["regions"]
        return region_set_of(self.path, self.manifest, region_set)

    def check_visual_input(
        self, spec: InputSpec, region_set: str | None = None, max_regions: int | None = None
    ) -> None:
        """Refuse a model that wants what the shards, or the named region set, do not hold.

        Args:
            max_regions: The most that are read of a picture; None = all.

        Raises:
            DataError: with both ways out.
        """
        regions = self.region_sizes(region_set)
        whose = str(self.path) if region_set is None else f"region set '{region_set}' of {self.path}"
        if max_regions is not None and spec.visual_input != "regions":
            raise DataError(
                f"data.max_regions={max_regions} counts stored regions, which a model with visual input "
                f"'{spec.visual_input}' does not read. Leave it out, or set model.visual_input=regions."
            )
        if spec.visual_input == "grid":
            if not self.manifest["pictures"]:
                raise DataError(
                    f"The model takes pictures (visual input 'grid'), but the shards of {self.path} hold no .jpg, only "
                    "regions. Set model.visual_input=regions, or build the folder again with pictures."
                )
        elif spec.visual_input == "regions":
            if regions is None:
                sets = sorted(self.manifest["region_sets"])
                named = f"Name a region set (data.region_set: {', '.join(sets)}), t" if sets else "T"
                raise DataError(
                    f"The model takes precomputed regions (visual input 'regions'), but {self.path} holds none. "
                    f"{named}rain on the pictures with visual input 'grid' (SCALE=tiny or SCALE=small), or build the "
                    "folder with a detector's boxes and features (`python -m experiments data build … --regions PATH`, "
                    "see docs/regions.md)."
                )
            if regions["width"] != spec.region_width:
                raise DataError(
                    f"The regions of {whose} are {regions['width']} wide, the model takes region_width="
                    f"{spec.region_width}. Set the model's region width to match."
                )
            most = regions["max"] if max_regions is None else min(regions["max"], max_regions)
            if most > spec.num_regions:
                where = self._sample_with_more(spec.num_regions, region_set)
                raise DataError(
                    f"{where}: {regions['max']} regions a picture at most, the model takes "
                    f"num_regions={spec.num_regions}. Raise model.num_regions, or store fewer regions."
                )
            classes = regions.get("classes", 0)
            if spec.region_classes and classes != spec.region_classes:
                raise DataError(f"The regions of {whose}: {other_classes(classes, spec.region_classes)}")
        elif spec.visual_input != "none":
            raise DataError(f"Unknown visual input '{spec.visual_input}'; there are 'grid', 'regions' and 'none'.")
