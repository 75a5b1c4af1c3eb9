"""CAPTURE's network (§4.2): two streams, cross layers between them, and a co-transformer over both.

Source and differences as in `capture.py`, which holds the objectives and the training.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.layers.attention import CoAttentionLayer, PostNormLayer, PreNormBlock, take
from lightning_modules.layers.embeddings import RegionEmbedding, TextEmbedding, init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling
from lightning_modules.layers.regions import Regions
from lightning_modules.stream_features import Streams, read_stream


class Fused(NamedTuple):
    """Every position after the streams have met."""

    text_BTD: Tensor
    image_BRD: Tensor


class HybridStreamTransformer(nn.Module):
    """§4.2: text and visual streams, cross layers between them, and a co-transformer over both.

    All self layers of both streams come first, then the pooled stream features are taken, then all cross layers run,
    then the co-transformer on the concatenation (text first).
    """

    def __init__(
        self,
        vocab_size: int,
        region_width: int,
        width: int,
        output_width: int,
        max_positions: int,
        text_layers: int,
        text_heads: int,
        text_ffn: int,
        image_layers: int,
        image_heads: int,
        image_ffn: int,
        cross_layers: int,
        cross_heads: int,
        cross_width: int,
        co_layers: int,
        co_heads: int,
        dropout: float,
        init_std: float,
        text_pooling: StreamPooling,
        image_pooling: StreamPooling,
        region_norm: bool,
    ) -> None:
        super().__init__()
        self.text_pooling = PositionPooling(width, text_pooling)
        self.image_pooling = PositionPooling(width, image_pooling)
        self.text_embedding = TextEmbedding(vocab_size, width, max_positions, dropout)
        self.region_embedding = RegionEmbedding(region_width, width, dropout, region_norm)
        self.text_layers = nn.ModuleList(
            PostNormLayer(width, text_heads, text_ffn, dropout) for _ in range(text_layers)
        )
        self.image_layers = nn.ModuleList(
            PostNormLayer(width, image_heads, image_ffn, dropout) for _ in range(image_layers)
        )
        self.text_pooler = nn.Linear(width, output_width)
        self.image_pooler = nn.Linear(width, output_width)
        self.cross_layers = nn.ModuleList(
            CoAttentionLayer(width, cross_width, cross_heads, image_ffn, text_ffn, dropout) for _ in range(cross_layers)
        )
        self.co_position = nn.Embedding(max_positions, width)
        self.co_dropout = nn.Dropout(dropout)
        self.co_layers = nn.ModuleList(PreNormBlock(width, co_heads) for _ in range(co_layers))
        self.text_output = nn.Linear(width, output_width)
        self.image_output = nn.Linear(width, output_width)
        self.apply(partial(init_bert_style, std=init_std))
        for block in self.co_layers:  # the released blocks are nn.MultiheadAttention: its own initialisation stays
            assert isinstance(block, PreNormBlock)
            nn.init.xavier_uniform_(block.query_key_value.weight)

    def forward(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> tuple[Streams, Fused]:
        """Inputs: int64 tokens with their bool mask; regions with the whole-image region first."""
        streams = self.streams(tokens_BT, token_mask_BT, regions)
        return streams, self.fuse(streams.text.states_BND, token_mask_BT, streams.image.states_BND, regions.mask_BR)

    def streams(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Streams:
        """Embeddings and self layers, each stream on its own."""
        text_BTD = self.text_embedding(tokens_BT)
        image_BRD = self.region_embedding(regions.features_BRD, regions.boxes_BR5)
        words_BTD, regions_BRD = text_BTD, image_BRD
        for layer in self.text_layers:
            text_BTD = layer(text_BTD, token_mask_BT)
        for layer in self.image_layers:
            image_BRD = layer(image_BRD, regions.mask_BR)
        return Streams(
            read_stream(self.text_pooling, self.text_pooler, words_BTD, text_BTD, token_mask_BT),
            read_stream(self.image_pooling, self.image_pooler, regions_BRD, image_BRD, regions.mask_BR),
        )

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
            read: Positions_BK of the text and of the image whose outputs are wanted; None = all. The last layer is
                computed for these alone, which changes none of their values.
        """
        for layer in self.cross_layers:
            image_BRD, text_BTD = layer(image_BRD, region_mask_BR, text_BTD, token_mask_BT)
        length = text_BTD.shape[1]
        both_BND = torch.cat([text_BTD, image_BRD], 1)
        both_BND = self.co_dropout(both_BND + self.co_position.weight[: both_BND.shape[1]])
        both_mask_BN = torch.cat([token_mask_BT, region_mask_BR], 1)
        read_BK = None if read is None else torch.cat([read[0], read[1] + length], 1)
        for number, layer in enumerate(self.co_layers, start=1):
            both_BND = layer(both_BND, both_mask_BN, read_BK if number == len(self.co_layers) else None)
        if read_BK is not None and not len(self.co_layers):
            both_BND = take(both_BND, read_BK)
        if read is not None:
            length = read[0].shape[1]
        return Fused(
            torch.relu(self.text_output(both_BND[:, :length])), torch.relu(self.image_output(both_BND[:, length:]))
        )
