"""Multi-head attention and the three kinds of transformer layers of the hybrid stream, on fused kernels.

Shapes: B batch, N query positions, M key positions, D width. Masks are boolean, True = may be attended to;
the first position of every sequence is real, so no softmax row is empty. A boolean mask equals the additive
−10000 / −1e6 of the released code in fp32: both give weight 0 exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.errors import ModelError

NORM_EPS = 1e-12  # the released code's BertLayerNorm, everywhere


def check_heads(layers: int, **sizes: int) -> None:
    """Raise `ModelError` unless the heads share the width evenly; where there are no layers, any number will do.

    Args:
        sizes: Two model arguments by their names: the number of heads, then the width.
    """
    (heads_name, heads), (width_name, width) = sizes.items()
    if layers and (heads < 1 or width % heads):
        near = [n for n in range(1, width + 1) if width % n == 0]
        near = sorted(sorted(near, key=lambda n: abs(n - heads))[:3])
        raise ModelError(
            f"model.{heads_name}={heads} does not divide model.{width_name}={width}: each head takes an equal share; "
            f"{', '.join(map(str, near))} would do"
        )


def attend(
    query_BND: Tensor, key_BMD: Tensor, value_BMD: Tensor, mask_BM: Tensor, heads: int, dropout: float
) -> Tensor:
    """Scaled dot-product attention over `heads` heads, by whichever fused kernel the device has."""
    batch, positions, width = query_BND.shape

    def split(x: Tensor) -> Tensor:
        return x.view(batch, -1, heads, width // heads).transpose(1, 2)

    out = F.scaled_dot_product_attention(
        split(query_BND),
        split(key_BMD),
        split(value_BMD),
        # Expanded per batch row: each sample sees its own mask (the released co-transformer mixed them up).
        attn_mask=mask_BM[:, None, None, :],
        dropout_p=dropout,
    )
    return out.transpose(1, 2).reshape(batch, positions, width)


class FeedForward(nn.Module):
    """BERT's position-wise network with its own residual and norm: LayerNorm(x + W2·gelu(W1·x))."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.norm(x_BND + self.dropout(self.down(F.gelu(self.up(x_BND)))))


class PostNormLayer(nn.Module):
    """A BERT layer: self-attention and feed-forward, each followed by residual and LayerNorm."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = dropout
        self.query_key_value = nn.Linear(width, 3 * width)  # one product instead of three
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = FeedForward(width, inner, dropout)

    def forward(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        query, key, value = self.query_key_value(x_BND).chunk(3, dim=-1)
        mixed = attend(query, key, value, mask_BN, self.heads, self.attention_dropout if self.training else 0.0)
        return self.feed_forward(self.norm(x_BND + self.dropout(self.out(mixed))))


class CrossStreams(NamedTuple):
    """The two streams after a co-attention layer."""

    image_BRD: Tensor
    text_BTD: Tensor


class CoAttentionLayer(nn.Module):
    """ViLBERT-style co-attention: each stream's queries attend to the other stream, then each has its own FFN.

    Both directions read the layer's input, so the order of the two does not matter.
    Source: ViLBERT (arXiv 1908.02265) §3.1; CAPTURE §4.2. The released layer also holds `q_dense*`, never used.

    Args:
        width: Of both streams, or of the text alone where `image_width` is given.
        inner: Of queries, keys and values.
        image_inner, text_inner: Of the feed-forward networks.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        heads: int,
        image_inner: int,
        text_inner: int,
        dropout: float,
        image_width: int | None = None,
    ) -> None:
        super().__init__()
        image_width = image_width or width
        self.heads = heads
        self.attention_dropout = dropout
        self.image_query_key_value = nn.Linear(image_width, 3 * inner)
        self.text_query_key_value = nn.Linear(width, 3 * inner)
        self.image_out = nn.Linear(inner, image_width)
        self.text_out = nn.Linear(inner, width)
        self.image_norm = nn.LayerNorm(image_width, eps=NORM_EPS)
        self.text_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.image_feed_forward = FeedForward(image_width, image_inner, dropout)
        self.text_feed_forward = FeedForward(width, text_inner, dropout)

    def forward(self, image_BRD: Tensor, image_mask_BR: Tensor, text_BTD: Tensor, text_mask_BT: Tensor) -> CrossStreams:
        dropout = self.attention_dropout if self.training else 0.0
        image_query, image_key, image_value = self.image_query_key_value(image_BRD).chunk(3, dim=-1)
        text_query, text_key, text_value = self.text_query_key_value(text_BTD).chunk(3, dim=-1)
        to_image = attend(image_query, text_key, text_value, text_mask_BT, self.heads, dropout)
        to_text = attend(text_query, image_key, image_value, image_mask_BR, self.heads, dropout)
        image_BRD = self.image_norm(image_BRD + self.dropout(self.image_out(to_image)))
        text_BTD = self.text_norm(text_BTD + self.dropout(self.text_out(to_text)))
        return CrossStreams(self.image_feed_forward(image_BRD), self.text_feed_forward(text_BTD))


class PreNormBlock(nn.Module):
    """A CLIP-style residual block with QuickGELU, no dropout: the co-transformer's layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor, mask_BN: Tensor, read_BK: Tensor | None = None) -> Tensor:
        """The block's output at all positions, or at those of `read_BK` only, for the price of these."""
        normed_BND = self.attention_norm(x_BND)
        if read_BK is None:
            query, key, value = self.query_key_value(normed_BND).chunk(3, dim=-1)
        else:
            width = x_BND.shape[-1]
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            query = F.linear(take(normed_BND, read_BK), weight[:width], bias[:width])
            key, value = F.linear(normed_BND, weight[width:], bias[width:]).chunk(2, dim=-1)
            x_BND = take(x_BND, read_BK)
        x_BND = x_BND + self.out(attend(query, key, value, mask_BN, self.heads, 0.0))
        hidden = self.up(self.mlp_norm(x_BND))
        return x_BND + self.down(hidden * torch.sigmoid(1.702 * hidden))


def take(x_BND: Tensor, position_BK: Tensor) -> Tensor:
    """The vectors at some positions of each sample."""
    sample_B1 = torch.arange(len(x_BND), device=x_BND.device).unsqueeze(1)
    return x_BND[sample_B1, position_BK]
