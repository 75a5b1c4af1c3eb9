"""The most similar nodes, by features and by rows of a sparse matrix, against dense products."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_modules.entity_graph import similarity
from lightning_modules.entity_graph.neighbours import NONE, Neighbours
from lightning_modules.entity_graph.similarity import feature_cosine, row_cosine
from lightning_modules.entity_graph.weights import adaptive_weights
from tests.lightning_modules.entity_graph.planted import planted, precision_of_positives


def _check(found: Neighbours, dense_NN: torch.Tensor, kept: int, atol: float) -> None:
    """The list is what sorting the dense row gives, up to the order of equal scores."""
    dense_NN = dense_NN.clone().fill_diagonal_(-1)
    expected_NK = dense_NN.sort(1, descending=True).values[:, :kept].clamp(min=0)
    torch.testing.assert_close(found.score_NK[:, : expected_NK.shape[1]], expected_NK, atol=atol, rtol=0)
    listed_NK = found.index_NK != NONE
    of_pair_NK = dense_NN.gather(1, found.index_NK.clamp(min=0))
    torch.testing.assert_close(found.score_NK[listed_NK], of_pair_NK[listed_NK], atol=atol, rtol=0)
    assert (found.score_NK[~listed_NK] == 0).all()
    assert not (found.index_NK == torch.arange(len(dense_NN))[:, None]).any()
    for row in found.index_NK.tolist():
        real = [node for node in row if node != NONE]
        assert len(set(real)) == len(real)


@pytest.mark.parametrize("products", [1 << 24, 300])
def test_rows_of_a_sparse_matrix(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PRODUCTS", products)  # 300: blocks of a few rows
    matrix = sp.random(120, 120, density=0.05, random_state=np.random.default_rng(0), format="lil")
    matrix[7] = 0  # a row without weights
    matrix[:, 3] = 0.5  # a node that everyone knows
    matrix[7, 3] = 0
    matrix = sp.csr_matrix(matrix)
    dense_NN = F.normalize(torch.from_numpy(matrix.toarray()).float())
    found = row_cosine(matrix, 9)
    _check(found, dense_NN @ dense_NN.T, 9, atol=1e-6)
    assert (found.index_NK[7] == NONE).all()


def test_equal_scores_are_ordered_by_node() -> None:
    found = row_cosine(sp.csr_matrix(np.ones((6, 6))), 4)
    assert found.index_NK.tolist()[0] == [1, 2, 3, 4]
    assert found.index_NK.tolist()[3] == [0, 1, 2, 4]
    torch.testing.assert_close(found.score_NK, torch.ones(6, 4))


@pytest.mark.parametrize("centred", [True, False])
def test_cosine_of_features(centred: bool) -> None:
    features_ND = planted(200, 20, common=1.0)[0]
    unit_ND = F.normalize(features_ND - features_ND.mean(0) if centred else features_ND)
    _check(feature_cosine(features_ND, 12, centred), unit_ND @ unit_ND.T, 12, atol=2e-6)


@pytest.mark.parametrize("common", [0.0, 4.0])
def test_planted_clusters_are_found_also_where_all_features_look_alike(common: float) -> None:
    features_ND, cluster_N = planted(600, 30, common=common)
    found = feature_cosine(features_ND, 32)
    assert found.share_with_positive > 0.9
    assert precision_of_positives(found, cluster_N) > 0.97
    if common:  # the mean of all nodes is what makes them alike
        assert precision_of_positives(feature_cosine(features_ND, 32, centred=False), cluster_N) < 0.7


@pytest.mark.parametrize("num", [0, 1, 2, 3, 6])
def test_few_nodes(num: int) -> None:
    found = feature_cosine(torch.randn(num, 4, generator=torch.Generator().manual_seed(0)), 5, centred=False)
    assert found.index_NK.shape == (num, 5)
    assert (found.index_NK[:, max(0, num - 1) :] == NONE).all()
    assert torch.isfinite(found.score_NK).all()


def test_identical_rows_and_zero_vectors_are_no_nan() -> None:
    features_ND = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    features_ND[10:40] = features_ND[10]
    features_ND[50:] = 0
    found = feature_cosine(features_ND, 5, centred=False)
    assert (found.index_NK[50:] == NONE).all()
    assert not (found.index_NK[:50] >= 50).any()
    torch.testing.assert_close(found.score_NK[10:40], torch.ones(30, 5))
    weights = adaptive_weights(features_ND, 4, exact_below=5000, seed=0)
    assert np.isfinite(weights.symmetric_NN.data).all()
    np.testing.assert_allclose(weights.raw_own_N + weights.raw_NK.sum(1), 1, atol=1e-6)
    similar = row_cosine(weights.symmetric_NN, 5)
    assert torch.isfinite(similar.score_NK).all()
    assert ((similar.index_NK[10:40] >= 10) & (similar.index_NK[10:40] < 40))[similar.score_NK[10:40] > 0.85].all()
