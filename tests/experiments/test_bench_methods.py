"""The bench of methods runs each model in a process of its own; a model with several tasks is timed by their shares."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import lightning_modules
from experiments import bench_methods, bench_step
from experiments.bench_entities import all_ranked
from experiments.bench_step import Variant
from lightning_modules import RetrievalModule
from lightning_modules.callbacks.graph_refresh import graph_of
from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from tests.experiments.test_bench_step import SMALL
from tests.lightning_modules.tiny_models import CLIP_CONFIG, tiny_clip, tiny_ege


def test_tasks_run_in_turn_and_count_by_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, str]] = []
    clock = [0.0]
    monkeypatch.setattr(bench_step.time, "perf_counter", lambda: clock[0])

    def step(number: int, task: str) -> None:
        done.append((number, task))
        clock[0] += {"short": 1.0, "long": 5.0}[task]

    seconds = bench_step._seconds_of_tasks(step, {"short": 3.0, "long": 1.0}, range(4, 6), torch.device("cpu"))
    assert done == [(4, "short"), (5, "short"), (4, "long"), (5, "long")]
    assert seconds == pytest.approx((3 * 1 + 5) / 4)


def test_every_exported_method_is_measured_at_one_batch_size() -> None:
    variants = bench_methods.published()
    exported = [getattr(lightning_modules, name) for name in lightning_modules.__all__]
    models = {kind.__name__ for kind in exported if issubclass(kind, RetrievalModule)} - {"RetrievalModule"}
    assert {variant.model for variant in variants} == models
    assert variants[0].name == "CAPTURE"
    assert len({(variant.batch_size, variant.dtype) for variant in variants}) == 1
    arguments = {variant.model: dict(variant.arguments) for variant in variants}
    for model in models:  # nothing is downloaded: what a constructor would fetch by default is turned off
        for name, parameter in inspect.signature(getattr(lightning_modules, model)).parameters.items():
            if name == "pretrained" or name.endswith("_weights"):
                assert arguments[model].get(name, parameter.default) is None


@pytest.mark.slow
def test_methods_are_measured_side_by_side() -> None:
    clip: dict[str, Any] = {"architecture": CLIP_CONFIG, "pretrained": None}
    small = [
        Variant("CAPTURE", batch_size=4, arguments=tuple(SMALL.items())),
        Variant("CLIP", batch_size=4, model="CLIP", arguments=tuple(clip.items())),
    ]
    rows = bench_methods.compare_methods(small, rounds=2)
    assert [row["name"] for row in rows] == ["CAPTURE", "CLIP"]
    assert rows[0]["ratio"] == 1.0
    for row in rows:
        assert row["samples_per_s"] == pytest.approx(4 / row["step_s"])
        assert row["peak_mb"] > 100
    expected = sum(parameter.numel() for parameter in tiny_clip().parameters())
    assert rows[1]["parameters_m"] == pytest.approx(expected / 1e6)


def test_the_graph_that_is_timed_leaves_the_ranking_losses_all_they_can_do() -> None:
    without, with_graph = bench_methods.with_and_without_graph()
    assert dict(without.arguments)["objectives"] == ["mlm", "mlm_entity", "mrm", "clr"]
    assert (without.batch_size, without.dtype) == (with_graph.batch_size, with_graph.dtype)
    model = tiny_ege()
    graph = graph_of(model)
    assert graph is not None
    graph.forget()
    batch = all_ranked(graph, example_batch(model.input_spec(), batch_size=6), 50)
    losses = model.losses(batch, Draws(0, 0, torch.device("cpu")))
    for name in ("node", "subgraph"):
        assert losses[f"_{name}_share"] == 1.0
        assert losses[f"loss_{name}"] > 0
