"""The contract between data and models: plain tensors and plain numbers, nothing to import.

Shape legend, used in every name of the project: B batch, T text tokens, R regions, D feature width,
C detector classes, E entities, H and W pixels, Q queries, N gallery items, K ranks kept.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class InputSpec(NamedTuple):
    """What a model needs from the data, published by the model and handed to the DataModule by the CLI."""

    # "shards": the one stored in the shard folder; "open_clip:<architecture>"; else a Hugging Face name or path
    tokenizer: str = "shards"
    text_length: int = 36  # tokens, [CLS] and [SEP] included
    visual_input: str = "regions"  # "regions": features stored in the shards; "grid": pixels; "none": captions alone
    num_regions: int = 36  # the most regions kept of a picture, the global one not counted
    region_width: int = 2048
    image_size_px: int = 224  # square side of images_B3HW; used with "grid" only
    vocab_size: int | None = None  # entries the tokenizer must have; None = any number
    mask_token_id: int | None = None  # the id its [MASK] must have; None = any, or none at all
    end_token_id: int | None = None  # the id its closing token ([SEP]) must have; None = any
    resize: str = "longest"  # the side that fills the square: "longest", "shortest" or both ("squash"); "grid" only
    interpolation: str = "bilinear"  # or "bicubic"; "grid" only
    region_classes: int = 0  # classes of the detector whose scores the model wants; 0 = none; used with "regions" only
    num_entities: int = 0  # the most entities kept of a caption; 0 = the model reads none
    entity_length: int = 36  # tokens of a caption's entities, [CLS] and each one's [SEP] included


class ProductBatch(NamedTuple):
    """One batch of image-caption pairs. Fields a configuration does not need are None."""

    index_B: Tensor  # int64, row of the split's id table
    tokens_BT: Tensor  # int64, [CLS] … [SEP] (or the tokenizer's own opening and closing) and padding
    token_mask_BT: Tensor  # bool, True = real token
    images_B3HW: Tensor | None = None  # uint8; the model scales and normalises on its own device
    features_BRD: Tensor | None = None  # float16 or float32, without the whole-image region
    boxes_BR5: Tensor | None = None  # float32: x1, y1, x2, y2 in [0, 1] and relative area
    region_mask_BR: Tensor | None = None  # bool, True = real region
    class_scores_BRC: Tensor | None = None  # float16, the detector's probability of each class; zero = no region
    entity_tokens_BT: Tensor | None = None  # int64, [CLS] e1 [SEP] e2 [SEP] … and padding
    entity_token_mask_BT: Tensor | None = None  # bool, True = real token
    entities_BE: Tensor | None = None  # int64 row of the entity table, -1 = none
    # Instances of queries (docs/instances.md): several rows per query, in evaluation only.
    owner_B: Tensor | None = None  # int64, query row an instance belongs to; None: each row is its own
    instance_box_B5: Tensor | None = None  # float32: x1, y1, x2, y2 in [0, 1] of the whole picture and relative area
    instance_score_B: Tensor | None = None  # float32, the detector's; 1 = true box; 0 = nothing found, whole picture
    instance_feature_BD: Tensor | None = None  # float16, the detector's feature of the box; with "regions" only

    def rows(self, chosen: slice | list[int]) -> ProductBatch:
        """The batch of some of its rows."""
        return ProductBatch._make(None if field is None else field[chosen] for field in self)


class DetectionBatch(NamedTuple):
    """Pictures on squares, with the boxes a class-agnostic detector is to find."""

    index_B: Tensor  # int64, row of the split's id table, or number of a pasted picture
    images_B3HW: Tensor  # uint8
    boxes_BN4: Tensor  # float32, px of the square x1 y1 x2 y2; rows of padding are 0
    box_mask_BN: Tensor  # bool, True = real box
    letterbox_B4: Tensor  # float32 scale_x, scale_y, left_px, top_px: square px = picture px * scale + offset
    size_B2: Tensor  # int64 height, width of the upright picture in px
    cut_outs_BN: Tensor | None = None  # int64, which cut-out a box shows, -1 = padding; None = not known
