"""The graph as a part of a model: its nodes, its state, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.entity_graph.neighbours import NONE
from lightning_modules.errors import ModelError
from tests.lightning_modules.entity_graph.planted import planted

TOKENS = torch.arange(120, dtype=torch.int32)[:, None].expand(120, 4)


def _graph(method: str = "adagae", **arguments: int) -> EntityGraph:
    graph = EntityGraph(method, rounds=2, steps=5, kept=6, **arguments)
    graph.set_entities(TOKENS, "abc123")
    return graph


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(3, 2)
        self.graph = EntityGraph(kept=6)


def _equal(one: EntityGraph, other: EntityGraph) -> bool:
    first, second = one.state_tensors(), other.state_tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["adagae", "cosine"])
def test_a_graph_is_built_from_features(method: str) -> None:
    graph = _graph(method)
    assert (graph.num_nodes, graph.is_built) == (120, False)
    assert (graph.neighbours.index_NK == NONE).all()
    features_ND, cluster_N = planted(120, 6)
    graph.rebuild(features_ND, interval=1)
    assert graph.is_built
    assert graph.interval == 1
    index_NK, score_NK = graph.neighbours
    assert index_NK.shape == score_NK.shape == (120, 6)
    assert (index_NK.dtype, score_NK.dtype) == (torch.int64, torch.float32)
    assert (score_NK.diff(dim=1) <= 0).all()
    assert (cluster_N[index_NK[:, 0]] == cluster_N).float().mean() > 0.95


@pytest.mark.parametrize("method", ["adagae", "cosine"])
def test_a_restored_graph_goes_on_like_the_uninterrupted_one(method: str, tmp_path: Path) -> None:
    features_ND, later_ND = planted(120, 6)[0], planted(120, 12)[0]
    graph = _graph(method)
    graph.rebuild(features_ND, 1)
    save_file(graph.state_dict(), tmp_path / "state.safetensors")
    restored = EntityGraph(method, rounds=2, steps=5, kept=6)
    restored.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert _equal(graph, restored)
    assert restored.table_hash == "abc123"
    restored.set_entities(TOKENS, "abc123")  # what a resumed run does; nothing is lost
    assert restored.is_built
    for one in (graph, restored):
        one.rebuild(later_ND, 2)
    assert _equal(graph, restored)


def test_adagae_starts_from_its_last_encoder_and_every_interval_draws_its_own() -> None:
    features_ND = planted(120, 6)[0]
    once, twice, other = _graph(), _graph(), _graph()
    once.rebuild(features_ND, 2)
    twice.rebuild(features_ND, 1)
    first = twice.state_tensors()["hidden_DH"].clone()
    twice.rebuild(features_ND, 2)
    other.rebuild(features_ND, 1)
    assert torch.equal(other.state_tensors()["hidden_DH"], first)
    assert not torch.equal(once.state_tensors()["hidden_DH"], first)  # another interval, another start
    distance = (twice.state_tensors()["hidden_DH"] - first).norm()
    assert distance < 0.2 * (once.state_tensors()["hidden_DH"] - first).norm()


def test_it_is_part_of_a_models_state_but_neither_weight_nor_buffer() -> None:
    model, other = Model(), Model()
    model.graph.set_entities(TOKENS, "abc123")
    model.graph.rebuild(planted(120, 6)[0], 3)
    assert [name for name, _ in model.named_parameters()] == ["words.weight"]
    assert not list(model.buffers())  # DDP sends buffers before every step
    assert not other.load_state_dict(model.state_dict()).missing_keys
    assert _equal(model.graph, other.graph)
    assert model.half().graph.neighbours.score_NK.dtype == torch.float32
    assert model.to("meta").graph.tokens_NL.device.type == "meta"


def test_weights_without_a_graph_leave_it_as_it_is() -> None:
    model = Model()
    model.graph.set_entities(TOKENS, "abc123")
    model.load_state_dict({"words.weight": torch.ones(3, 2)})
    assert model.graph.num_nodes == 120


def test_another_table_is_refused_by_name_until_it_is_forgotten() -> None:
    graph, other = _graph(), EntityGraph(kept=6)
    graph.rebuild(planted(120, 6)[0], 1)
    with pytest.raises(ModelError, match=r"belongs to entity table abc123, not to fff.*forget"):
        graph.set_entities(TOKENS, "fff")
    other.set_entities(TOKENS[:20], "fff")
    with pytest.raises(ModelError, match=r"table fff, not to abc123"):
        other.load_state_dict(graph.state_dict())
    assert other.num_nodes == 20
    graph.forget()
    assert not graph.is_built
    graph.set_entities(TOKENS[:20], "fff")
    assert graph.num_nodes == 20
    with pytest.raises(ModelError, match="needs a hash"):
        EntityGraph().set_entities(TOKENS, "")


@pytest.mark.parametrize("method", ["adagae", "cosine"])
@pytest.mark.parametrize("num", [0, 1, 2, 3, 4, 10])
def test_few_nodes(method: str, num: int) -> None:
    graph = EntityGraph(method, rounds=2, steps=3, kept=6)
    graph.set_entities(TOKENS[:num], "abc123")
    graph.rebuild(planted(12, 3)[0][:num], 0)
    assert graph.is_built
    assert graph.neighbours.index_NK.shape == (num, 6)
    assert (graph.neighbours.index_NK < num).all()
    assert all(torch.isfinite(tensor).all() for tensor in graph.state_tensors().values())


@pytest.mark.parametrize("method", ["adagae", "cosine"])
@pytest.mark.parametrize("exact_below", [5000, 20])
def test_identical_rows_and_zero_vectors_are_no_nan(method: str, exact_below: int) -> None:
    features_ND = planted(120, 6)[0]
    features_ND[20:60] = features_ND[20]
    features_ND[100:] = 0
    graph = _graph(method, exact_below=exact_below)
    graph.rebuild(features_ND, 0)
    assert all(torch.isfinite(tensor).all() for tensor in graph.state_tensors().values())
    if method == "cosine":
        assert (graph.neighbours.score_NK[20:60, 0] > 0.85).all()
    else:
        assert (graph.neighbours.index_NK[100:] == NONE).all()
    graph.rebuild(torch.ones(120, 64), 1)  # a collapsed model
    assert all(torch.isfinite(tensor).all() for tensor in graph.state_tensors().values())


def test_bad_arguments_and_features_are_named() -> None:
    with pytest.raises(ModelError, match="'knn' is unknown; known: adagae, cosine"):
        EntityGraph("knn")
    with pytest.raises(ModelError, match="rounds=0: should be at least 1"):
        EntityGraph(rounds=0)
    graph = _graph()
    with pytest.raises(ModelError, match=r"120 nodes; got features \(7, 4\)"):
        graph.rebuild(torch.ones(7, 4), 0)
    features_ND = planted(120, 6)[0]
    features_ND[9, 3] = torch.inf
    with pytest.raises(ModelError, match="entity 9 holds nan or inf"):
        graph.rebuild(features_ND, 0)
