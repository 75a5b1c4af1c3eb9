"""Raw shard members -> ProductBatch. Runs inside the workers; decodes only the members of the schema.

Shape legend: B batch, T tokens, R regions, D feature width, C detector classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from datamodules.caption_entities import CaptionEntities
from datamodules.errors import DataError
from datamodules.pictures import PictureError
from datamodules.region_sets import set_of
from datamodules.regions import (
    BadRegionsError,
    Regions,
    best_regions,
    boxes_with_area,
    check_class_scores,
    check_finite,
    unpack_regions,
)
from datamodules.tokenizer import AnyTokenizer, load_tokenizer
from datamodules.transforms import Fit, Jitter, picture_to_square

# A worker prepares this many batches ahead. It writes into a ring of shared memory, because touching fresh pages costs
# a fifth of decoding. When DataLoader asks for batch n it has taken batch n - PREFETCH from the queue, and the loader
# copies that one before it asks again; so the batches in use are n - PREFETCH … n, and the ring holds one each.
PREFETCH_BATCHES = 2
RING_BATCHES = PREFETCH_BATCHES + 1

PICTURE, REGIONS, RECORD = "jpg", "regions.npz", "json"  # member suffixes; anything else in a shard is not read
TRUTH = "truth.npz"  # of a region set, in evaluation splits: the true boxes with their features


class RawSample(NamedTuple):
    """One sample as it lies in the tar."""

    row: int  # of the split's id table
    file: str  # shard, for messages
    members: dict[str, bytes]  # suffix -> bytes
    sidecar: str = ""  # file of the region set that the regions come from, for messages; "" = the shard itself


class UnusableSampleError(DataError):
    """A damaged sample: skipped and counted under `reason` in training, fatal in evaluation."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BatchMaker:
    """Collects samples into batches of tensors.

    Args:
        folder: shard folder, for the tokenizer and for messages.
        spec: what the model wants.
        jitter: augmentation, None in evaluation.
        entities: of the split's samples; None = the model reads none.
        max_regions: the most regions of a row, best first; None = all.
    """

    def __init__(
        self,
        folder: Path,
        spec: InputSpec,
        jitter: Jitter | None,
        entities: CaptionEntities | None = None,
        max_regions: int | None = None,
    ) -> None:
        self.folder, self.spec, self.jitter, self.entities = folder, spec, jitter, entities
        self.max_regions = max_regions
        self._tokenizer: AnyTokenizer | None = None
        self._rings: dict[str, list[Tensor]] = {}  # by field
        self._reset(0)

    def start(self, batch_size: int) -> None:
        """Forget what was collected and make room for a batch."""
        if self._tokenizer is None:  # opened in the worker: the Rust object stays out of the pickle
            self._tokenizer = load_tokenizer(self.spec.tokenizer, self.folder)
        self._reset(batch_size)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, sample: RawSample, seed: tuple[int, ...] | None) -> None:
        """Decode one sample into the next free row.

        Raises:
            UnusableSampleError: damaged record, empty caption, missing or undecodable picture, missing or bad regions.
            DataError: regions of another width than the model's, more of them, or other class scores (a setting is
                wrong, not a sample).
        """
        record = self._record(sample)
        caption = self._caption(sample, record)
        row = len(self._rows)
        if self._images is not None:
            self._add_picture(self._images[row].numpy(), sample, record, seed)
        elif self._features is not None:
            self._add_regions(row, sample, record)
        self._rows.append(sample.row)
        self._captions.append(caption)

    def finish(self) -> ProductBatch:
        """The batch of what was added."""
        assert self._tokenizer is not None
        assert self._rows, "an empty batch"
        num = len(self._rows)
        tokens_BT, token_mask_BT = self._tokenizer.encode_batch(self._captions, self.spec.text_length)
        batch = ProductBatch(
            index_B=torch.tensor(self._rows, dtype=torch.int64),
            tokens_BT=tokens_BT,
            token_mask_BT=token_mask_BT,
            images_B3HW=None if self._images is None else self._images[:num].permute(0, 3, 1, 2),
            features_BRD=_head(self._features, num),
            boxes_BR5=_head(self._boxes, num),
            region_mask_BR=_head(self._region_mask, num),
            class_scores_BRC=_head(self._class_scores, num),
        )
        return batch if self.entities is None else self.entities.added(batch, self._tokenizer, self.spec)

    def _reset(self, batch_size: int) -> None:
        spec = self.spec
        self._rows: list[int] = []
        self._captions: list[str] = []
        self._images = self._features = self._boxes = self._region_mask = self._class_scores = None
        if not batch_size:
            return
        if spec.visual_input == "grid":
            # Channels last: as decoders write and as convolutions like it.
            self._images = self._large("images", torch.uint8, batch_size, spec.image_size_px, spec.image_size_px, 3)
        elif spec.visual_input == "regions":
            self._features = self._large("features", torch.float16, batch_size, spec.num_regions, spec.region_width)
            if spec.region_classes:
                shape = (batch_size, spec.num_regions, spec.region_classes)
                self._class_scores = self._large("class_scores", torch.float16, *shape)
            self._boxes = torch.zeros(batch_size, spec.num_regions, 5)
            self._region_mask = torch.zeros(batch_size, spec.num_regions, dtype=torch.bool)

    def _large(self, field: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Memory for a large field of a batch; in a worker, the oldest of a ring the main process can see."""
        if torch.utils.data.get_worker_info() is None:
            return torch.empty(*shape, dtype=dtype)
        ring = self._rings.setdefault(field, [])
        if len(ring) < RING_BATCHES:
            ring.append(torch.empty(*shape, dtype=dtype).share_memory_())
        else:
            ring.append(ring.pop(0))
        return ring[-1]

    def _record(self, sample: RawSample) -> dict:
        try:
            record = json.loads(sample.members[RECORD])
            if not isinstance(record, dict) or not isinstance(record.get("id"), str):
                raise ValueError
        except (KeyError, ValueError, RecursionError):
            raise self._unusable("malformed_record", f"its .{RECORD} is missing or malformed", sample, {}) from None
        return record

    def _caption(self, sample: RawSample, record: dict) -> str:
        caption = " ".join(str(record.get("caption", "")).split())
        if not caption:
            raise self._unusable("empty_caption", "the caption is empty", sample, record)
        return caption

    def _add_picture(self, out_SS3: np.ndarray, sample: RawSample, record: dict, seed: tuple[int, ...] | None) -> None:
        if PICTURE not in sample.members:
            raise self._unusable("missing_picture", f"it has no .{PICTURE}", sample, record)
        rng = None if seed is None else Random(_mixed(*seed, sample.row))
        try:
            fit = Fit(self.spec.resize, self.spec.interpolation)
            picture_to_square(sample.members[PICTURE], out_SS3, self.jitter, rng, fit)
        except PictureError as error:
            raise self._unusable(error.reason, f"the picture does not decode ({error})", sample, record) from None

    def _add_regions(self, row: int, sample: RawSample, record: dict) -> None:
        self._set_regions(row, self._read_regions(REGIONS, sample, record), sample, record)

    def _read_regions(self, member: str, sample: RawSample, record: dict) -> Regions:
        if member not in sample.members:
            raise self._unusable("missing_regions", f"it has no .{member}", sample, record, sample.sidecar)
        try:
            return unpack_regions(sample.members[member], class_scores=self._class_scores is not None)
        except BadRegionsError as error:
            raise self._unusable(error.reason, f".{member}: {error}", sample, record, sample.sidecar) from None

    def _set_regions(self, row: int, regions: Regions, sample: RawSample, record: dict) -> None:
        """Put regions into a row of the batch."""
        assert self._features is not None
        assert self._boxes is not None
        assert self._region_mask is not None
        if self.max_regions is not None:
            regions = best_regions(regions, self.max_regions)
        num = len(regions.boxes_R4)
        self._check_fit(regions, sample, record)
        features_RD, boxes_R5 = self._features[row].numpy(), self._boxes[row].numpy()
        try:
            with np.errstate(over="ignore"):  # what float16 cannot hold is found in the next line
                features_RD[:num] = regions.features_RD  # the only copy, from the tar's bytes
            check_finite(features_RD[:num])
            self._add_class_scores(row, regions)
        except BadRegionsError as error:
            raise self._unusable(error.reason, f".{REGIONS}: {error}", sample, record, sample.sidecar) from None
        boxes_R5[:num] = boxes_with_area(regions)
        features_RD[num:], boxes_R5[num:] = 0, 0  # the memory is used again and again
        self._region_mask[row].numpy()[:] = np.arange(self.spec.num_regions) < num

    def _add_class_scores(self, row: int, regions: Regions) -> None:
        if self._class_scores is None or regions.class_scores_RC is None:
            return
        num, scores_RC = len(regions.class_scores_RC), self._class_scores[row]
        with np.errstate(over="ignore"):
            scores_RC.numpy()[:num] = regions.class_scores_RC
        scores_RC[num:] = 0
        check_class_scores(scores_RC[:num].numpy(), scores_RC[:num].sum(-1, dtype=torch.float32).numpy())

    def _check_fit(self, regions: Regions, sample: RawSample, record: dict) -> None:
        where = f"{self.folder / (sample.sidecar or sample.file)}, sample '{record['id']}', .{REGIONS}"
        num, width = regions.features_RD.shape
        if width != self.spec.region_width:
            raise DataError(
                f"{where}: features are {width} wide, the model takes region_width={self.spec.region_width}. "
                "Set the model's region width to match, or build the regions again."
            )
        if num > self.spec.num_regions:
            raise DataError(
                f"{where}: {num} boxes, the model takes num_regions={self.spec.num_regions}. "
                "Raise the model's num_regions, or store fewer regions."
            )
        if self._class_scores is not None and regions.num_classes != self.spec.region_classes:
            raise DataError(f"{where}: {other_classes(regions.num_classes, self.spec.region_classes)}")

    def _unusable(
        self, reason: str, detail: str, sample: RawSample, record: dict, sidecar: str = ""
    ) -> UnusableSampleError:
        """The error of a damaged sample; `sidecar` names the file if it is not in the shard itself."""
        name = record.get("id", f"row {sample.row}")
        then = "repair the raw data and build again with ARGS=--again"
        if sidecar:
            then = f"write the region set '{set_of(sidecar)}' again with `predict … --fresh` (docs/regions.md)"
        return UnusableSampleError(
            reason,
            f"{self.folder / (sidecar or sample.file)}, sample '{name}': {detail}. List all damaged samples with "
            f"`python -m experiments data verify {self.folder}`, then {then}.",
        )


def other_classes(found: int, wanted: int) -> str:
    """What to say of regions with scores of `found` classes (0 = none) to a model that wants those of `wanted`."""
    scores, to_match = "no class scores", ""
    if found:
        scores, to_match = f"scores of {found} classes", f"set model.region_classes={found} to match, "
    return (
        f"{scores}, the model takes region_classes={wanted}. Choose objectives that need none, {to_match}or build the "
        "regions again with class_scores (docs/regions.md)."
    )


def _mixed(*numbers: int) -> int:
    """One seed from several; a numpy generator per picture would cost more than the jitter itself."""
    mixed = 0
    for number in numbers:
        mixed = mixed * 1_000_003 + number + 1
    return mixed


def _head(tensor: Tensor | None, num: int) -> Tensor | None:
    return None if tensor is None else tensor[:num]
