"""AdaGAE on a sparse graph against a dense transcription of the method, and on features with known clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lightning_modules.entity_graph.adagae import AdaGAESettings, Encoder, learn_graph
from lightning_modules.entity_graph.full_loss import FullLoss
from lightning_modules.entity_graph.sampled_loss import SampledLoss
from lightning_modules.entity_graph.similarity import row_cosine
from lightning_modules.entity_graph.weights import adaptive_weights, as_torch, normalised
from tests.lightning_modules.entity_graph.dense_adagae import (
    dense_adagae,
    dense_loss,
    dense_similarity,
    dense_weights,
)
from tests.lightning_modules.entity_graph.planted import planted, precision_of_positives

SMALL = AdaGAESettings(rounds=3, steps=8, growth=2, lr=5e-3, widths=(16, 8))


def _unit(num: int = 230, common: float = 0.0) -> torch.Tensor:
    return F.normalize(planted(num, 15, common=common)[0].double())


def test_weights_of_a_round_are_the_dense_ones() -> None:
    x_ND = _unit()
    raw_NN, weights_NN = dense_weights(x_ND, 4)
    found = adaptive_weights(x_ND, 4, exact_below=5000, seed=0)
    np.testing.assert_allclose(found.symmetric_NN.toarray(), weights_NN, atol=1e-12)
    np.testing.assert_allclose(found.raw_own_N, raw_NN.diagonal(), atol=1e-12)
    np.testing.assert_allclose(found.raw_NK, raw_NN.gather(1, torch.from_numpy(found.index_NK)), atol=1e-12)
    assert (found.raw_own_N + found.raw_NK.sum(1)).round(12).tolist() == [1.0] * len(x_ND)


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("common", [0.0, 4.0])
def test_weights_losses_and_similarity_agree_with_the_dense_method(rounds: int, common: float) -> None:
    x_ND = _unit(common=common)
    encoder = Encoder(*(w.double() for w in Encoder.drawn(64, (16, 8), torch.Generator().manual_seed(1))))
    expected_NN, expected_losses = dense_adagae(x_ND, *encoder, rounds=rounds, steps=8, k=4, growth=2, lr=5e-3, lam=0.2)
    found = learn_graph(x_ND, SMALL._replace(rounds=rounds), encoder=encoder)
    assert len(found.losses) == rounds
    np.testing.assert_allclose(found.losses, expected_losses, rtol=1e-9)
    assert found.losses[0][-1] < 0.995 * found.losses[0][0]
    np.testing.assert_allclose(found.weights_NN.toarray(), expected_NN, atol=1e-7)
    neighbours = row_cosine(found.weights_NN, 20)
    similarity_NN = dense_similarity(expected_NN).fill_diagonal_(-1)
    listed_NK = torch.where(neighbours.index_NK < 0, 0.0, similarity_NN.gather(1, neighbours.index_NK.clamp(min=0)))
    torch.testing.assert_close(neighbours.score_NK.double(), listed_NK, atol=2e-6, rtol=0)
    best_NK = similarity_NN.sort(1, descending=True).values[:, :20].clamp(min=0)
    torch.testing.assert_close(neighbours.score_NK.double(), best_NK, atol=2e-6, rtol=0)


def test_it_stops_once_the_neighbours_are_a_twentieth_of_the_nodes() -> None:
    x_ND = _unit(130)  # 130 / 20 = 6.5: k = 4, 6, then 8
    encoder = Encoder(*(w.double() for w in Encoder.drawn(64, (16, 8), torch.Generator().manual_seed(1))))
    expected_NN, expected_losses = dense_adagae(x_ND, *encoder, rounds=10, steps=8, k=4, growth=2, lr=5e-3, lam=0.2)
    found = learn_graph(x_ND, SMALL._replace(rounds=10), encoder=encoder)
    assert len(found.losses) == len(expected_losses) == 3
    np.testing.assert_allclose(found.weights_NN.toarray(), expected_NN, atol=1e-7)


def test_the_full_loss_and_its_gradient_are_the_dense_ones() -> None:
    x_ND = _unit()
    raw_NN, weights_NN = dense_weights(x_ND, 5)
    weights = adaptive_weights(x_ND, 5, exact_below=5000, seed=0)
    adjacency_NN = as_torch(normalised(weights.symmetric_NN))
    gradients = []
    for compute in (
        lambda *encoder: dense_loss(x_ND, raw_NN, weights_NN, *encoder, 0.2)[0],
        FullLoss(weights, adjacency_NN, adjacency_NN @ x_ND, 0.2),
    ):
        encoder = Encoder.drawn(64, (16, 8), torch.Generator().manual_seed(2))
        encoder = [(3 * weight.double()).requires_grad_() for weight in encoder]
        loss = compute(*encoder)
        gradients.append((loss.detach(), *torch.autograd.grad(loss, encoder)))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_a_sampled_loss_estimates_the_full_one() -> None:
    """k = 4 samples seeds and the softmax; k = 30 also the neighbours, and those that a node is smoothed over."""
    x_ND = _unit(1500).float()
    generator = torch.Generator().manual_seed(0)
    for k in (4, 30):
        weights = adaptive_weights(x_ND, k, exact_below=5000, seed=0)
        adjacency_NN = as_torch(normalised(weights.symmetric_NN))
        encoder = [(2 * w).requires_grad_() for w in Encoder.drawn(64, (16, 8), generator)]
        parts = (weights, adjacency_NN, adjacency_NN @ x_ND, 0.2)
        exact = FullLoss(*parts)(*encoder)
        sampled = SampledLoss(*parts, 300, generator)
        draws = [sampled(*encoder) for _ in range(20)]
        mean = torch.stack(draws).mean()
        assert abs(mean.item() - exact.item()) < 0.03 * exact.item()
        for found, expected in zip(
            torch.autograd.grad(mean, encoder), torch.autograd.grad(exact, encoder), strict=True
        ):
            assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("common", [0.0, 4.0])
@pytest.mark.parametrize("exact_below", [5000, 100])
def test_planted_clusters_are_found(common: float, exact_below: int) -> None:
    features_ND, cluster_N = planted(600, 15, common=common)
    if common:
        assert (F.normalize(features_ND) @ F.normalize(features_ND).T).min() > 0.7  # they all look alike
    settings = AdaGAESettings(rounds=5, steps=20, exact_below=exact_below, seeds=64)
    neighbours = row_cosine(learn_graph(F.normalize(features_ND), settings).weights_NN, 32)
    assert neighbours.share_with_positive > 0.9
    assert precision_of_positives(neighbours, cluster_N) > 0.97


def test_training_matters() -> None:
    """The graph of the first round, of the features alone, is another one."""
    features_ND, _ = planted(300, 10)
    one, more = (learn_graph(features_ND, SMALL._replace(rounds=rounds)).weights_NN for rounds in (1, 3))
    assert abs(one - more).max() > 0.01


def test_equal_seeds_give_equal_graphs_and_a_warm_start_goes_on() -> None:
    features_ND = F.normalize(planted(400, 10)[0])
    for settings in (SMALL, SMALL._replace(exact_below=100)):
        first, again, other = (learn_graph(features_ND, settings, seed=seed) for seed in (3, 3, 4))
        assert (first.weights_NN != again.weights_NN).nnz == 0
        assert first.losses == again.losses != other.losses
        warm = learn_graph(features_ND, settings, seed=3, encoder=first.encoder)
        assert warm.losses[0][0] < first.losses[0][0]
