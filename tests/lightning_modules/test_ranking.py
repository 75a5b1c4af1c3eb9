"""The two ranking losses of the entity graph against slow transcriptions, and what they draw and train."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.entity_graph.neighbours import Neighbours
from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.node_ranking import NodeRanking
from lightning_modules.objectives.related_entities import Related, present_entities, related_entities
from lightning_modules.objectives.subgraph_ranking import SubgraphRanking, mean_cosine

NODES, COLUMNS, WIDTH = 60, 12, 8


def _graph(seed: int = 0, nodes: int = NODES) -> Neighbours:
    """A symmetric random similarity: many pairs above 0.85, some between the thresholds, most below or not listed."""
    generator = torch.Generator().manual_seed(seed)
    score_NN = torch.rand(nodes, nodes, generator=generator)
    score_NN = torch.where(torch.rand(nodes, nodes, generator=generator) < 0.12, 0.8 + 0.2 * score_NN, 0.6 * score_NN)
    score_NN = torch.triu(score_NN, 1) + torch.triu(score_NN, 1).T
    score_NK, index_NK = score_NN.fill_diagonal_(-1.0).topk(min(COLUMNS, nodes - 1))
    listed = score_NK > 0.3  # some rows have fewer neighbours than columns
    return Neighbours(torch.where(listed, index_NK, -1), torch.where(listed, score_NK, 0.0))


def _batch(seed: int = 0, samples: int = 6, nodes: int = NODES) -> Tensor:
    """Rows of entities: some twice, some none, one of a row that is no node."""
    generator = torch.Generator().manual_seed(seed)
    rows_BE = torch.randint(nodes, (samples, 4), generator=generator)
    rows_BE = torch.where(torch.rand(samples, 4, generator=generator) < 0.25, -1, rows_BE)
    rows_BE[0, :2], rows_BE[1, 0] = rows_BE[2, 3], nodes + 5
    return rows_BE


def _similar(graph: Neighbours, i: int) -> dict[int, float]:
    return {int(j): float(s) for j, s in zip(graph.index_NK[i], graph.score_NK[i], strict=True) if j >= 0}


def _draw(graph: Neighbours, rows_BE: Tensor, step: int = 0, **changes: object) -> Related:
    options = {"wanted": lambda n: n.clamp(max=3), "most": 3, "least": 1, "negatives": "batch", "per_sample": 4}
    return related_entities(rows_BE, graph, Draws(0, step, "cpu"), "test", **(options | changes))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), negatives=st.sampled_from(["batch", "table"]), nodes=st.integers(2, 40))
def test_every_draw_is_related_or_unrelated_as_it_should(seed: int, negatives: str, nodes: int) -> None:
    """One entity at a time: who is drawn for, from whom, and how many."""
    graph, rows_BE = _graph(seed, nodes), _batch(seed, nodes=nodes)
    present = {int(row) for row in rows_BE.flatten() if 0 <= row < nodes}
    found = _draw(graph, rows_BE, seed, negatives=negatives)
    drawn_for = {}
    for row, positives, others, used in zip(*(x.tolist() for x in found[:4]), strict=True):
        if any(used):
            assert row not in drawn_for
            chosen = [p for p, u in zip(positives, used, strict=True) if u]
            drawn_for[row] = (chosen, [n for n, u in zip(others, used, strict=True) if u])
    with_positive = {i for i in present if any(s > 0.85 for s in _similar(graph, i).values())}
    assert float(found.share) == pytest.approx(len(with_positive) / max(1, len(present)))
    for i in present:
        similar = _similar(graph, i)
        positives = {j for j, s in similar.items() if s > 0.85}
        pool = present if negatives == "batch" else set(range(nodes))
        unrelated = {j for j in pool if j != i and similar.get(j, 0.0) < 0.5}
        count = min(3, len(positives), len(unrelated))
        assert (i in drawn_for) == (count > 0)
        if count:
            mine, others = drawn_for[i]
            assert len(mine) == len(others) == count
            assert len(set(mine)) == len(set(others)) == count
            assert set(mine) <= positives
            assert set(others) <= unrelated


def test_every_candidate_is_drawn_equally_often() -> None:
    graph, rows_BE = _graph(), torch.tensor([[7, 9, 12, 30], [31, 33, 35, 41]])
    counts: dict[str, dict[int, int]] = {"positive": {}, "negative": {}}
    steps = 4000
    for step in range(steps):
        found = _draw(graph, rows_BE, step, wanted=lambda n: n.clamp(max=1), most=1)
        (place,) = ((found.rows_M == 7) & found.used_MC[:, 0]).nonzero().flatten().tolist()
        for name, row in (("positive", found.positives_MC[place, 0]), ("negative", found.negatives_MC[place, 0])):
            counts[name][int(row)] = counts[name].get(int(row), 0) + 1
    similar = _similar(graph, 7)
    candidates = {
        "positive": {j for j, s in similar.items() if s > 0.85},
        "negative": {int(j) for j in rows_BE.flatten() if j != 7 and similar.get(int(j), 0.0) < 0.5},
    }
    for name, expected in candidates.items():
        assert set(counts[name]) == expected
        assert len(expected) > 1
        for count in counts[name].values():
            share = 1 / len(expected)
            assert count / steps == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / steps))


def test_draws_for_an_entity_depend_on_seed_and_step_and_not_on_where_it_stands() -> None:
    graph, rows_BE = _graph(), _batch()

    def drawn(rows_BE: Tensor, step: int) -> dict[int, list]:
        found = _draw(graph, rows_BE, step, negatives="table")
        lists = zip(*(x.tolist() for x in found[:4]), strict=True)
        return {row: [places, others] for row, places, others, used in lists if any(used)}

    assert drawn(rows_BE, 3) == drawn(rows_BE.flip(0, 1), 3)
    assert drawn(rows_BE, 3) != drawn(rows_BE, 4)
    fewer, all_ = drawn(rows_BE[:3], 3), drawn(rows_BE, 3)
    assert fewer
    assert all(all_[row] == places for row, places in fewer.items())


def test_of_too_many_entities_a_random_part_is_ranked() -> None:
    graph, rows_BE = _graph(), torch.arange(40).view(10, 4)
    seen = set()
    for step in range(60):
        found = _draw(graph, rows_BE, step, per_sample=1)
        assert len(found.rows_M) == 10
        ranked = found.rows_M[found.used_MC[:, 0]].tolist()
        assert len(set(ranked)) == len(ranked) == 10
        seen |= set(ranked)
    assert seen == {i for i in range(40) if any(s > 0.85 for s in _similar(graph, i).values())}


def test_keyed_numbers_are_uniform_and_unrelated() -> None:
    draws = Draws(1, 2, "cpu")
    found = draws.keyed(torch.arange(20_000), 3, "a")
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) < 1e-3 < 0.999 < float(found.max()) < 1
    assert found.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.01)
    histogram = torch.histc(found, 20, 0, 1) / found.numel()
    assert histogram.tolist() == pytest.approx([0.05] * 20, abs=0.003)
    neighbours = torch.stack([*found.T, *Draws(1, 3, "cpu").keyed(torch.arange(20_000), 3, "a").T])
    neighbours = torch.cat([neighbours, neighbours[:3].roll(1, 1), draws.keyed(torch.arange(20_000), 3, "b").T])
    assert (torch.corrcoef(neighbours) - torch.eye(len(neighbours))).abs().max() < 0.03
    assert torch.equal(found[[5, 3]], draws.keyed(torch.tensor([5, 3]), 3, "a"))


# ---- the losses --------------------------------------------------------------------------------------------------


def _cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def _node_slow(found: Related, vectors: list[list[float]]) -> float:
    losses = []
    for row, positives, negatives, used in zip(*(x.tolist() for x in found[:4]), strict=True):
        if used[0]:
            nearer, farther = (1 - _cosine(vectors[row], vectors[other[0]]) for other in (positives, negatives))
            losses.append(max(0.0, nearer - farther + 0.2))
    return sum(losses) / max(1, len(losses))


def _subgraph_slow(found: Related, vectors: list[list[float]]) -> float:
    losses = []
    for _, positives, negatives, used in zip(*(x.tolist() for x in found[:4]), strict=True):
        if any(used):
            mean = []
            for sample in (positives, negatives):
                members = [vectors[row] for row, u in zip(sample, used, strict=True) if u]
                pairs = list(permutations(members, 2))
                mean.append(sum(_cosine(a, b) for a, b in pairs) / len(pairs))
            losses.append(max(0.0, mean[1] - mean[0] + 0.2))
    return sum(losses) / max(1, len(losses))


@pytest.mark.parametrize("negatives", ["batch", "table"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_node_ranking_equals_slow_transcription(step: int, negatives: str) -> None:
    graph, rows_BE, draws = _graph(), _batch(step), Draws(0, step, "cpu")
    vectors_ND = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(step))
    ranked = NodeRanking(negatives=negatives)(rows_BE, graph, vectors_ND.__getitem__, draws)
    one = {"wanted": lambda n: n.clamp(max=1), "most": 1, "least": 1, "negatives": negatives, "per_sample": 4}
    found = related_entities(rows_BE, graph, draws, "node", **one)
    assert found.used_MC.sum() > 5
    assert ranked.loss.item() == pytest.approx(_node_slow(found, vectors_ND.tolist()), rel=1e-5)
    assert ranked.loss.item() > 0


@pytest.mark.parametrize("negatives", ["batch", "table"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_subgraph_ranking_equals_slow_transcription(step: int, negatives: str) -> None:
    graph, rows_BE, draws = _graph(), _batch(step), Draws(0, step, "cpu")
    vectors_ND = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(step))
    ranked = SubgraphRanking(negatives=negatives)(rows_BE, graph, vectors_ND.__getitem__, draws)
    size: Callable[[Tensor], Tensor] = lambda n: torch.tensor([5 if x > 5 else min(3, x) for x in n.tolist()])  # noqa: E731
    some = {"wanted": size, "most": 5, "least": 2, "negatives": negatives, "per_sample": 4}
    found = related_entities(rows_BE, graph, draws, "subgraph", **some)
    assert {5, 3} <= set(found.used_MC.sum(1).tolist())
    assert ranked.loss.item() == pytest.approx(_subgraph_slow(found, vectors_ND.tolist()), rel=1e-4)
    assert ranked.loss.item() > 0


def test_mean_cosine_of_pairs_leaves_out_what_is_not_used() -> None:
    vectors = torch.tensor([[[1.0, 0], [0, 2], [3, 3], [-5, 0]]])
    expected = (0 + 2 * math.sqrt(0.5)) / 3
    assert mean_cosine(vectors, torch.tensor([[True, True, True, False]])).item() == pytest.approx(expected)
    assert mean_cosine(vectors, torch.tensor([[True, False, False, False]])).item() == pytest.approx(0, abs=1e-6)
    assert mean_cosine(torch.zeros_like(vectors), torch.ones(1, 4).bool()).item() == 0


@pytest.mark.parametrize("objective", [NodeRanking(), SubgraphRanking()], ids=lambda o: type(o).__name__)
def test_the_gradient_pulls_positives_closer_and_pushes_negatives_away(
    objective: NodeRanking | SubgraphRanking,
) -> None:
    """Vectors that start at random end where the graph says: alike within a group, unlike across groups."""
    rows = torch.arange(NODES)
    group = rows % 6
    alike = (group[:, None] == group) & ~torch.eye(NODES, dtype=torch.bool)
    graph = Neighbours(alike.nonzero()[:, 1].view(NODES, 9), torch.full((NODES, 9), 0.95))
    torch.manual_seed(0)
    vectors_ND = torch.nn.Parameter(torch.randn(NODES, WIDTH))
    optimizer = torch.optim.Adam([vectors_ND], lr=0.05)

    def cosines() -> tuple[float, float]:
        unit_ND = torch.nn.functional.normalize(vectors_ND.detach(), dim=-1)
        return float((unit_ND @ unit_ND.T)[alike].mean()), float((unit_ND @ unit_ND.T)[group[:, None] != group].mean())

    before = cosines()
    for step in range(150):
        optimizer.zero_grad()
        loss = objective(rows.view(15, 4), graph, vectors_ND.__getitem__, Draws(0, step, "cpu")).loss
        loss.backward()
        if step == 0:
            assert (vectors_ND.grad.norm(dim=1) > 0).float().mean() > 0.5, "entity, positive and negative all move"
        optimizer.step()
    after = cosines()
    assert after[0] > before[0] + 0.4
    assert after[1] < after[0] - 0.4


def test_nothing_to_rank_is_zero_with_a_gradient_of_zero() -> None:
    nobody = torch.full((3, 4), -1)
    alone = Neighbours(torch.full((NODES, 3), -1), torch.zeros(NODES, 3))
    for rows_BE, graph in ((nobody, _graph()), (_batch(), alone), (_batch(), Neighbours(*(x[:, :0] for x in alone)))):
        for objective in (NodeRanking(), SubgraphRanking()):
            vectors_ND = torch.randn(NODES, WIDTH, requires_grad=True)
            loss, share = objective(rows_BE, graph, vectors_ND.__getitem__, Draws(0, 0, "cpu"))
            loss.backward()
            assert loss.item() == share.item() == 0
            assert vectors_ND.grad is not None
            assert not vectors_ND.grad.any()


@pytest.mark.parametrize("negatives", ["batch", "table"])
def test_nothing_waits_for_the_device(negatives: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    graph = Neighbours(*(x.to("meta") for x in _graph()))
    vectors_ND = torch.zeros(NODES, WIDTH, device="meta")
    for objective in (NodeRanking(negatives=negatives), SubgraphRanking(negatives=negatives)):
        loss, share = objective(_batch().to("meta"), graph, vectors_ND.__getitem__, Draws(0, 0, "meta"))
        assert loss.device.type == share.device.type == "meta"


def test_zero_vectors_give_no_nan() -> None:
    for objective in (NodeRanking(), SubgraphRanking()):
        vectors_ND = torch.zeros(NODES, WIDTH, requires_grad=True)
        loss = objective(_batch(), _graph(), vectors_ND.__getitem__, Draws(0, 0, "cpu")).loss
        loss.backward()
        assert loss.item() == pytest.approx(0.2)
        assert vectors_ND.grad.isfinite().all()


def test_present_entities_are_counted_once() -> None:
    found = present_entities(torch.tensor([[4, 9, -1], [4, 60, 2]]), 60)
    assert int(found.total) == 3
    assert found.rows_P.tolist() == [2, 4, 9, 60, 60, 60]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0.0}, "graph_margin 0.0"),
        ({"negatives": "gallery"}, "'gallery' is unknown; known: batch, table"),
        ({"per_sample": 0}, "ranked_entities 0"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, message: str) -> None:
    for kind in (NodeRanking, SubgraphRanking):
        with pytest.raises(ModelError, match=message):
            kind(**arguments)
