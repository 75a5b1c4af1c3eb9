"""EGE-CMP against what the authors' code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_modules import CAPTURE, EGECMP, ModelError
from lightning_modules.layers.regions import Regions
from lightning_modules.official_weights import translate
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

EGE_FILES = [path for path in FILES if path.stem.startswith("ege")]


@pytest.mark.skipif(not FILES, reason=NO_FILES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_equal_the_authors(path: Path) -> None:
    official = read(path)
    if official.model != "ege":
        pytest.skip(f"holds model {official.model!r}, this test is EGE-CMP's")
    model = EGECMP.from_official(official.weights, official.config, official.cross_config)
    inputs = official.inputs
    masks = {name: inputs[name].bool() for name in ("token_mask", "region_mask", "entity_token_mask")}
    regions = Regions(inputs["regions"], inputs["boxes"], masks["region_mask"])
    texts = (inputs["input_ids"], masks["token_mask"]), (inputs["entity_ids"], masks["entity_token_mask"])
    with torch.no_grad():
        streams, fused = model.network(*texts[0], regions, *texts[1])
        words = model.network.text_embedding.word.weight
        losses = {
            "loss_mlm": model.mlm(fused.text_BTD, inputs["mlm_labels"], words),
            "loss_entity_mlm": model.mlm_entity(fused.entity_BTD, inputs["entity_mlm_labels"], words),
            "loss_clr": model.contrast(streams),
        }
    vectors = {
        "pooled_t": fused.text_BTD[:, 0],
        "pooled_v": fused.image_BRD[:, 0],
        "pooled_entity": fused.entity_BTD[:, 0],
        "stream_pooled_t": streams.text.pooled_BD,
        "stream_pooled_v": streams.image.pooled_BD,
        "stream_pooled_entity": streams.entity.pooled_BD,
    }
    assert_equal(vectors | losses, official)
    assert (vectors | losses).keys() == official.outputs.keys()


@pytest.mark.skipif(not EGE_FILES, reason=NO_FILES)
def test_the_region_decoder_of_width_1_is_left_out_and_other_models_are_refused() -> None:
    official = read(EGE_FILES[0])
    ignored = translate(official.weights, entities=True)[1]
    assert {"cls.imagePredictions.decoder.weight", "cls.imagePredictions.decoder.bias"} <= set(ignored)
    model = EGECMP.from_official(official.weights, official.config, official.cross_config)
    assert model.mrm.decoder.weight.shape == (official.inputs["regions"].shape[-1], model.mrm.transform.out_features)
    assert not model.mrm.decoder.weight.any()
    assert torch.equal(model.mrm.back.weight, official.weights["cls.v_fc.weight"])
    with pytest.raises(ModelError, match=r"bert\.entity_fc\.dense\.\w+' belongs to no part"):
        CAPTURE.from_official(official.weights, official.config, official.cross_config)
    without = {name: value for name, value in official.weights.items() if not name.startswith("cls.pv_fc")}
    with pytest.raises(ModelError, match=r"missing key 'cls\.pv_fc\.weight' and 1 more"):
        EGECMP.from_official(without, official.config, official.cross_config)
    healthy = official.weights | {
        "cls.imagePredictions.decoder.weight": torch.ones_like(model.mrm.decoder.weight),
        "cls.imagePredictions.decoder.bias": torch.ones_like(model.mrm.decoder.bias),
    }
    assert EGECMP.from_official(healthy, official.config, official.cross_config).mrm.decoder.weight.all()


@pytest.mark.skipif(not (FOLDER / "ege_state_dict.json").exists(), reason="ege_state_dict.json is not at hand")
def test_full_size_names_and_shapes_load() -> None:
    model = EGECMP.from_official(zeros_at_full_size("ege_state_dict.json"), CONFIG, CROSS_CONFIG)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in EGECMP().state_dict().items()}
