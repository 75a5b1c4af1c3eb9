"""Features with known clusters, and how well a graph finds them again."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_modules.entity_graph.neighbours import POSITIVE_ABOVE, Neighbours


def planted(
    num: int, clusters: int, width: int = 64, spread: float = 0.25, common: float = 0.0
) -> tuple[Tensor, Tensor]:
    """features_ND behind a LayerNorm, and the cluster of each; `common` is the length of what all of them share."""
    generator = torch.Generator().manual_seed(0)
    centre_CD = torch.randn(clusters, width, generator=generator)
    cluster_N = torch.arange(num) % clusters
    noise_ND = spread * torch.randn(num, width, generator=generator)
    features_ND = centre_CD[cluster_N] + noise_ND + common * torch.randn(width, generator=generator)
    return F.layer_norm(features_ND, (width,)), cluster_N


def precision_of_positives(neighbours: Neighbours, cluster_N: Tensor) -> float:
    """Of the listed pairs above the threshold, how many lie in one cluster."""
    positive_NK = neighbours.score_NK > POSITIVE_ABOVE
    same_NK = cluster_N[neighbours.index_NK] == cluster_N[:, None]
    return float(same_NK[positive_NK].float().mean())
