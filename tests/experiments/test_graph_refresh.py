"""The graph's callback in the engine: for models with a graph, with its arguments, and no word of it for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import compose
from experiments.engine import build
from experiments.runs import RunFolder, config_hash
from lightning_modules import CAPTURE
from lightning_modules.callbacks.graph_refresh import GraphRefresh
from lightning_modules.entity_graph.graph import EntityGraph
from tests.experiments.conftest import SMALL


def _callbacks(shards: Path, root: Path, *words: str) -> list[GraphRefresh]:
    composed = compose("capture", str(shards), "tiny", 0, [*SMALL, "--trainer.enable_progress_bar=false", *words])
    trainer = build(composed, RunFolder(root)).trainer
    return [callback for callback in trainer.callbacks if isinstance(callback, GraphRefresh)]


def test_it_is_there_for_models_with_a_graph(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _callbacks(shards, tmp_path)
    monkeypatch.setattr(CAPTURE, "graph", EntityGraph(), raising=False)
    (found,) = _callbacks(shards, tmp_path, "--graph_refresh.first_interval=0", "--graph_refresh.every=2")
    assert (found.first_interval, found.every) == (0, 2)


def test_its_arguments_are_part_of_a_runs_id_only_where_they_are_given(shards: Path) -> None:
    def of(*words: str) -> str:
        return config_hash(compose("capture", str(shards), "tiny", 0, words))

    assert of() == of("--graph_refresh.every=1") != of("--graph_refresh.every=2")
