"""One modality on its own: the backbone that the baselines of one modality share with the fused models."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from lightning_modules.layers.attention import PostNormLayer
from lightning_modules.layers.embeddings import init_bert_style
from lightning_modules.layers.pooling import PositionPooling, StreamPooling
from lightning_modules.stream_features import Stream, read_stream


class SingleStream(nn.Module):
    """Embedding, self layers, pooling and pooler: either stream of CAPTURE's network before the two meet.

    Args:
        embedding: What turns the inputs of `forward` into states of `width`.
        output_width: Of the pooled vector.
        init_std: Standard deviation of all initial weights.
    """

    def __init__(
        self,
        embedding: nn.Module,
        width: int,
        output_width: int,
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        pooling: StreamPooling,
        init_std: float,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(PostNormLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.pooling = PositionPooling(width, pooling)
        self.pooler = nn.Linear(width, output_width)
        self.apply(partial(init_bert_style, std=init_std))

    def forward(self, mask_BN: Tensor, *inputs: Tensor) -> Stream:
        """The stream of the embedding's inputs; mask True = real."""
        embedded_BND = states_BND = self.embedding(*inputs)
        for layer in self.layers:
            states_BND = layer(states_BND, mask_BN)
        return read_stream(self.pooling, self.pooler, embedded_BND, states_BND, mask_BN)
