"""Adaptive weights of AdaGAE: how much each node wants each of its neighbours."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from retrieval.nearest import NearestRows, nearest_rows


class AdaptiveWeights(NamedTuple):
    """The graph of one round. K neighbours, the node itself not among them."""

    index_NK: np.ndarray  # int64, the neighbours
    raw_NK: np.ndarray  # r_ij of the neighbours
    raw_own_N: np.ndarray  # r_ii; r_ii + Σ_j r_ij = 1
    symmetric_NN: sp.csr_matrix  # W = (r + rᵀ) / 2

    @property
    def entropy(self) -> float:
        """mean_i Σ_j r_ij log r_ij: the part of the divergence that the encoder cannot change."""
        r_NK = np.concatenate([self.raw_own_N[:, None], self.raw_NK], 1)
        return float((r_NK * np.log(np.where(r_NK > 0, r_NK, 1.0))).sum(1).mean())


def adaptive_weights(vectors_ND: Tensor, k: int, exact_below: int, seed: int) -> AdaptiveWeights:
    """Weights of the k nearest nodes, the node itself counted: r_ij ∝ max(0, d_(k) − d_ij).

    d is the squared distance and d_(k) that of the first node left out, so that the solution of
    min Σ d_ij r_ij + γ |r_i|² with exactly k positive weights. Needs at least two nodes.
    Source: Li, Zhang & Zhang, "Adaptive graph auto-encoder for general data clustering", TPAMI 2021, eq. 8.
    Differs: where d_(k) = 0, many identical rows, the k nearest share the weight alike (the formula says 0/0). With
    fewer than k + 1 nodes, k is one less than there are.
    """
    k = min(k, len(vectors_ND) - 1)
    return _weights(nearest_rows(vectors_ND, k, exact_below=exact_below, seed=seed))


def _weights(nearest: NearestRows) -> AdaptiveWeights:
    num, k = nearest.index_NK.shape
    gap_N1 = nearest.squared_NK[:, -1:]
    # Column 0 is the node itself at distance 0; the node at d_(k) gets weight 0 and is left out.
    raw_NK = gap_N1 - np.concatenate([np.zeros_like(gap_N1), nearest.squared_NK[:, :-1]], 1)
    total_N1 = raw_NK.sum(1, keepdims=True)
    raw_NK = np.where(total_N1 > 0, raw_NK / np.where(total_N1 > 0, total_N1, 1), 1 / k).astype(gap_N1.dtype)
    index_NK = nearest.index_NK[:, :-1]
    column_NK = np.concatenate([np.arange(num)[:, None], index_NK], 1)
    raw_NN = sp.csr_matrix((raw_NK.ravel(), column_NK.ravel(), np.arange(0, num * k + 1, k)), shape=(num, num))
    symmetric_NN = sp.csr_matrix(raw_NN + raw_NN.T)
    symmetric_NN.data /= 2  # in place: scipy would go over to float64
    symmetric_NN.eliminate_zeros()
    symmetric_NN.sort_indices()
    return AdaptiveWeights(index_NK, raw_NK[:, 1:], raw_NK[:, 0], symmetric_NN)


def normalised(weights_NN: sp.csr_matrix) -> sp.csr_matrix:
    """D^−½ W D^−½, without added loops: every node already has weight for itself."""
    scale_N = 1 / np.sqrt(np.asarray(weights_NN.sum(1)).ravel())
    return sp.csr_matrix(sp.diags(scale_N) @ weights_NN @ sp.diags(scale_N)).astype(weights_NN.dtype)


def as_torch(matrix_NN: sp.csr_matrix) -> Tensor:
    """The same matrix for products with dense ones on all cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")  # "beta state"
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix_NN.indptr.astype(np.int64)),
            torch.from_numpy(matrix_NN.indices.astype(np.int64)),
            torch.from_numpy(matrix_NN.data),
            size=matrix_NN.shape,
            check_invariants=False,
        )
