"""CLIP computes what open_clip computes, takes over its checkpoints, and says what is wrong with a wrong one."""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from lightning_modules import CLIP, ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.optim import parameter_groups
from tests.lightning_modules.tiny_models import CLIP_CONFIG, tiny_clip

RESNET = CLIP_CONFIG | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}}
SIGLIP: dict[str, Any] = CLIP_CONFIG | {
    "custom_text": True,
    "init_logit_bias": -10,
    "text_cfg": CLIP_CONFIG["text_cfg"] | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
}


def _reference(config: dict[str, Any]) -> Any:
    """open_clip's own model with random weights, batch-norm statistics included."""
    torch.manual_seed(1)
    config = deepcopy(config)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = kind(**config).eval()
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)  # open_clip starts some at 0
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(_reference(CLIP_CONFIG).state_dict(), tmp_path / "clip.pt")
    return tmp_path / "clip.pt"


@pytest.mark.parametrize("config", [CLIP_CONFIG, RESNET, SIGLIP], ids=["vit", "resnet", "siglip"])
def test_features_and_logits_equal_open_clip(config: dict[str, Any], tmp_path: Path) -> None:
    reference = _reference(config)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    objective = "sigmoid" if "init_logit_bias" in config else "infonce"
    model = tiny_clip(architecture=config, pretrained=str(tmp_path / "weights.pt"), objectives=[objective])
    batch = example_batch(model.input_spec(), batch_size=5)
    assert batch.images_B3HW is not None
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pixels = (batch.images_B3HW / 255 - mean) / std
    found = model.encode(batch)
    with torch.no_grad():
        image, text = (reference.encode_image(pixels, normalize=True), reference.encode_text(batch.tokens_BT, True))
        logits = reference.get_logits(pixels, batch.tokens_BT)[0]
        torch.testing.assert_close(found["image"], image, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(found["text"], text, atol=2e-6, rtol=1e-5)
        head: Any = getattr(model, objective)
        ours = head.log_scale.exp() * found["image"] @ found["text"].T + getattr(head, "bias", 0.0)
        torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-5)
    average = nn.functional.normalize(image + text, dim=-1)
    torch.testing.assert_close(found["mean"], average, atol=2e-6, rtol=1e-5)
    cosines = (found["concat"] @ found["concat"].T, (image @ image.T + text @ text.T) / 2)
    torch.testing.assert_close(*cosines, atol=2e-6, rtol=1e-5)
    weighted = (found["concat_4to1"] @ found["concat_4to1"].T, (image @ image.T + 4 * text @ text.T) / 5)
    torch.testing.assert_close(*weighted, atol=2e-6, rtol=1e-5)


def test_another_tokenizer_is_read_off_at_its_closing_token() -> None:
    """[SEP] of the shards is no largest id: where it stands the text is read off, and nothing behind it matters."""
    torch.manual_seed(0)
    model = tiny_clip(tokenizer="shards", vocab_size=90, end_token_id=3)
    spec = model.input_spec()
    assert (spec.tokenizer, spec.vocab_size, spec.end_token_id) == ("shards", 90, 3)
    tokens = torch.tensor([[2, 50, 60, 3, 0, 0, 0, 0, 0, 0, 0, 0]])
    network: Any = model.network
    hidden = network.token_embedding(tokens) + network.positional_embedding
    hidden = network.ln_final(network.transformer(hidden, attn_mask=network.attn_mask))
    torch.testing.assert_close(network.encode_text(tokens), hidden[:, 3] @ network.text_projection)
    assert tiny_clip().input_spec().end_token_id == 119  # the largest, as open_clip's default pooling wants it


def test_weights_are_read_at_first_use_and_not_where_a_saved_model_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny_clip(pretrained=str(checkpoint))
    batch = example_batch(model.input_spec())
    expected = model.encode(batch)
    model.save_pretrained(tmp_path / "model")
    checkpoint.unlink()
    again = CLIP.from_pretrained(tmp_path / "model")
    assert torch.equal(again.encode(batch)["product"], expected["product"])
    restored = tiny_clip(pretrained=str(checkpoint))
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored.encode(batch)["product"], expected["product"])
    with pytest.raises(ModelError, match="no such file"):
        tiny_clip(pretrained=str(checkpoint)).encode(batch)


def test_an_objective_goes_on_with_the_scale_of_weights_trained_by_it(checkpoint: Path, tmp_path: Path) -> None:
    both = tiny_clip(pretrained=str(checkpoint), objectives=["infonce", "sigmoid"])
    both.setup("fit")
    assert both.infonce is not None
    assert both.sigmoid is not None
    assert both.infonce.log_scale.item() == 3.0
    assert (both.sigmoid.log_scale.exp().item(), both.sigmoid.bias.item()) == (pytest.approx(10), -10)
    reference = _reference(SIGLIP)
    reference.logit_bias.data.fill_(-12.0)
    torch.save(reference.state_dict(), tmp_path / "siglip.pt")
    both = tiny_clip(architecture=SIGLIP, pretrained=str(tmp_path / "siglip.pt"), objectives=["infonce", "sigmoid"])
    both.setup("fit")
    assert both.infonce is not None
    assert both.sigmoid is not None
    assert both.infonce.log_scale.exp().item() == pytest.approx(1 / 0.07)
    assert (both.sigmoid.log_scale.item(), both.sigmoid.bias.item()) == (3.0, -12.0)


def test_loaded_towers_learn_at_their_own_rate_and_the_scale_is_not_decayed(checkpoint: Path) -> None:
    model = tiny_clip(pretrained=str(checkpoint), lr=1e-3)
    groups = parameter_groups(model, 1e-3, 0.2, model.pretrained_prefixes, 0.1)
    of = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = of[id(parameter)]
        assert group["lr"] == pytest.approx(1e-4 if name.startswith("network.") else 1e-3), name
        assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0.0), name


def test_a_released_resnet_keeps_its_statistics(tmp_path: Path) -> None:
    torch.save(_reference(RESNET).state_dict(), tmp_path / "rn.pt")
    model = tiny_clip(architecture=RESNET, pretrained=str(tmp_path / "rn.pt"))
    model.setup("fit")
    model.train()
    network: Any = model.network
    before = network.visual.bn1.running_mean.clone()
    batch = example_batch(model.input_spec(), batch_size=6)
    together, alone = model.towers(batch)[0], model.towers(batch.rows(slice(2, 3)))[0]
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=1e-4)
    assert torch.equal(network.visual.bn1.running_mean, before)


def test_sizes_can_be_changed_and_positions_follow(checkpoint: Path) -> None:
    model = tiny_clip(pretrained=str(checkpoint), image_size_px=48, text_length=20)
    spec = model.input_spec()
    assert (spec.image_size_px, spec.text_length) == (48, 20)
    assert model.encode(example_batch(spec))["product"].isfinite().all()


def test_a_json_file_is_an_architecture(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"model_cfg": CLIP_CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "resize_mode": "squash"}})
    )
    model = tiny_clip(architecture=str(file))
    assert model.pixel_mean.flatten().tolist() == [127.5] * 3
    assert (model.input_spec().resize, model.input_spec().interpolation) == ("squash", "bicubic")
    assert open_clip.get_model_config("mine") is None  # open_clip's own list stays as it was
    model.save_pretrained(tmp_path / "model")
    file.unlink()
    assert CLIP.from_pretrained(tmp_path / "model").input_spec() == model.input_spec()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_our_own_sizes_build(name: str) -> None:
    with torch.device("meta"):
        model = CLIP(name, None, vocab_size=300, end_token_id=3)
    assert model.input_spec().vocab_size == 300


def test_what_goes_with_a_released_model_is_open_clips() -> None:
    with torch.device("meta"):  # no memory, no weights
        clip, siglip = CLIP(), CLIP("ViT-B-16-SigLIP", "webli", objectives=["sigmoid"])
        local = CLIP("ViT-B-16-SigLIP", "some/file.safetensors")
    spec = clip.input_spec()
    assert spec[:3] == ("open_clip:ViT-B-32", 77, "grid")
    assert (spec.image_size_px, spec.resize, spec.interpolation) == (224, "shortest", "bicubic")
    assert any(type(module).__name__ == "QuickGELU" for module in clip.modules())  # as the weights of the tag want it
    for model in (siglip, local):
        assert model.source.preprocessing["mean"] == (0.5, 0.5, 0.5)
        assert model.input_spec().resize == "squash"
        assert model.input_spec().text_length == 64


def test_weights_that_cannot_be_fetched_say_where_to_put_a_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(tag: dict[str, Any]) -> str:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", fails)
    with torch.device("meta"):
        model = CLIP()
    with pytest.raises(ModelError, match=r"'openai'.*no route to host.*--model.pretrained=path/to/file") as caught:
        model.load_weights()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("path/to/file --model.architecture=ViT-B-32-quickgelu")  # as the tag would know
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"architecture": "ViT-B32", "pretrained": None}, ["'ViT-B32'", "ViT-B-32"]),
        ({"architecture": "ViT-B-32", "pretrained": "laion2b"}, ["'laion2b'", "laion2b_s34b_b79k"]),
        ({"architecture": "tiny", "pretrained": "openai"}, ["'openai'", "no weights"]),
        ({"architecture": "coca_ViT-B-32", "pretrained": None}, ["CoCa"]),
        ({"architecture": "no/such.json"}, ["no/such.json", "no such file"]),
        ({"architecture": {"embed_dim": 3}}, ["text_cfg, vision_cfg"]),
        ({"architecture": CLIP_CONFIG | {"embed_dmi": 3}}, ["embed_dmi"]),
        (
            {"architecture": CLIP_CONFIG | {"text_cfg": {"hf_tokenizer_name": "some/bert"}}},
            ["some/bert", "model.tokenizer"],
        ),
        ({"objectives": ["infonec"]}, ["'infonec'", "infonce, sigmoid"]),
        ({"objectives": []}, ["at least one"]),
        ({"retrieval_feature": "product_both"}, ["'product_both'", "concat"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        tiny_clip(**arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["other sizes", "other names", "nothing"])
def test_a_checkpoint_of_another_architecture_is_refused_again_and_again(content: str, tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    if content == "other sizes":
        vision = CLIP_CONFIG["vision_cfg"] | {"width": 64}
        torch.save(_reference(CLIP_CONFIG | {"vision_cfg": vision}).state_dict(), file)
    elif content == "other names":
        torch.save({"fc.weight": torch.zeros(2, 2)}, file)
    else:
        file.write_bytes(b"<html>404</html>")
    model = tiny_clip(pretrained=str(file))
    for _ in range(2):  # what was read half is never used
        with pytest.raises(ModelError, match=r"other.pt: not a checkpoint of architecture") as caught:
            model.encode(example_batch(model.input_spec()))
        assert "\n" not in str(caught.value)


def test_a_batch_without_pictures_is_refused() -> None:
    model = tiny_clip()
    with pytest.raises(ModelError, match="needs pictures"):
        model.encode(example_batch(model.input_spec())._replace(images_B3HW=None))
