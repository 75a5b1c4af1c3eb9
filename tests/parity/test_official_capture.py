"""CAPTURE against what the authors' code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import CAPTURE
from lightning_modules.layers.regions import Regions
from tests.parity.official import (
    CONFIG,
    CROSS_CONFIG,
    FILES,
    FOLDER,
    NO_FILES,
    assert_equal,
    read,
    zeros_at_full_size,
)


@pytest.mark.skipif(not FILES, reason=NO_FILES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_equal_the_authors(path: Path) -> None:
    official = read(path)
    if official.model != "capture":
        pytest.skip(f"holds model {official.model!r}, this test is CAPTURE's")
    model = CAPTURE.from_official(official.weights, official.config, official.cross_config)
    inputs = official.inputs
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
    assert_equal(vectors | losses, official)
    assert (vectors | losses).keys() == official.outputs.keys()


@pytest.mark.skipif(not (FOLDER / "capture_state_dict.json").exists(), reason="capture_state_dict.json is not at hand")
def test_full_size_names_and_shapes_load() -> None:
    model = CAPTURE.from_official(zeros_at_full_size("capture_state_dict.json"), CONFIG, CROSS_CONFIG)
    published = CAPTURE()
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }
