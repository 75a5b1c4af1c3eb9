"""Queries -> batches of one row per instance, for evaluation: regions of a box, or a crop of it, and the caption.

Shape legend beside the project's: N instances of a query. Rows of a query stand together, its best box first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.batch import InputSpec, ProductBatch
from datamodules.batching import PICTURE, RECORD, REGIONS, TRUTH, BatchMaker, RawSample
from datamodules.caption_entities import CaptionEntities
from datamodules.errors import DataError
from datamodules.instances import (
    DETECTED,
    InstanceOptions,
    check_instance_boxes,
    detected_boxes,
    inside,
    true_boxes,
    whole_picture,
)
from datamodules.pictures import PictureError, upright_size
from datamodules.region_sets import DEFAULT_SET, how_to_write, set_of
from datamodules.regions import BadRegionsError, Regions, boxes_with_area, check_finite
from datamodules.transforms import Fit, crops_to_squares


class InstanceBatchMaker(BatchMaker):
    """Collects whole queries, each as one row per box; a query without any is one row, its whole picture.

    With regions a row holds the feature of its box and the regions whose centre lies inside; on pixels it is the box
    cropped out of the full picture; without visual input it is the caption. The caption is shared by all rows of a
    query, and so are its entities.

    Args:
        folder, spec, entities, max_regions: as in `BatchMaker`.
        kind: whose boxes, "detected" or "true".
        options: which of them, and how they are cropped.
    """

    def __init__(
        self,
        folder: Path,
        spec: InputSpec,
        kind: str,
        options: InstanceOptions,
        entities: CaptionEntities | None = None,
        max_regions: int | None = None,
    ) -> None:
        self.kind, self.options = kind, options
        super().__init__(folder, spec, jitter=None, entities=entities, max_regions=max_regions)

    def add(self, sample: RawSample, seed: tuple[int, ...] | None) -> None:
        """Decode one query into the next free rows.

        Raises:
            UnusableSampleError: as in `BatchMaker`; NaN, a box outside the picture or of zero area.
            DataError: as in `BatchMaker`; more true boxes than `max_instances`.
        """
        record = self._record(sample)
        caption = self._caption(sample, record)
        regions = None
        if self.kind == DETECTED or self.spec.visual_input == "regions":
            regions = self._read_regions(REGIONS, sample, record)
        boxes = self._instances_of(sample, record, regions)
        first, num = len(self._rows), len(boxes.boxes_R4)
        if self._images is not None:
            self._add_crops(self._images[first : first + num].numpy(), boxes, sample, record)
        elif self._features is not None:
            assert regions is not None
            for number, box_4 in enumerate(boxes.boxes_R4):
                found = boxes.scores_R[number] > 0
                own = inside(regions, box_4) if found else regions
                self._set_regions(first + number, own, sample, record)
        self._rows += [sample.row] * num
        self._captions += [caption] * num
        self._instances.append(boxes)

    def finish(self) -> ProductBatch:
        """The batch of what was added."""
        batch = super().finish()
        numbers = [torch.arange(len(boxes.boxes_R4)) for boxes in self._instances]
        boxes_B5 = np.concatenate([boxes_with_area(boxes) for boxes in self._instances])
        scores_B = np.concatenate([boxes.scores_R for boxes in self._instances])
        batch = batch._replace(
            index_B=batch.index_B * self.options.max_instances + torch.cat(numbers),
            owner_B=batch.index_B,
            instance_box_B5=torch.from_numpy(boxes_B5),
            instance_score_B=torch.from_numpy(scores_B.astype(np.float32)),
        )
        if self._features is None:
            return batch
        features_BD = np.concatenate([boxes.features_RD for boxes in self._instances]).astype(np.float16)
        return batch._replace(instance_feature_BD=torch.from_numpy(features_BD))

    def _reset(self, batch_size: int) -> None:
        super()._reset(batch_size * self.options.max_instances)
        self._instances: list[Regions] = []  # of each query so far, with the features of its boxes

    def _instances_of(self, sample: RawSample, record: dict, regions: Regions | None) -> Regions:
        """The query's boxes, or its whole picture where there are none."""
        if self.kind == DETECTED:
            assert regions is not None
            try:
                boxes = detected_boxes(regions, self.options)
            except BadRegionsError as error:
                raise self._bad_boxes(error, f".{REGIONS}", sample, record) from None
        else:
            boxes = self._true_boxes(sample, record, regions)
        if not len(boxes.boxes_R4):
            boxes = whole_picture(boxes.size_hw, boxes.features_RD.shape[1])
        return boxes

    def _true_boxes(self, sample: RawSample, record: dict, regions: Regions | None) -> Regions:
        where = f".{RECORD}"
        try:
            if regions is None:
                boxes = true_boxes(record.get("boxes") or [], self._picture_size(sample, record))
            elif TRUTH in sample.members:
                where, boxes = f".{TRUTH}", self._read_regions(TRUTH, sample, record)
                check_finite(boxes.features_RD.astype(np.float16))
            elif record.get("boxes"):
                where = f".{TRUTH}"
                raise BadRegionsError("missing_regions", "missing, though the record has `boxes`")
            else:  # nothing known
                boxes = regions._replace(boxes_R4=regions.boxes_R4[:0], features_RD=regions.features_RD[:0])
            check_instance_boxes(boxes)
        except BadRegionsError as error:
            raise self._bad_boxes(error, where, sample, record) from None
        if len(boxes.boxes_R4) > self.options.max_instances:
            raise DataError(
                f"{self.folder / sample.file}, sample '{record['id']}': {len(boxes.boxes_R4)} true boxes, "
                f"data.max_instances={self.options.max_instances}. Raise it: an upper bound may leave none out."
            )
        return boxes

    def _picture_size(self, sample: RawSample, record: dict) -> tuple[int, int]:
        """Height and width, px, of the upright picture, to which a record's boxes refer."""
        if PICTURE not in sample.members:
            raise self._unusable("missing_picture", f"it has no .{PICTURE}", sample, record)
        try:
            width, height = upright_size(sample.members[PICTURE])
        except PictureError as error:
            raise self._unusable(error.reason, f"the picture does not decode ({error})", sample, record) from None
        return height, width

    def _add_crops(self, out_NSS3: np.ndarray, boxes: Regions, sample: RawSample, record: dict) -> None:
        if PICTURE not in sample.members:
            raise self._unusable("missing_picture", f"it has no .{PICTURE}", sample, record)
        try:
            fit = Fit(self.spec.resize, self.spec.interpolation)
            boxes_N4 = boxes_with_area(boxes)[:, :4]
            crops_to_squares(sample.members[PICTURE], boxes_N4, out_NSS3, self.options.crop_margin, fit)
        except PictureError as error:
            raise self._unusable(error.reason, f"the picture does not decode ({error})", sample, record) from None

    def _bad_boxes(self, error: BadRegionsError, member: str, sample: RawSample, record: dict) -> DataError:
        file = sample.file if member == f".{RECORD}" else sample.sidecar or sample.file
        then = (
            "Correct the box where it came from, the source of the record's `boxes` or the detector, and build again "
            "with ARGS=--again."
        )
        if file == sample.sidecar:
            then = how_to_write(self.folder, set_of(file) or DEFAULT_SET, again=True)
        return DataError(f"{self.folder / file}, sample '{record['id']}', {member}: {error}. {then}")
