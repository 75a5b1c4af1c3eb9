"""AdaGAE on a sparse graph: an encoder learned from the graph, and the graph anew from the encoder, in turns.

Shape legend beside the project's: N nodes, K neighbours of a node, H hidden width, Z encoding width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import scipy.sparse as sp
import torch
from torch import Tensor

from lightning_modules.entity_graph.full_loss import FullLoss
from lightning_modules.entity_graph.sampled_loss import SampledLoss
from lightning_modules.entity_graph.weights import AdaptiveWeights, adaptive_weights, as_torch, normalised


class AdaGAESettings(NamedTuple):
    """How the graph is learned; defaults: EGE-CMP's released settings."""

    rounds: int = 10
    steps: int = 50  # per round
    num_neighbours: int = 3  # in the first round, the node itself not counted
    growth: int = 5  # more neighbours each round
    lr: float = 5e-4
    lam: float = 0.2  # λ, weight of tr(Zᵀ L Z)
    widths: tuple[int, int] = (128, 64)
    exact_below: int = 5_000  # nodes from which on steps are sampled
    seeds: int = 512  # nodes whose loss a sampled step estimates


class Encoder(NamedTuple):
    """Two graph convolutions without biases."""

    hidden_DH: Tensor
    output_HZ: Tensor

    @classmethod
    def drawn(cls, width: int, widths: tuple[int, int], generator: torch.Generator) -> Encoder:
        """Glorot's uniform start, as the released code."""
        sizes = ((width, widths[0]), (widths[0], widths[1]))
        return cls(*((2 * torch.rand(size, generator=generator) - 1) * (6 / sum(size)) ** 0.5 for size in sizes))


class Learned(NamedTuple):
    """What the method ends with."""

    weights_NN: sp.csr_matrix  # W
    encoder: Encoder
    losses: list[list[float]]  # of each round, before each of its steps


def learn_graph(
    features_ND: Tensor, settings: AdaGAESettings, seed: int = 0, encoder: Encoder | None = None
) -> Learned:
    """The weight matrix W of AdaGAE.

    Round t: the encoder takes `steps` Adam steps on
        mean_i Σ_j r_ij log(r_ij / p_ij) + λ tr(Zᵀ (D − W) Z) / N,  p_ij = softmax_j(−|z_i − z_j|²),
        Z = Â relu(Â X W1) W2,  Â = D^−½ W D^−½,
    then W and r are computed anew from Z with k_t = (3 + 1) + 5 (t − 1) nearest nodes. It stops, keeping W, once
    k_t ≥ N / 20. The first W comes from X. One Adam for all rounds.
    Source: Li, Zhang & Zhang, "Adaptive graph auto-encoder for general data clustering", TPAMI 2021, algorithm 2; sizes
    and rates from EGE-CMP's released code.
    Differs: Z is that of the weights after a round's last step, not before it. From `exact_below` nodes on, a step
    estimates the loss on a sample (`SampledLoss`).

    Args:
        features_ND: X, at least two nodes, on the CPU. float64 computes in float64.
        encoder: to start from; None = drawn with the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = Encoder.drawn(features_ND.shape[1], settings.widths, generator)
    start = drawn if encoder is None else encoder
    trained = Encoder(*(w.detach().to(features_ND.dtype, copy=True).requires_grad_() for w in start))
    optimizer = torch.optim.Adam(list(trained), lr=settings.lr)
    num, k = len(features_ND), settings.num_neighbours + 1
    weights = adaptive_weights(features_ND, k, settings.exact_below, seed)
    losses: list[list[float]] = []
    for _ in range(settings.rounds):
        adjacency_NN = as_torch(normalised(weights.symmetric_NN))
        smoothed_ND = adjacency_NN @ features_ND  # Â X, the same in every step of a round
        losses.append(_train(trained, optimizer, weights, adjacency_NN, smoothed_ND, settings, generator))
        if k >= num / 20:
            break
        encoding_NZ = encode(trained, adjacency_NN, smoothed_ND)
        weights = adaptive_weights(encoding_NZ, k, settings.exact_below, seed)
        k += settings.growth
    return Learned(weights.symmetric_NN, Encoder(*(w.detach() for w in trained)), losses)


@torch.no_grad()
def encode(encoder: Encoder, adjacency_NN: Tensor, smoothed_ND: Tensor) -> Tensor:
    """Z of all nodes."""
    return adjacency_NN @ (smoothed_ND @ encoder.hidden_DH).relu_() @ encoder.output_HZ


def _train(
    encoder: Encoder,
    optimizer: torch.optim.Optimizer,
    weights: AdaptiveWeights,
    adjacency_NN: Tensor,
    smoothed_ND: Tensor,
    settings: AdaGAESettings,
    generator: torch.Generator,
) -> list[float]:
    loss: FullLoss | SampledLoss
    if len(smoothed_ND) < settings.exact_below:
        loss = FullLoss(weights, adjacency_NN, smoothed_ND, settings.lam)
    else:
        loss = SampledLoss(weights, adjacency_NN, smoothed_ND, settings.lam, settings.seeds, generator)
    losses = []
    with torch.enable_grad(), _in_a_fixed_order():
        for _ in range(settings.steps):
            optimizer.zero_grad()
            value = loss(encoder.hidden_DH, encoder.output_HZ)
            value.backward()
            optimizer.step()
            losses.append(value.item())
    return losses


@contextmanager
def _in_a_fixed_order() -> Iterator[None]:
    """Sums over gathered rows are otherwise taken in the order in which threads happen to come."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
