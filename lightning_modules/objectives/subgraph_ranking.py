"""Subgraph ranking: entities related to the same one are more alike among themselves than unrelated ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lightning_modules.distributed import mean_over_ranks
from lightning_modules.entity_graph.neighbours import Neighbours
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.related_entities import (
    EntityRanking,
    Ranked,
    Vectors,
    related_entities,
)

MANY, FEW = 5, 3  # positives drawn where there are more than five, and where there are not (released)


class SubgraphRanking(EntityRanking):
    """max(0, c(negatives) − c(positives) + margin), averaged over entities of the global batch.

    Of each entity i, positives are drawn from S > 0.85, 5 of them if there are more than 5, else 3 (or all, if there
    are fewer), and as many negatives from S < 0.5, all different; c is the mean cosine of two different members of a
    sample.
    Source: EGE-CMP (arXiv 2206.08842), subgraph-based ranking loss, and its released code.
    Differs: as `NodeRanking`. Paper and code leave open, and are read here so: the entity itself is in neither sample;
    an entity with a single positive (or negative) has no pair to compare and contributes nothing; where there are fewer
    negatives than positives, fewer positives are drawn; pooled is the mean over pairs, not the sum, so that small
    samples count as large ones do; the margin is that of the nodes.
    """

    def forward(self, entities_BE: Tensor, neighbours: Neighbours, vectors: Vectors, draws: Draws) -> Ranked:
        """Loss over the entities of all ranks (0 where none has two positives), and the share that has.

        Inputs as `NodeRanking`'s.
        """
        found = related_entities(
            entities_BE, neighbours, draws, "subgraph", _sample_size, MANY, 2, self.negatives, self.per_sample
        )
        rows_2MC = torch.stack([found.positives_MC, found.negatives_MC])
        vectors_2MCD = vectors(rows_2MC.flatten()).unflatten(0, rows_2MC.shape)
        with torch.autocast(vectors_2MCD.device.type, enabled=False):
            cosine_2M = mean_cosine(vectors_2MCD.float(), found.used_MC)
            ranked_M = found.used_MC.any(1)
            hinge_M = F.relu(cosine_2M[1] - cosine_2M[0] + self.margin)
            loss = mean_over_ranks((hinge_M * ranked_M).sum(), ranked_M.sum())
        return Ranked(loss, found.share)


def mean_cosine(vectors_MCD: Tensor, used_MC: Tensor) -> Tensor:
    """Mean cosine of two different vectors of each sample (..., M); 0 where there are less than two.

    The sum over all pairs is ‖Σ u‖², which takes C additions instead of C² products.
    """
    unit_MCD = F.normalize(vectors_MCD, dim=-1) * used_MC.unsqueeze(-1)
    count_M = used_MC.sum(-1)
    pairs_M = (count_M * (count_M - 1)).clamp(min=1)
    return (unit_MCD.sum(-2).square().sum(-1) - unit_MCD.square().sum((-1, -2))) / pairs_M


def _sample_size(available_M: Tensor) -> Tensor:
    return torch.where(available_M > MANY, MANY, available_M.clamp(max=FEW))
