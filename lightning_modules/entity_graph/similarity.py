"""From features or learned weights to each node's most similar nodes."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from lightning_modules.entity_graph.neighbours import NONE, Neighbours
from retrieval.nearest import nearest_rows

PRODUCTS = 1 << 24  # multiplications of a block of rows: bounds what its part of the product can hold
SCORE_BITS = 30  # of a float32 in [0, 1]


def feature_cosine(features_ND: Tensor, kept: int, centred: bool = True, seed: int = 0) -> Neighbours:
    """Cosine of node features, by the nearest rows on the unit sphere; cosines <= 0 and zero vectors list nothing.

    Args:
        centred: Take the mean of the nodes off first. Embeddings behind a LayerNorm share a long component, so that
            plain cosines all lie close to 1 and tell nothing.
    """
    found = Neighbours.empty(len(features_ND), kept)
    unit_MD = features_ND.clone()  # the one copy: hundreds of MB with many nodes
    real_M = (torch.linalg.vector_norm(features_ND, dim=1) > 0).nonzero().squeeze(1)
    if len(real_M) < 2:
        return found
    if len(real_M) < len(features_ND):
        unit_MD = unit_MD[real_M]
    if centred:
        unit_MD -= unit_MD.mean(0)
    unit_MD /= torch.linalg.vector_norm(unit_MD, dim=1, keepdim=True).clamp(min=1e-30)
    index_MK, squared_MK = nearest_rows(unit_MD, kept, seed=seed)
    score_MK = (1 - torch.from_numpy(squared_MK).float() / 2).clamp(max=1.0)  # |a - b|² = 2 - 2 cos of unit vectors
    listed_MK = score_MK > 0
    found.index_NK[real_M] = torch.where(listed_MK, real_M[torch.from_numpy(index_MK)], NONE)
    found.score_NK[real_M] = torch.where(listed_MK, score_MK, 0.0)
    return found


def row_cosine(weights_NN: sp.csr_matrix, kept: int) -> Neighbours:
    """Cosine of the rows of a sparse matrix without negative weights: S of the method, its largest per row.

    Blocks of rows are multiplied with the whole; a block is as large as its product is sure to fit.
    """
    num = weights_NN.shape[0]
    found = Neighbours.empty(num, kept)
    if not num:
        return found
    norm_N = np.sqrt(np.asarray(weights_NN.multiply(weights_NN).sum(1)).ravel())
    unit_NN = sp.diags(1 / np.maximum(norm_N, 1e-30)).astype(np.float32) @ weights_NN.astype(np.float32)
    unit_NN = sp.csr_matrix(unit_NN)
    unit_NN.sort_indices()
    columns_NN = unit_NN.T.tocsr()
    columns_NN.sort_indices()
    num_in_column_N = np.diff(columns_NN.indptr).astype(np.float64)
    pattern_NN = sp.csr_matrix((np.ones(unit_NN.nnz), unit_NN.indices, unit_NN.indptr), shape=unit_NN.shape)
    done_N = np.cumsum(pattern_NN @ num_in_column_N)
    column_bits = max(1, int(num - 1).bit_length())
    most_rows = 1 << (63 - SCORE_BITS - column_bits)  # what is left of a sorting key
    start = 0
    while start < num:
        before = done_N[start - 1] if start else 0.0
        stop = max(start + 1, int(np.searchsorted(done_N, before + PRODUCTS, side="right")))
        stop = min(stop, num, start + most_rows)
        _keep_largest(unit_NN[start:stop] @ columns_NN, start, column_bits, found)
        start = stop
    return found


def _keep_largest(score_BN: sp.csr_matrix, start: int, column_bits: int, found: Neighbours) -> None:
    """Write the largest scores of a block of rows, equal ones by node number.

    One sort of whole numbers (row, falling score, column) and no lexsort, which takes ten times as long.
    """
    kept = found.index_NK.shape[1]
    row_P = np.repeat(np.arange(score_BN.shape[0], dtype=np.int64), np.diff(score_BN.indptr))
    column_P = score_BN.indices.astype(np.int64)
    score_P = np.clip(score_BN.data, 0.0, 1.0).astype(np.float32)
    real_P = (column_P != row_P + start) & (score_P > 0)
    row_P, column_P, score_P = row_P[real_P], column_P[real_P], score_P[real_P]
    falling_P = (1 << SCORE_BITS) - 1 - score_P.view(np.int32).astype(np.int64)
    key_P = np.sort((((row_P << SCORE_BITS) | falling_P) << column_bits) | column_P)
    count_B = np.bincount(row_P, minlength=score_BN.shape[0])
    row_P = np.repeat(np.arange(len(count_B)), count_B)
    place_P = np.arange(len(key_P)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
    first_P = place_P < kept
    row_P, place_P, key_P = row_P[first_P] + start, place_P[first_P], key_P[first_P]
    score = ((1 << SCORE_BITS) - 1 - ((key_P >> column_bits) & ((1 << SCORE_BITS) - 1))).astype(np.int32)
    found.index_NK.numpy()[row_P, place_P] = key_P & ((1 << column_bits) - 1)
    found.score_NK.numpy()[row_P, place_P] = score.view(np.float32)
