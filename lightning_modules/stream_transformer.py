"""What the networks of CAPTURE (§4.2) and EGE-CMP are made of: streams, cross layers and a co-transformer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import CoAttentionLayer, PostNormLayer, PreNormBlock, check_heads, take
from lightning_modules.layers.embeddings import RegionEmbedding, TextEmbedding, init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling
from lightning_modules.layers.regions import Regions
from lightning_modules.stream_features import Stream, read_stream


class StreamTransformer(nn.Module):
    """The parts; a subclass adds output layers, calls `initialise`, and says what meets what.

    All self layers of a stream come first, then its pooled feature is taken, then all cross layers run, then the
    co-transformer on two streams side by side.
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
        text_pooling: StreamPooling,
        image_pooling: StreamPooling,
        region_norm: bool,
    ) -> None:
        super().__init__()
        check_heads(text_layers, text_heads=text_heads, width=width)
        check_heads(image_layers, image_heads=image_heads, width=width)
        check_heads(cross_layers, cross_heads=cross_heads, cross_width=cross_width)
        check_heads(co_layers, co_heads=co_heads, width=width)
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

    def initialise(self, std: float) -> None:
        """Initial weights of all parts, as released."""
        self.apply(partial(init_bert_style, std=std))
        for block in self.co_layers:  # the released blocks are nn.MultiheadAttention: its own initialisation stays
            assert isinstance(block, PreNormBlock)
            nn.init.xavier_uniform_(block.query_key_value.weight)

    def text_stream(self, tokens_BT: Tensor, token_mask_BT: Tensor) -> Stream:
        """Embeddings and self layers of int64 tokens with their bool mask."""
        words_BTD = text_BTD = self.text_embedding(tokens_BT)
        for layer in self.text_layers:
            text_BTD = layer(text_BTD, token_mask_BT)
        return read_stream(self.text_pooling, self.text_pooler, words_BTD, text_BTD, token_mask_BT)

    def image_stream(self, regions: Regions) -> Stream:
        """Embeddings and self layers of regions with the whole-image region first."""
        regions_BRD = image_BRD = self.region_embedding(regions.features_BRD, regions.boxes_BR5)
        for layer in self.image_layers:
            image_BRD = layer(image_BRD, regions.mask_BR)
        return read_stream(self.image_pooling, self.image_pooler, regions_BRD, image_BRD, regions.mask_BR)

    def cross(
        self, image_BRD: Tensor, region_mask_BR: Tensor, text_BTD: Tensor, token_mask_BT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All cross layers on the stream in the image's role and the one in the text's."""
        for layer in self.cross_layers:
            image_BRD, text_BTD = layer(image_BRD, region_mask_BR, text_BTD, token_mask_BT)
        return image_BRD, text_BTD

    def side_by_side(
        self,
        first_BND: Tensor,
        first_mask_BN: Tensor,
        second_BMD: Tensor,
        second_mask_BM: Tensor,
        read: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The co-transformer on two streams one after the other, positions counted from 0.

        Args:
            read: Positions_BK of either stream whose outputs are wanted; None = all. The last layer is computed for
                these alone, which changes none of their values.
        """
        length = first_BND.shape[1]
        if length + second_BMD.shape[1] > self.co_position.num_embeddings:
            raise ModelError(
                f"{length} and {second_BMD.shape[1]} positions side by side, but model.max_positions="
                f"{self.co_position.num_embeddings}: raise it, or shorten the text (model.text_length) or the regions "
                "(model.num_regions, or model.image_size_px of a grid)"
            )
        both_BND = torch.cat([first_BND, second_BMD], 1)
        both_BND = self.co_dropout(both_BND + self.co_position.weight[: both_BND.shape[1]])
        both_mask_BN = torch.cat([first_mask_BN, second_mask_BM], 1)
        read_BK = None if read is None else torch.cat([read[0], read[1] + length], 1)
        for number, layer in enumerate(self.co_layers, start=1):
            both_BND = layer(both_BND, both_mask_BN, read_BK if number == len(self.co_layers) else None)
        if read_BK is not None and not len(self.co_layers):
            both_BND = take(both_BND, read_BK)
        if read is not None:
            length = read[0].shape[1]
        return both_BND[:, :length], both_BND[:, length:]
