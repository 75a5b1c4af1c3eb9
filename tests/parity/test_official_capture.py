"""CAPTURE against what the authors' code computes, on random weights in their names (REFERENCE §6)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from lightning_modules import CAPTURE
from lightning_modules.layers.regions import Regions

FOLDER = Path(os.environ.get("PARITY_DATA", Path(__file__).parents[3] / "shared" / "reference"))
FILES = sorted(FOLDER.glob("*.safetensors"))


def _read(path: Path) -> tuple[dict[str, str], dict[str, dict[str, torch.Tensor]]]:
    with safe_open(path, "pt") as file:
        groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}}
        for key in file.keys():  # noqa: SIM118  (not a dict)
            group, name = key.split("/", 1)
            groups[group][name] = file.get_tensor(key)
        return file.metadata(), groups


@pytest.mark.skipif(not FILES, reason=f"no *.safetensors in {FOLDER}; set PARITY_DATA to the folder that holds them")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_equal_the_authors(path: Path) -> None:
    metadata, data = _read(path)
    if metadata["model"] != "capture":
        pytest.skip(f"holds model {metadata['model']!r}, this test is CAPTURE's")
    model = CAPTURE.from_official(data["weights"], json.loads(metadata["config"]), json.loads(metadata["cross_config"]))
    inputs, expected = data["inputs"], data["outputs"]
    token_mask, region_mask = inputs["token_mask"].bool(), inputs["region_mask"].bool()
    with torch.no_grad():
        streams, fused = model.network(
            inputs["input_ids"], token_mask, Regions(inputs["regions"], inputs["boxes"], region_mask)
        )
        losses = {
            "loss_mlm": model.mlm(fused.text_BTD, inputs["mlm_labels"], model.network.text_embedding.word.weight),
            "loss_mrm": model.mrm(
                fused.image_BRD[:, 1:], inputs["mrm_targets"], (inputs["mrm_labels"] == 1) & region_mask[:, 1:]
            ),
            "loss_clr": model.clr(streams.image.pooled_BD, streams.text.pooled_BD),
        }
    vectors = {
        "pooled_t": fused.text_BTD[:, 0],
        "pooled_v": fused.image_BRD[:, 0],
        "stream_pooled_t": streams.text.pooled_BD,
        "stream_pooled_v": streams.image.pooled_BD,
    }
    for name, value in vectors.items():
        torch.testing.assert_close(value, expected[name], atol=3e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], atol=5e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.skipif(not (FOLDER / "capture_state_dict.json").exists(), reason="capture_state_dict.json is not at hand")
def test_full_size_names_and_shapes_load() -> None:
    shapes = json.loads((FOLDER / "capture_state_dict.json").read_text())
    config = {
        "intermediate_size": 3072,
        "v_intermediate_size": 1024,
        "bi_hidden_size": 512,
        "num_attention_heads": 12,
        "v_num_attention_heads": 8,
        "bi_num_attention_heads": 8,
    }
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    model = CAPTURE.from_official(state, config, {"num_attention_heads": 8})
    published = CAPTURE()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }
