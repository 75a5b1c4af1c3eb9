"""The loss of AdaGAE over all pairs of nodes, a block of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.entity_graph.weights import AdaptiveWeights, as_torch

BLOCK = 1024  # rows of the pairwise matrix at a time


class FullLoss:
    """mean_i Σ_j r_ij log(r_ij / p_ij) + λ tr(Zᵀ L Z) / N, exactly.

    Rows of r sum to 1 and 2 tr(Zᵀ L Z) = Σ_ij W_ij d_ij = Σ_ij r_ij d_ij, so with log p_ij = −d_ij − log Σ_m exp(−d_im)
    the loss is  mean_i Σ_j r_ij log r_ij + (2 + λ) tr(Zᵀ L Z) / N + mean_i log Σ_m exp(−d_im),
    of which only the last sum runs over all pairs.
    """

    def __init__(self, weights: AdaptiveWeights, adjacency_NN: Tensor, smoothed_ND: Tensor, lam: float) -> None:
        self.adjacency_NN, self.smoothed_ND, self.lam = adjacency_NN, smoothed_ND, lam
        self.weights_NN = as_torch(weights.symmetric_NN)
        self.degree_N1 = self.weights_NN @ torch.ones(len(smoothed_ND), 1, dtype=smoothed_ND.dtype)
        self.entropy = weights.entropy

    def __call__(self, hidden_DH: Tensor, output_HZ: Tensor) -> Tensor:
        encoding_NZ = symmetric_product(self.adjacency_NN, (self.smoothed_ND @ hidden_DH).relu()) @ output_HZ
        laplacian_NZ = self.degree_N1 * encoding_NZ - symmetric_product(self.weights_NN, encoding_NZ)
        trace = (encoding_NZ * laplacian_NZ).sum() / len(encoding_NZ)
        return self.entropy + (2 + self.lam) * trace + _MeanLogPartition.apply(encoding_NZ)


class _SymmetricProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix_NN: Tensor, dense_NH: Tensor) -> Tensor:
        ctx.matrix_NN = matrix_NN
        return matrix_NN @ dense_NH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix_NN @ grads[0].contiguous()  # its own transpose: nothing has to be transposed


def symmetric_product(matrix_NN: Tensor, dense_NH: Tensor) -> Tensor:
    """A symmetric sparse matrix times a dense one; gradient for the dense one."""
    return _SymmetricProduct.apply(matrix_NN, dense_NH)


class _MeanLogPartition(torch.autograd.Function):
    """mean_i log Σ_j exp(−|z_i − z_j|²). The gradient is taken on the way: the N × N matrix is never stored."""

    @staticmethod
    def forward(ctx: Any, encoding_NZ: Tensor) -> Tensor:
        z_NZ = encoding_NZ - encoding_NZ.mean(0)  # distances stay the same and lose fewer digits
        squared_N = z_NZ.square().sum(1)
        total, grad_NZ = z_NZ.new_zeros(()), torch.zeros_like(z_NZ)
        for start in range(0, len(z_NZ), BLOCK):
            rows = slice(start, start + BLOCK)
            distance_BN = (
                torch.addmm(squared_N, z_NZ[rows], z_NZ.T, alpha=-2.0).add_(squared_N[rows, None]).clamp_(min=0)
            )
            p_BN = distance_BN.neg_().exp_()
            sum_B1 = p_BN.sum(1, keepdim=True)  # at least 1: the node itself
            total += sum_B1.log().sum()
            p_BN /= sum_B1
            # each pair pushes both of its ends: ∂ −d_ij = −2 (z_i − z_j) on i and its opposite on j
            grad_NZ[rows] -= 2 * (z_NZ[rows] - p_BN @ z_NZ)
            grad_NZ -= 2 * (p_BN.sum(0)[:, None] * z_NZ - p_BN.T @ z_NZ[rows])
        ctx.save_for_backward(grad_NZ / len(z_NZ))
        return total / len(z_NZ)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * ctx.saved_tensors[0]
