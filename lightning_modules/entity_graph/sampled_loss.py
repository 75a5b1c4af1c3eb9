"""An estimate of AdaGAE's loss whose cost does not grow with the number of nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.entity_graph.weights import AdaptiveWeights

OTHERS = 1024  # random nodes in the softmax of a step, the same for all its seeds
NEIGHBOURS = 8  # of a seed, in a step
FAN_OUT = 12  # neighbours a node is smoothed over; nodes with no more have all of theirs


class SampledLoss:
    """`FullLoss` for a few random nodes (seeds) against some of their neighbours and random others.

    The softmax over all nodes becomes one over the seed, its neighbours and the others, each of the drawn ones counted
    as often as it stands for nodes that were not. The outer Â is sampled by its own weights, so that a node's encoding
    is unbiased; the inner Â X is exact, since it does not change in a round.
    """

    def __init__(
        self,
        weights: AdaptiveWeights,
        adjacency_NN: Tensor,
        smoothed_ND: Tensor,
        lam: float,
        seeds: int,
        generator: torch.Generator,
    ) -> None:
        self.smoothed_ND, self.lam, self.generator = smoothed_ND, lam, generator
        self.num_seeds = min(seeds, len(smoothed_ND))
        self.index_NK, self.raw_NK = torch.from_numpy(weights.index_NK), torch.from_numpy(weights.raw_NK)
        self.entropy = weights.entropy
        self.first_N1, self.column_P = adjacency_NN.crow_indices(), adjacency_NN.col_indices()
        self.value_P = adjacency_NN.values()
        # Sum of all values before a place: a uniform number between two of them falls on a neighbour by its weight.
        self.before_P1 = torch.cat([torch.zeros(1, dtype=torch.float64), self.value_P.double().cumsum(0)])

    def __call__(self, hidden_DH: Tensor, output_HZ: Tensor) -> Tensor:
        num = len(self.smoothed_ND)
        seed_B = torch.randperm(num, generator=self.generator)[: self.num_seeds]
        near_BF, raw_BF, near_stands_for = self._neighbours(seed_B)
        other_M = torch.randint(num, (min(OTHERS, num),), generator=self.generator)
        nodes_T, where = torch.cat([seed_B, near_BF.flatten(), other_M]).unique(return_inverse=True)
        encoding_TZ = self._encode(nodes_T, hidden_DH, output_HZ)
        seed_BZ = encoding_TZ[where[: len(seed_B)]]
        near_BFZ = encoding_TZ[where[len(seed_B) : len(where) - len(other_M)]].view(*near_BF.shape, -1)
        other_MZ = encoding_TZ[where[len(where) - len(other_M) :]]

        near_BF_d = (seed_BZ[:, None] - near_BFZ).square().sum(-1)
        other_BM_d = torch.cdist(seed_BZ, other_MZ, compute_mode="donot_use_mm_for_euclid_dist").square()
        listed_BM = other_M == seed_B[:, None]
        for neighbour_B in self.index_NK[seed_B].T:
            listed_BM |= other_M == neighbour_B[:, None]
        stands_for_B1 = (num - 1 - self.index_NK.shape[1]) / (~listed_BM).sum(1, keepdim=True).clamp(min=1)
        partition_B = (
            1.0  # the node itself
            + near_stands_for * (-near_BF_d).exp().sum(1)
            + (stands_for_B1 * (-other_BM_d).exp().masked_fill(listed_BM, 0.0)).sum(1)
        )
        wanted = near_stands_for * (raw_BF * near_BF_d).sum(1).mean()
        return self.entropy + (1 + self.lam / 2) * wanted + partition_B.log().mean()

    def _neighbours(self, seed_B: Tensor) -> tuple[Tensor, Tensor, float]:
        """Some neighbours of each seed, their r, and how many each stands for."""
        index_BK, raw_BK = self.index_NK[seed_B], self.raw_NK[seed_B]
        num = index_BK.shape[1]
        if num <= NEIGHBOURS:
            return index_BK, raw_BK, 1.0
        chosen_BF = torch.rand(index_BK.shape, generator=self.generator).topk(NEIGHBOURS, sorted=False).indices
        return index_BK.gather(1, chosen_BF), raw_BK.gather(1, chosen_BF), num / NEIGHBOURS

    def _encode(self, nodes_T: Tensor, hidden_DH: Tensor, output_HZ: Tensor) -> Tensor:
        row_P, column_P, value_P = self._edges(nodes_T)
        columns_U, place_P = column_P.unique(return_inverse=True)
        hidden_UH = (self.smoothed_ND[columns_U] @ hidden_DH).relu()
        smoothed_TH = hidden_UH.new_zeros(len(nodes_T), hidden_UH.shape[1])
        smoothed_TH = smoothed_TH.index_add(0, row_P, value_P[:, None] * hidden_UH[place_P])
        return smoothed_TH @ output_HZ

    def _edges(self, nodes_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (of nodes_T), columns and values of a sparse matrix whose expectation is Â's rows."""
        first_T, end_T = self.first_N1[nodes_T], self.first_N1[nodes_T + 1]
        few_T = end_T - first_T <= FAN_OUT
        count_T = torch.where(few_T, end_T - first_T, FAN_OUT)
        row_P = torch.arange(len(nodes_T)).repeat_interleave(count_T)
        offset_P = torch.arange(len(row_P)) - (count_T.cumsum(0) - count_T)[row_P]
        low_T, mass_T = self.before_P1[first_T], self.before_P1[end_T] - self.before_P1[first_T]
        drawn_P = torch.rand(len(row_P), generator=self.generator, dtype=torch.float64) * mass_T[row_P] + low_T[row_P]
        drawn_P = torch.searchsorted(self.before_P1, drawn_P, right=True) - 1
        drawn_P = torch.minimum(torch.maximum(drawn_P, first_T[row_P]), end_T[row_P] - 1)
        place_P = torch.where(few_T[row_P], first_T[row_P] + offset_P, drawn_P)
        share_P = (mass_T / FAN_OUT).to(self.value_P.dtype)[row_P]
        return row_P, self.column_P[place_P], torch.where(few_T[row_P], self.value_P[place_P], share_P)
