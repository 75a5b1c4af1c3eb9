"""DDP equals one process on the whole batch: in loss and in gradient, for every objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_modules import UNITER, RetrievalModule, ViLBERT
from lightning_modules.distributed import all_sum, rank, world_size
from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import total_loss
from tests.distributed.gloo import run_on_ranks
from tests.lightning_modules.tiny_models import (
    tiny,
    tiny_capture,
    tiny_clip,
    tiny_imageonly,
    tiny_lxmert,
    tiny_textonly,
)

BATCH = 12  # divides by 1, 2 and 3
MODELS: dict[str, Callable[[], RetrievalModule]] = {
    "regions": lambda: tiny_capture(visual_input="regions", dropout=0.0),
    "grid": lambda: tiny_capture(visual_input="grid", dropout=0.0),
    "clip": lambda: tiny_clip(objectives=["infonce", "sigmoid"]),
    "lxmert": lambda: tiny_lxmert(dropout=0.0),
    "uniter": lambda: tiny(
        UNITER,
        objectives=["mlm", "mrm", "mrc", "mrc_kl", "itm", "wra", "clr"],
        matching_candidates=2,
        dropout=0.0,
    ),
    "vilbert": lambda: tiny(ViLBERT, objectives=["mlm", "mrm", "mrc_kl", "itm", "clr"], dropout=0.0),
    "views of regions": lambda: tiny_imageonly(visual_input="regions", dropout=0.0),
    "views of pictures": lambda: tiny_imageonly(visual_input="grid", dropout=0.0),
    # Its dropout cannot be 0 but is off in eval mode: both views of a caption are the same then.
    "text only": lambda: tiny_textonly().eval(),
}


def _losses_and_gradients() -> dict[str, torch.Tensor]:
    """Of every model (one process group for all: starting one costs seconds)."""
    return {f"{model}/{name}": value for model in MODELS for name, value in _of_model(model).items()}


def _of_model(name: str) -> dict[str, torch.Tensor]:
    """Each loss averaged over ranks, and the gradients as DDP would average them."""
    torch.manual_seed(0)
    model = MODELS[name]()
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
    losses = {
        "regions": ("clr", "mlm", "mrm"),
        "grid": ("clr", "mlm", "mrm"),
        "clip": ("infonce", "sigmoid"),
        "lxmert": ("mlm", "mrm", "mrc", "itm", "clr"),
        "uniter": ("mlm", "mrm", "mrc", "mrc_kl", "itm", "clr"),
        "vilbert": ("mlm", "mrm", "mrc_kl", "itm", "clr"),
    }
    losses |= {model: ("view",) for model in ("views of regions", "views of pictures", "text only")}
    assert all(expected[f"{model}/loss_{name}"] > 0 for model, names in losses.items() for name in names)
    assert all(expected[f"clip/grad/{name}.log_scale"] != 0 for name in losses["clip"])
    for found in run_on_ranks(world, tmp_path, _losses_and_gradients):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
