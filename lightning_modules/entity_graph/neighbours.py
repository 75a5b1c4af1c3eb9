"""The graph as the objectives read it: each node's most similar nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1
POSITIVE_ABOVE = 0.85  # paper: similarity from which an entity is a positive of another


class Neighbours(NamedTuple):
    """The most similar other nodes of every node, most similar first. A pair that is not listed has similarity 0."""

    index_NK: Tensor  # int64, NONE = no more; never the node itself
    score_NK: Tensor  # float32, similarity in (0, 1]; 0 where there is none

    @classmethod
    def empty(cls, num_nodes: int = 0, kept: int = 0) -> Neighbours:
        """Nodes without any."""
        return cls(torch.full((num_nodes, kept), NONE), torch.zeros(num_nodes, kept))

    @property
    def num_edges(self) -> int:
        """Listed pairs, each direction by itself."""
        return int((self.index_NK != NONE).sum())

    @property
    def share_with_positive(self) -> float:
        """Of the nodes, how many have another node that is a positive; 0 of no nodes."""
        if not self.index_NK.numel():
            return 0.0
        return float((self.score_NK[:, 0] > POSITIVE_ABOVE).float().mean())

    @property
    def positives_per_node(self) -> float:
        """How many positives a node has in the mean. Many with a share near 1: the graph has run together."""
        return float((self.score_NK > POSITIVE_ABOVE).sum(1).float().mean()) if len(self.score_NK) else 0.0
