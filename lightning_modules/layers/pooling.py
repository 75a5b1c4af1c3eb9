"""From positions to one vector."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

StreamPooling = Literal["first", "mean", "attention"]


def masked_mean(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    """Mean over the real positions (mask True = real)."""
    return weighted_sum(x_BND, uniform_weights(x_BND, mask_BN))


def uniform_weights(x_BND: Tensor, mask_BN: Tensor) -> Tensor:
    weight_BN = mask_BN.to(x_BND.dtype)
    return weight_BN / weight_BN.sum(1, keepdim=True)


def weighted_sum(x_BND: Tensor, weight_BN: Tensor) -> Tensor:
    return (weight_BN.unsqueeze(-1) * x_BND).sum(1)


class PositionPooling(nn.Module):
    """How much each position of a stream counts, and what stands for the whole stream.

    "first": its first position (BERT's [CLS]); "mean": all positions alike; "attention": a mean weighted by
    softmax(x · q) with one learned vector q, which starts as the plain mean.
    Source of the last: the word attention of Yang et al., "Hierarchical attention networks", NAACL 2016, without its
    hidden layer.
    """

    def __init__(self, width: int, kind: StreamPooling) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.query = nn.Parameter(torch.zeros(width))

    def weights(self, x_BND: Tensor, mask_BN: Tensor) -> Tensor:
        """Weights_BN of the real positions, their sum 1; alike unless the pooling is "attention"."""
        if self.kind != "attention":
            return uniform_weights(x_BND, mask_BN)
        return (x_BND @ self.query).masked_fill(~mask_BN, float("-inf")).softmax(1)

    def forward(self, x_BND: Tensor, weight_BN: Tensor) -> Tensor:
        """The vector that stands for the stream, given what `weights` said."""
        return x_BND[:, 0] if self.kind == "first" else weighted_sum(x_BND, weight_BN)
