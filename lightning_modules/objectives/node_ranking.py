"""Node ranking: an entity lies closer to one it is related to in the entity graph than to one it is not."""

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


class NodeRanking(EntityRanking):
    """max(0, d(i, positive) − d(i, negative) + margin), d = 1 − cosine, averaged over entities of the global batch.

    Of each entity i with similarities S in the graph, the positive is drawn from S > 0.85, the negative from S < 0.5.
    Source: EGE-CMP (arXiv 2206.08842), node-based ranking loss, and its released code.
    Differs: the gradient reaches the embedding layer (released: vectors detached, so that nothing was trained) of the
    entity, the positive and the negative alike. Positives come from the whole graph, since among tens of thousands of
    entities a batch rarely holds two related ones. The distance is that of cosines with a margin (released: margin 0,
    element by element). An entity that stands in several captions counts once.
    """

    def forward(self, entities_BE: Tensor, neighbours: Neighbours, vectors: Vectors, draws: Draws) -> Ranked:
        """Loss over the entities of all ranks (0 where none has a positive), and the share that has one.

        Inputs:
            entities_BE: int64 rows of the entity table, −1 = none; of the same shape on every rank.
            neighbours: Of the graph, the same on every rank.
            vectors: rows_M of the table -> vectors_MD with gradient.
        """
        found = related_entities(entities_BE, neighbours, draws, "node", _one, 1, 1, self.negatives, self.per_sample)
        places = (found.rows_M.unsqueeze(1), found.positives_MC, found.negatives_MC)
        rows_MC = torch.cat(places, 1)
        vectors_MCD = vectors(rows_MC.flatten()).unflatten(0, rows_MC.shape)
        with torch.autocast(vectors_MCD.device.type, enabled=False):
            unit_MCD = F.normalize(vectors_MCD.float(), dim=-1)
            own_M1D, positive_M1D, negative_M1D = unit_MCD.split([place.shape[1] for place in places], 1)
            # 1 − cosine of the positive, less that of the negative
            difference_M1 = (own_M1D * (negative_M1D - positive_M1D)).sum(-1)
            hinge_M1 = F.relu(difference_M1 + self.margin)
            loss = mean_over_ranks((hinge_M1 * found.used_MC).sum(), found.used_MC.sum())
        return Ranked(loss, found.share)


def _one(available_M: Tensor) -> Tensor:
    return available_M.clamp(max=1)
