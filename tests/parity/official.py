"""Files of random weights in the authors' names, inputs, and what the authors' code computes of them (REFERENCE §6)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

FOLDER = Path(os.environ.get("PARITY_DATA", Path(__file__).parents[3] / "shared" / "reference"))
FILES = sorted(FOLDER.glob("*.safetensors"))
NO_FILES = f"no *.safetensors in {FOLDER}; set PARITY_DATA to the folder that holds them"
CONFIG = {  # head counts at full size, and the sizes of what a checkpoint may hold no layer of
    "intermediate_size": 3072,
    "v_intermediate_size": 1024,
    "bi_hidden_size": 512,
    "num_attention_heads": 12,
    "v_num_attention_heads": 8,
    "bi_num_attention_heads": 8,
}
CROSS_CONFIG = {"num_attention_heads": 8}


class Official(NamedTuple):
    """One file."""

    model: str
    config: dict
    cross_config: dict
    weights: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def read(path: Path) -> Official:
    with safe_open(path, "pt") as file:
        groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
        for key in file.keys():  # noqa: SIM118  (not a dict)
            group, name = key.split("/", 1)
            groups[group][name] = file.get_tensor(key)
        about = file.metadata()
    return Official(about["model"], json.loads(about["config"]), json.loads(about["cross_config"]), **groups)


def assert_equal(found: dict[str, torch.Tensor], official: Official) -> None:
    """3e-6 on vectors, 5e-6 on losses, absolute."""
    for name, value in found.items():
        tolerance = 5e-6 if name.startswith("loss_") else 3e-6
        expected = official.outputs[name]
        torch.testing.assert_close(value, expected, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def zeros_at_full_size(name: str) -> dict[str, torch.Tensor]:
    """A state dict of the shapes that a JSON file lists."""
    shapes = json.loads((FOLDER / name).read_text())
    return {name: torch.zeros(shape) for name, shape in shapes.items()}
