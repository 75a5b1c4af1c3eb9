"""EGE-CMP's network: CAPTURE's two streams, and a third for the caption's entities, which shares the text's weights.

Source and differences as in `ege_cmp.py`, which holds the objectives and the training.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.layers.regions import Regions
from lightning_modules.stream_features import Stream, Streams
from lightning_modules.stream_transformer import StreamTransformer

Fusion = Literal["text", "image"]


class ThreeStreams(NamedTuple):
    """Each stream before they meet."""

    text: Stream
    image: Stream
    entity: Stream

    def pair(self) -> Streams:
        """Text and image, as retrieval features are made of them."""
        return Streams(self.text, self.image)


class ThreeMasks(NamedTuple):
    """Which positions of each stream are real (True)."""

    text_BT: Tensor
    image_BR: Tensor
    entity_BT: Tensor


class ThreeFused(NamedTuple):
    """Every position after the streams have met."""

    text_BTD: Tensor
    image_BRD: Tensor
    entity_BTD: Tensor


class ThreeRead(NamedTuple):
    """Positions_BK of each stream whose outputs are wanted."""

    text_BK: Tensor
    image_BK: Tensor
    entity_BK: Tensor


class EntityStreamTransformer(StreamTransformer):
    """Three streams that meet pairwise in one stack of cross layers and one co-transformer.

    Entities meet a guide, then the guide meets the third stream: with the text as guide (released), the cross layers
    run on (text, entity) and then, the same layers, on (image, text); the co-transformer runs on text ‖ image and on
    entity ‖ text, both with the text after both passes and the entities after the first. The guide has two outputs,
    one of each pair, which one layer reads together. The entity stream has no weights of its own: it uses the text's
    embedding, self layers, pooler and output layer.

    Args:
        width, output_width: Inner width of all streams; width of the outputs.
        init_std: Standard deviation of initial weights.
        fusion: The guide, "text" or "image". With the image the same happens with text and image exchanged: cross
            layers on (image, entity) and then on (image, text), co-transformer on text ‖ image and entity ‖ image.
        sizes: The other arguments of `StreamTransformer`.
    """

    def __init__(self, width: int, output_width: int, init_std: float, fusion: Fusion, **sizes: Any) -> None:
        super().__init__(width=width, output_width=output_width, **sizes)
        self.fusion = fusion
        self.text_output = nn.Linear(width, output_width)
        if fusion == "text":
            self.image_output = nn.Linear(width, output_width)
        self.guide_output = nn.Linear(2 * width, output_width)
        self.initialise(init_std)

    def forward(
        self,
        tokens_BT: Tensor,
        token_mask_BT: Tensor,
        regions: Regions,
        entity_tokens_BT: Tensor,
        entity_mask_BT: Tensor,
    ) -> tuple[ThreeStreams, ThreeFused]:
        """Inputs: int64 tokens with their bool mask; regions with the whole-image region first."""
        streams = self.streams(tokens_BT, token_mask_BT, regions, entity_tokens_BT, entity_mask_BT)
        return streams, self.fuse(streams, ThreeMasks(token_mask_BT, regions.mask_BR, entity_mask_BT))

    def streams(
        self,
        tokens_BT: Tensor,
        token_mask_BT: Tensor,
        regions: Regions,
        entity_tokens_BT: Tensor,
        entity_mask_BT: Tensor,
    ) -> ThreeStreams:
        """Embeddings and self layers, each stream on its own."""
        return ThreeStreams(
            self.text_stream(tokens_BT, token_mask_BT),
            self.image_stream(regions),
            self.text_stream(entity_tokens_BT, entity_mask_BT),
        )

    def fuse(self, streams: ThreeStreams, masks: ThreeMasks, read: ThreeRead | None = None) -> ThreeFused:
        """Two passes of the cross layers, then two of the co-transformer.

        Args:
            read: Positions whose outputs are wanted; None = all.
        """
        text_BTD, image_BRD, entity_BTD = (stream.states_BND for stream in streams)
        if self.fusion == "text":
            text_BTD, entity_BTD = self.cross(text_BTD, masks.text_BT, entity_BTD, masks.entity_BT)
        else:
            image_BRD, entity_BTD = self.cross(image_BRD, masks.image_BR, entity_BTD, masks.entity_BT)
        image_BRD, text_BTD = self.cross(image_BRD, masks.image_BR, text_BTD, masks.text_BT)

        of_pair = None if read is None else (read.text_BK, read.image_BK)
        text, image = self.side_by_side(text_BTD, masks.text_BT, image_BRD, masks.image_BR, of_pair)
        if self.fusion == "text":
            guide_BND, guide_mask_BN, guide_BK = text_BTD, masks.text_BT, None if read is None else read.text_BK
        else:
            guide_BND, guide_mask_BN, guide_BK = image_BRD, masks.image_BR, None if read is None else read.image_BK
        of_pair = None if read is None or guide_BK is None else (read.entity_BK, guide_BK)
        entity, guide = self.side_by_side(entity_BTD, masks.entity_BT, guide_BND, guide_mask_BN, of_pair)
        if self.fusion == "text":
            text, image = self.guide_output(torch.cat([text, guide], -1)), self.image_output(image)
        else:
            text, image = self.text_output(text), self.guide_output(torch.cat([image, guide], -1))
        return ThreeFused(torch.relu(text), torch.relu(image), torch.relu(self.text_output(entity)))
