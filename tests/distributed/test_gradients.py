"""DDP equals one process on the whole batch: in loss and in gradient, for every objective."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from lightning_modules import RetrievalModule
from lightning_modules.distributed import all_sum, rank, world_size
from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from lightning_modules.region_text_module import OF_REGION_CLASSES
from lightning_modules.retrieval_module import total_loss
from tests.distributed.gloo import run_on_ranks
from tests.lightning_modules.tiny_models import every_model, objectives_of, tiny

BATCH = 12  # divides by 1, 2 and 3
KINDS = {kind.__name__: kind for kind in every_model()}
# Each model on stored regions with all its objectives, and on pixels without those about a detector's classes.
CASES = [(name, "regions") for name in KINDS]
CASES += [(name, "grid") for name, kind in KINDS.items() if "visual_input" in inspect.signature(kind).parameters]


def _model(name: str, visual_input: str) -> RetrievalModule:
    kind = KINDS[name]
    objectives = list(objectives_of(kind))
    if visual_input == "grid":
        objectives = [objective for objective in objectives if objective not in OF_REGION_CLASSES]
    more = {"visual_input": visual_input} if (name, "grid") in CASES else {}
    return tiny(kind, objectives=objectives, **more).eval()  # without dropout, which every rank draws for itself


def _losses_and_gradients() -> dict[str, torch.Tensor]:
    """Of every model (one process group for all: starting one costs seconds)."""
    return {f"{'/'.join(case)}/{name}": value for case in CASES for name, value in _of_model(*case).items()}


def _of_model(name: str, visual_input: str) -> dict[str, torch.Tensor]:
    """Each loss averaged over ranks, and the gradients as DDP would average them."""
    torch.manual_seed(0)
    model = _model(name, visual_input)
    whole = example_batch(model.input_spec(), batch_size=BATCH)
    rows = slice(rank() * BATCH // world_size(), (rank() + 1) * BATCH // world_size())
    batch = whole.rows(rows)
    losses: dict[str, torch.Tensor] = {}
    for task in model.tasks:
        losses |= model.losses(batch, Draws(0, 3, model.device, task=task))
    total_loss(losses).backward()
    result = {name: all_sum(value.detach()) / world_size() for name, value in losses.items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        result[f"grad/{name}"] = all_sum(parameter.grad) / world_size()
    return result


@pytest.mark.parametrize("world", [2, 3])
def test_losses_and_gradients_equal_one_process(world: int, tmp_path: Path) -> None:
    expected = _losses_and_gradients()
    for name, visual_input in CASES:
        for objective in objectives_of(KINDS[name]):
            if visual_input == "regions" or objective not in OF_REGION_CLASSES:
                assert expected[f"{name}/{visual_input}/loss_{objective}"] != 0
    assert all(expected[f"CLIP/regions/grad/{name}.log_scale"] != 0 for name in objectives_of(KINDS["CLIP"]))
    for found in run_on_ranks(world, tmp_path, _losses_and_gradients):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
