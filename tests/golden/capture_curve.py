"""Makes the golden loss curve: 20 steps of a tiny CAPTURE on fixed pictures and captions.

python -m tests.golden.capture_curve      writes capture_curve.json anew: only after a deliberate change of numerics
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lightning_modules.example_batch import example_batch
from lightning_modules.objectives.draws import Draws
from lightning_modules.optim import adamw, linear_warmup_decay, parameter_groups
from tests.lightning_modules.tiny_models import tiny_capture

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
CONFIGURATIONS = {
    "regions": {"visual_input": "regions", "dropout": 0.0},
    "grid": {"visual_input": "grid", "dropout": 0.0, "text_pooling": "mean", "image_pooling": "mean", "init_std": 0.1},
}


def curves() -> dict[str, dict[str, list[float]]]:
    """Each loss at each step, by configuration. Two batches take turns, so the losses fall."""
    return {name: _curve(arguments) for name, arguments in CONFIGURATIONS.items()}


def _curve(arguments: dict) -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = tiny_capture(**arguments).train()
    batches = [example_batch(model.input_spec(), batch_size=8, seed=seed) for seed in (0, 1)]
    optimizer = adamw(parameter_groups(model, 2e-3, 0.01), (0.9, 0.999), 1e-6)
    schedule = linear_warmup_decay(optimizer, STEPS, 0.1)
    found: dict[str, list[float]] = {}
    for step in range(STEPS):
        losses = model.losses(batches[step % 2], Draws(0, step, model.device))
        optimizer.zero_grad()
        torch.stack([value for name, value in losses.items() if not name.startswith("_")]).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for name, value in losses.items():
            found.setdefault(name, []).append(round(float(value.detach()), 6))
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(curves(), indent=1) + "\n", encoding="utf-8")
