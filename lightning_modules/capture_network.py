"""CAPTURE's network (§4.2): two streams, cross layers between them, and a co-transformer over both.

Source and differences as in `capture.py`, which holds the objectives and the training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.layers.regions import Regions
from lightning_modules.stream_features import Streams
from lightning_modules.stream_transformer import StreamTransformer


class Fused(NamedTuple):
    """Every position after the streams have met."""

    text_BTD: Tensor
    image_BRD: Tensor


class HybridStreamTransformer(StreamTransformer):
    """§4.2: text and visual streams, cross layers between them, and a co-transformer over both.

    Args:
        width, output_width: Inner width of all streams; width of the outputs.
        init_std: Standard deviation of initial weights.
        sizes: The other arguments of `StreamTransformer`.
    """

    def __init__(self, width: int, output_width: int, init_std: float, **sizes: Any) -> None:
        super().__init__(width=width, output_width=output_width, **sizes)
        self.text_output = nn.Linear(width, output_width)
        self.image_output = nn.Linear(width, output_width)
        self.initialise(init_std)

    def forward(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> tuple[Streams, Fused]:
        """Inputs: int64 tokens with their bool mask; regions with the whole-image region first."""
        streams = self.streams(tokens_BT, token_mask_BT, regions)
        return streams, self.fuse(streams.text.states_BND, token_mask_BT, streams.image.states_BND, regions.mask_BR)

    def streams(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Streams:
        """Embeddings and self layers, each stream on its own."""
        return Streams(self.text_stream(tokens_BT, token_mask_BT), self.image_stream(regions))

    def fuse(
        self,
        text_BTD: Tensor,
        token_mask_BT: Tensor,
        image_BRD: Tensor,
        region_mask_BR: Tensor,
        read: tuple[Tensor, Tensor] | None = None,
    ) -> Fused:
        """Cross layers, then the co-transformer on both streams side by side.

        Args:
            read: Positions_BK of the text and of the image whose outputs are wanted; None = all.
        """
        image_BRD, text_BTD = self.cross(image_BRD, region_mask_BR, text_BTD, token_mask_BT)
        text_BTD, image_BRD = self.side_by_side(text_BTD, token_mask_BT, image_BRD, region_mask_BR, read)
        return Fused(torch.relu(self.text_output(text_BTD)), torch.relu(self.image_output(image_BRD)))
