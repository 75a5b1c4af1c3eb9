"""Entities of the global batch with related and unrelated ones of each, drawn in shapes the host knows.

Entities are rows of the entity table. Which of them are in a batch, and how many different ones, only the device
knows: everything here has a place for each that there could be, and says which places are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows, rank
from lightning_modules.entity_graph.neighbours import POSITIVE_ABOVE, Neighbours
from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws

Negatives = Literal["batch", "table"]
Vectors = Callable[[Tensor], Tensor]  # rows_M of the table -> their embedding-layer vectors_MD, with gradient

NEGATIVE_BELOW = 0.5  # released: similarity up to which an entity may be a negative of another


class Ranked(NamedTuple):
    """A loss, and the share of the batch's entities that have the positives it needs."""

    loss: Tensor
    share: Tensor


class EntityRanking(nn.Module):
    """What both ranking objectives are set by.

    Args:
        margin: Of what they rank by: distances (nodes), mean cosines (subgraphs).
        negatives: Drawn from the other entities of the "batch" (of all ranks, released) or from the whole "table".
        per_sample: Most entities per sample of the batch that are ranked, on average; of more, a random choice.
    """

    def __init__(self, margin: float = 0.2, negatives: Negatives = "batch", per_sample: int = 4) -> None:
        super().__init__()
        if not margin > 0:
            raise ModelError(f"model.graph_margin {margin} must be above 0")
        if negatives not in ("batch", "table"):
            raise ModelError(f"model.graph_negatives {negatives!r} is unknown; known: batch, table")
        if per_sample < 1:
            raise ModelError(f"model.ranked_entities {per_sample} must be at least 1")
        self.margin = margin
        self.negatives: Negatives = negatives
        self.per_sample = per_sample


class Present(NamedTuple):
    """The different entities of all ranks' batches, ascending, then the number of nodes as filling."""

    rows_P: Tensor
    total: Tensor


class Related(NamedTuple):
    """M entities of this rank, for each up to C positives and as many negatives; unused places hold row 0."""

    rows_M: Tensor
    positives_MC: Tensor
    negatives_MC: Tensor
    used_MC: Tensor  # bool; the first so many of each entity
    share: Tensor  # of all ranks' entities, those with enough positives


def present_entities(entities_BE: Tensor, num_nodes: int) -> Present:
    """What is −1, or no node of the graph, is left out."""
    rows_G = gather_rows(entities_BE).flatten()
    rows_G = torch.where((rows_G >= 0) & (rows_G < num_nodes), rows_G, num_nodes).sort().values
    repeated_G = torch.cat([rows_G.new_zeros(1, dtype=torch.bool), rows_G[1:] == rows_G[:-1]])
    first_G = ~repeated_G & (rows_G < num_nodes)
    return Present(torch.where(first_G, rows_G, num_nodes).sort().values, first_G.sum())


def related_entities(
    entities_BE: Tensor,
    neighbours: Neighbours,
    draws: Draws,
    purpose: str,
    wanted: Callable[[Tensor], Tensor],
    most: int,
    least: int,
    negatives: Negatives,
    per_sample: int,
) -> Related:
    """Draw positives and negatives for the entities of the batches of all ranks, dealt over the ranks.

    Every entity counts once however many captions hold it, and is drawn for by one rank only, whichever: the draws are
    keyed by seed, step and entity, so ranks together do what one process on the whole batch does.

    Args:
        wanted: number of positives available_M -> how many of these to draw, at most `most`.
        least: An entity with fewer positives, or with fewer negatives, is left out.
        negatives: Whether they come from the "batch" (of all ranks) or from the whole "table".
        per_sample: Most entities per sample of the batch, on average; of more, a random choice.
    """
    num_nodes, num_columns = neighbours.index_NK.shape
    present = present_entities(entities_BE, num_nodes)
    row_P = present.rows_P.clamp(max=num_nodes - 1)
    enough_P = (_related(neighbours, row_P).sum(1) >= least) & (present.rows_P < num_nodes)
    share = enough_P.sum() / present.total.clamp(min=1)

    # Those that have positives to the front, in random order, then each rank takes its part.
    order_P = torch.where(enough_P, draws.keyed(row_P, 1, f"{purpose}, order").squeeze(1), 2.0).argsort()
    places = len(entities_BE) * min(per_sample, entities_BE.shape[1])
    order_M = order_P[rank() * places : (rank() + 1) * places]
    rows_M, used_M = row_P[order_M], enough_P[order_M]

    related_MK = _related(neighbours, rows_M)
    key_MK = torch.where(related_MK, draws.keyed(rows_M, num_columns, f"{purpose}, positives"), -1.0)
    chosen_MC = key_MK.topk(min(most, num_columns)).indices
    positives_MC = neighbours.index_NK[rows_M].gather(1, chosen_MC)

    close_MK = neighbours.score_NK[rows_M] >= NEGATIVE_BELOW
    excluded_MK = torch.where(close_MK, neighbours.index_NK[rows_M], -1)
    excluded_MF = torch.cat([rows_M.unsqueeze(1), excluded_MK], 1)
    left_M, nth = _left_over(excluded_MF, present if negatives == "batch" else None, num_nodes)
    count_M1 = torch.minimum(wanted(related_MK.sum(1)), left_M).unsqueeze(1)
    count_M1 = torch.where(used_M.unsqueeze(1) & (count_M1 >= least), count_M1, 0)
    column_C = torch.arange(chosen_MC.shape[1], device=rows_M.device)
    used_MC = column_C < count_M1
    # One negative from each of as many parts of what is left, equal but for rounding, so that all are different.
    divisor_M1 = count_M1.clamp(min=1)
    from_MC = column_C * left_M.unsqueeze(1) // divisor_M1
    size_MC = (column_C + 1) * left_M.unsqueeze(1) // divisor_M1 - from_MC
    uniform_MC = draws.keyed(rows_M, len(column_C), f"{purpose}, negatives")
    within_MC = torch.minimum((uniform_MC * size_MC).long(), size_MC - 1)  # a product just below the size rounds up
    negatives_MC = nth(torch.where(used_MC, from_MC + within_MC, 0))
    return Related(rows_M, torch.where(used_MC, positives_MC, 0), torch.where(used_MC, negatives_MC, 0), used_MC, share)


def _related(neighbours: Neighbours, rows_M: Tensor) -> Tensor:
    return (neighbours.score_NK[rows_M] > POSITIVE_ABOVE) & (neighbours.index_NK[rows_M] >= 0)


def _left_over(
    excluded_MF: Tensor, present: Present | None, num_nodes: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """How many rows (of those present, or of the whole table) are left without the excluded ones, and the n-th of them.

    Args:
        excluded_MF: Rows, −1 = none, each at most once.
    """
    place_MF, valid_MF = excluded_MF, excluded_MF >= 0
    total: int | Tensor = num_nodes
    if present is not None:
        place_MF = torch.searchsorted(present.rows_P, excluded_MF.clamp(min=0)).clamp(max=len(present.rows_P) - 1)
        valid_MF = valid_MF & (present.rows_P[place_MF] == excluded_MF)
        total = present.total
    beyond = num_nodes + excluded_MF.numel()
    # Excluded places a < b < c: what follows them moves up by one each, so that the n-th left over is n plus the
    # number of excluded places whose own number less those before them is at most n.
    place_MF = torch.where(valid_MF, place_MF, beyond).sort(1).values
    moved_MF = place_MF - torch.arange(place_MF.shape[1], device=place_MF.device)
    left_M = total - valid_MF.sum(1)

    def nth(n_MC: Tensor) -> Tensor:
        found_MC = n_MC + (moved_MF.unsqueeze(2) <= n_MC.unsqueeze(1)).sum(1)
        if present is None:
            return found_MC.clamp(max=num_nodes - 1)
        return present.rows_P[found_MC.clamp(max=len(present.rows_P) - 1)].clamp(max=num_nodes - 1)

    return left_M, nth
