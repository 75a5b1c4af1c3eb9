"""Word-region alignment: its plan against an exact solver, its loss against a slow transcription."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from lightning_modules.objectives.word_region_alignment import WordRegionAlignment, optimal_transport


def _exact_distance(cost: Tensor) -> float:
    """The transport problem as the linear programme it is: uniform row and column sums, least cost."""
    tokens, regions = cost.shape
    rows = np.kron(np.eye(tokens), np.ones(regions))
    columns = np.kron(np.ones(tokens), np.eye(regions))
    sums = np.concatenate([np.full(tokens, 1 / tokens), np.full(regions, 1 / regions)])
    return linprog(cost.numpy().ravel(), A_eq=np.concatenate([rows, columns]), b_eq=sums).fun


def _all_real(cost: Tensor) -> tuple[Tensor, Tensor]:
    batch, tokens, regions = cost.shape
    return torch.ones(batch, tokens, dtype=torch.bool), torch.ones(batch, regions, dtype=torch.bool)


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 4), (3, 3), (5, 2), (6, 7)])
def test_the_distance_is_the_exact_one_within_the_regularisation(shape: tuple[int, int], beta: float) -> None:
    """A proximal method is off by at most β · KL(plan ‖ start) / iterations, and that divergence is at most log(TR).

    Before convergence region weights are met in part: a weight on the wrong region costs at most 2, the highest cost.
    """
    cost = 2 * torch.rand(8, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    exact = torch.tensor([_exact_distance(sample) for sample in cost])
    for iterations, most_misplaced in ((50, 0.02), (2000, 1e-4)):
        plan = optimal_transport(cost, *_all_real(cost), beta=beta, iterations=iterations)
        misplaced = (plan.sum(1) - 1 / shape[1]).abs().sum(1) / 2
        bound = beta * math.log(shape[0] * shape[1]) / iterations
        error = (plan * cost).sum((1, 2)) - exact
        assert (misplaced <= most_misplaced).all()
        assert (error >= -2 * misplaced - 1e-5).all()
        assert (error <= bound + 2 * misplaced + 1e-5).all()


def test_equal_numbers_are_matched_one_to_one() -> None:
    order = torch.tensor([2, 0, 3, 1])
    cost = torch.ones(1, 4, 4)
    cost[0, torch.arange(4), order] = 0.0
    plan = optimal_transport(cost, *_all_real(cost), iterations=200)
    expected = torch.zeros(4, 4)
    expected[torch.arange(4), order] = 0.25
    torch.testing.assert_close(plan[0], expected, atol=1e-4, rtol=0)


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    regions=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_weights_are_moved_whole_and_only_between_real_positions(
    tokens: list[int], regions: list[int], seed: int
) -> None:
    batch = len(tokens)
    token_mask = torch.arange(6) < torch.tensor(tokens)[:, None]
    region_mask = torch.arange(5) < torch.tensor(regions[:batch])[:, None]
    cost = 2 * torch.rand(batch, 6, 5, generator=torch.Generator().manual_seed(seed))
    plan = optimal_transport(cost, token_mask, region_mask, iterations=300)
    assert (plan >= 0).all()
    for sample, t, r in zip(plan, tokens, regions, strict=False):
        assert not sample[t:].any()
        assert not sample[:, r:].any()
        if t and r:
            torch.testing.assert_close(sample[:t].sum(1), torch.full((t,), 1 / t))
            torch.testing.assert_close(sample[:, :r].sum(0), torch.full((r,), 1 / r), atol=2e-3, rtol=0)
        else:
            assert not sample.any()


def _ipot_slow(cost: list[list[float]], beta: float, iterations: int) -> list[list[float]]:
    """Algorithm 1 of arXiv 1802.04307 on lists, regions scaled before tokens."""
    tokens, regions = len(cost), len(cost[0])
    plan = [[1.0] * regions for _ in range(tokens)]
    sigma = [1 / tokens] * tokens
    for _ in range(iterations):
        q = [[math.exp(-cost[t][r] / beta) * plan[t][r] for r in range(regions)] for t in range(tokens)]
        delta = [1 / regions / sum(q[t][r] * sigma[t] for t in range(tokens)) for r in range(regions)]
        sigma = [1 / tokens / sum(q[t][r] * delta[r] for r in range(regions)) for t in range(tokens)]
        plan = [[sigma[t] * q[t][r] * delta[r] for r in range(regions)] for t in range(tokens)]
    return plan


def _loss_slow(text: Tensor, image: Tensor, lengths: list[tuple[int, int]], matched: list[bool]) -> float:
    total = 0.0
    for words, regions, (t, r), is_matched in zip(text.tolist(), image.tolist(), lengths, matched, strict=True):

        def cosine(a: list[float], b: list[float]) -> float:
            return sum(x * y for x, y in zip(a, b, strict=True)) / math.dist(a, [0] * 4) / math.dist(b, [0] * 4)

        cost = [[1 - cosine(word, region) for region in regions[:r]] for word in words[:t]]
        plan = _ipot_slow(cost, beta=0.5, iterations=50)
        distance = sum(p * c for row, costs in zip(plan, cost, strict=True) for p, c in zip(row, costs, strict=True))
        total += distance if is_matched else -distance
    return 0.1 * total / len(matched)


def _pairs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[tuple[int, int]]]:
    generator = torch.Generator().manual_seed(0)
    text, image = torch.randn(4, 6, 4, generator=generator), torch.randn(4, 5, 4, generator=generator)
    lengths = [(6, 5), (3, 1), (4, 4), (1, 2)]
    token_mask = torch.arange(6) < torch.tensor([t for t, _ in lengths])[:, None]
    region_mask = torch.arange(5) < torch.tensor([r for _, r in lengths])[:, None]
    return text, token_mask, image, region_mask, torch.tensor([True, False, False, True]), lengths


def test_the_loss_equals_its_slow_transcription() -> None:
    text, token_mask, image, region_mask, matched, lengths = _pairs()
    found = WordRegionAlignment()(text, token_mask, image, region_mask, matched)
    assert found.item() == pytest.approx(_loss_slow(text, image, lengths, matched.tolist()), rel=1e-4)


def test_padding_changes_neither_loss_nor_gradient() -> None:
    text, token_mask, image, region_mask, matched, _ = _pairs()
    results = []
    for noise in (0.0, 7.0):  # also the zero vector, which has no direction
        words = torch.where(token_mask[..., None], text, noise).requires_grad_()
        regions = torch.where(region_mask[..., None], image, noise).requires_grad_()
        loss = WordRegionAlignment()(words, token_mask, regions, region_mask, matched)
        results.append((loss.detach(), *torch.autograd.grad(loss, [words, regions])))
    for once, again in zip(*results, strict=True):
        assert torch.equal(once, again)
    assert not results[0][1][~token_mask].any()
    assert not results[0][2][~region_mask].any()


def test_the_gradient_passes_through_the_cost_with_the_plan_held() -> None:
    text, token_mask, image, region_mask, matched, _ = _pairs()
    text.requires_grad_()
    wra = WordRegionAlignment(weight=1.0)
    (found,) = torch.autograd.grad(wra(text, token_mask, image, region_mask, matched), [text])
    cost = 1 - torch.nn.functional.cosine_similarity(text[:, :, None], image[:, None], dim=-1)
    plan = optimal_transport(cost.detach(), token_mask, region_mask)
    distance = (plan * cost).sum((1, 2))
    loss = (distance[matched].sum() - distance[~matched].sum()) / 4
    (expected,) = torch.autograd.grad(loss, [text])
    torch.testing.assert_close(found, expected)
    assert not list(wra.parameters())


def test_bfloat16_does_not_coarsen_the_plan() -> None:
    text, token_mask, image, region_mask, matched, _ = _pairs()
    alone = WordRegionAlignment()(text, token_mask, image, region_mask, matched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(WordRegionAlignment()(text, token_mask, image, region_mask, matched), alone)


def test_it_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    text, token_mask, image, region_mask, matched = (x.to("meta") for x in _pairs()[:5])
    loss = WordRegionAlignment()(text.requires_grad_(), token_mask, image, region_mask, matched)
    loss.backward()
    assert loss.device.type == "meta"
