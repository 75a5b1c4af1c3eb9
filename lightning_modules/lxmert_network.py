"""LXMERT's network (§2): a language and an object encoder, then a cross-modality encoder over both.

Source and differences as in `lxmert.py`, which holds the objectives and the training.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.layers.attention import NORM_EPS, PostNormLayer, attend, check_heads
from lightning_modules.layers.embeddings import TextEmbedding, init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling
from lightning_modules.layers.regions import Regions
from lightning_modules.stream_features import Streams, read_stream


class Crossed(NamedTuple):
    """Every position of both modalities after the cross-modality encoder."""

    text_BTD: Tensor
    image_BRD: Tensor


class ObjectEmbedding(nn.Module):
    """§2.1: the mean of a region's feature and its box (x1, y1, x2, y2), each through a Linear and a LayerNorm."""

    def __init__(self, region_width: int, width: int, dropout: float, norm: bool = True) -> None:
        super().__init__()
        self.feature = nn.Linear(region_width, width)
        self.feature_norm = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()
        self.box = nn.Linear(4, width)
        self.box_norm = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions_BRD: Tensor, boxes_BR5: Tensor) -> Tensor:
        feature_BRD = self.feature_norm(self.feature(regions_BRD))
        box_BRD = self.box_norm(self.box(boxes_BR5[..., :4]))
        return self.dropout((feature_BRD + box_BRD) / 2)


class CrossModalityLayer(nn.Module):
    """§2.2: each stream attends to the other, then goes through a BERT layer of its own.

    One attention serves both directions, as in the released `LXRTXLayer`; both read the layer's input.
    """

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.text_layer = PostNormLayer(width, heads, inner, dropout)
        self.image_layer = PostNormLayer(width, heads, inner, dropout)

    def forward(self, text_BTD: Tensor, text_mask_BT: Tensor, image_BRD: Tensor, image_mask_BR: Tensor) -> Crossed:
        dropout = self.attention_dropout if self.training else 0.0
        text_query, text_key, text_value = self.query_key_value(text_BTD).chunk(3, dim=-1)
        image_query, image_key, image_value = self.query_key_value(image_BRD).chunk(3, dim=-1)
        to_text = attend(text_query, image_key, image_value, image_mask_BR, self.heads, dropout)
        to_image = attend(image_query, text_key, text_value, text_mask_BT, self.heads, dropout)
        text_BTD = self.norm(text_BTD + self.dropout(self.out(to_text)))
        image_BRD = self.norm(image_BRD + self.dropout(self.out(to_image)))
        return Crossed(self.text_layer(text_BTD, text_mask_BT), self.image_layer(image_BRD, image_mask_BR))


class CrossModalityTransformer(nn.Module):
    """§2: both encoders on their own, the cross-modality encoder, and the pooler of its output.

    The streams are pooled before they meet, for the contrast and the features of each modality alone.
    """

    def __init__(
        self,
        vocab_size: int,
        region_width: int,
        width: int,
        output_width: int,
        max_positions: int,
        text_layers: int,
        image_layers: int,
        cross_layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        init_std: float,
        text_pooling: StreamPooling,
        image_pooling: StreamPooling,
        region_norm: bool,
    ) -> None:
        super().__init__()
        check_heads(text_layers + image_layers + cross_layers, heads=heads, width=width)
        self.text_pooling = PositionPooling(width, text_pooling)
        self.image_pooling = PositionPooling(width, image_pooling)
        self.text_embedding = TextEmbedding(vocab_size, width, max_positions, dropout)
        self.region_embedding = ObjectEmbedding(region_width, width, dropout, region_norm)
        self.text_layers = nn.ModuleList(PostNormLayer(width, heads, ffn, dropout) for _ in range(text_layers))
        self.image_layers = nn.ModuleList(PostNormLayer(width, heads, ffn, dropout) for _ in range(image_layers))
        self.text_pooler = nn.Linear(width, output_width)
        self.image_pooler = nn.Linear(width, output_width)
        self.cross_layers = nn.ModuleList(CrossModalityLayer(width, heads, ffn, dropout) for _ in range(cross_layers))
        self.pooler = nn.Linear(width, width)
        self.apply(partial(init_bert_style, std=init_std))

    def streams(self, tokens_BT: Tensor, token_mask_BT: Tensor, regions: Regions) -> Streams:
        """Language encoder and object encoder, each on its own; regions with the whole-image region first."""
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

    def cross(self, text_BTD: Tensor, token_mask_BT: Tensor, image_BRD: Tensor, region_mask_BR: Tensor) -> Crossed:
        """The cross-modality encoder, on the states of both streams."""
        for layer in self.cross_layers:
            text_BTD, image_BRD = layer(text_BTD, token_mask_BT, image_BRD, region_mask_BR)
        return Crossed(text_BTD, image_BRD)

    def pool(self, text_BTD: Tensor) -> Tensor:
        """§2.3, the cross-modality output: BERT's pooler on the first position of the text."""
        return torch.tanh(self.pooler(text_BTD[:, 0]))
