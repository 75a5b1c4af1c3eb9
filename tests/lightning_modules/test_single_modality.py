"""ImageOnly and TextOnly: what their views are, that training brings them together, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate, normalize

from datamodules.batch import ProductBatch
from lightning_modules import ModelError, RetrievalModule
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.views import Views
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny_capture, tiny_imageonly, tiny_textonly

MODELS: dict[str, Callable[..., RetrievalModule]] = {
    "pictures": lambda **more: tiny_imageonly(
        visual_input="grid", image_layers=0, image_pooling="mean", region_norm=False, init_std=0.1, **more
    ),
    "regions": tiny_imageonly,
    "captions": tiny_textonly,
}


def _batch(model: RetrievalModule, rows: int = 8) -> ProductBatch:
    """Pictures of a few colours instead of noise, which no crop would leave recognisable."""
    batch = example_batch(model.input_spec(), batch_size=rows)
    if batch.images_B3HW is None:
        return batch
    colours = torch.rand(rows, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * 255
    return batch._replace(images_B3HW=interpolate(colours, batch.images_B3HW.shape[-1], mode="nearest").byte())


def _loss(model: RetrievalModule, batch: ProductBatch, step: int) -> torch.Tensor:
    return model.losses(batch, Draws(0, step, model.device))["loss_view"]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_brings_views_together(name: str) -> None:
    """On unseen views of the pictures or captions it was trained on."""
    torch.manual_seed(0)
    model = MODELS[name](dropout=0.1).train()
    batch = _batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def unseen() -> float:
        with torch.no_grad():
            return float(torch.stack([_loss(model, batch, step) for step in range(1000, 1005)]).mean())

    before = unseen()
    for step in range(120):
        optimizer.zero_grad()
        _loss(model, batch, step).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert before > 0.5
    assert unseen() < 0.8 * before  # other orders of summing have left 0.03 to 0.7 of it


def test_the_loss_of_pictures_is_simclrs_on_the_two_views() -> None:
    torch.manual_seed(0)
    model = tiny_imageonly(visual_input="grid", dropout=0.0, temperature=0.2)
    batch, views = _batch(model, 5), Views()
    draws = Draws(0, 7, "cpu")
    vectors = [model.stream(views.of(batch, draws)).pooled_BD for _ in range(2)]
    z = normalize(torch.stack(vectors, 1).flatten(0, 1), dim=-1)  # SimCLR's order: the views of a picture side by side
    rows = []
    for i in range(10):
        others = [k for k in range(10) if k != i]
        partner = others.index(i + 1 if i % 2 == 0 else i - 1)
        rows.append(cross_entropy((z[others] @ z[i] / 0.2)[None], torch.tensor([partner])))
    torch.testing.assert_close(_loss(model, batch, 7), torch.stack(rows).mean(), atol=1e-5, rtol=1e-5)


def test_views_of_a_caption_differ_by_dropout_alone() -> None:
    torch.manual_seed(0)
    model = tiny_textonly()
    batch, pooled = _batch(model), []
    model.network.register_forward_hook(lambda _, inputs, stream: pooled.append((inputs, stream.pooled_BD)))
    _loss(model.train(), batch, 0)
    _loss(model.eval(), batch, 0)
    (inputs, trained), (_, evaluated) = pooled
    for entered, original in zip(inputs, (batch.token_mask_BT, batch.tokens_BT), strict=True):
        assert all(torch.equal(half, original) for half in entered.chunk(2))
    first, second = trained.chunk(2)
    assert ((first - second).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(*evaluated.chunk(2))


@pytest.mark.parametrize("name", ["image", "text"])
def test_the_backbone_is_captures_stream(name: str) -> None:
    """The same weights give the same vectors as the stream of the fused model."""
    torch.manual_seed(0)
    fused = tiny_capture(visual_input="grid", text_pooling="attention", whitening_samples=4)
    alone: Any = tiny_imageonly(visual_input="grid", whitening_samples=4)
    if name == "text":
        alone = tiny_textonly(text_pooling="attention", whitening_samples=4)
    renamed = {"embedding": "region_embedding" if name == "image" else "text_embedding"}
    renamed |= {part: f"{name}_{part}" for part in ("layers", "pooling", "pooler")}
    theirs = fused.state_dict()
    state = {}
    for key in alone.state_dict():
        head, _, rest = key.partition(".")
        part, _, leaf = rest.partition(".")
        state[key] = theirs[f"network.{renamed[part]}.{leaf}" if head == "network" else key]
    alone.load_state_dict(state)
    batch = example_batch(fused.input_spec(), batch_size=5)
    expected, found = fused.encode(batch), alone.encode(batch)
    assert set(alone.candidate_features) == {f"{name}_stream", f"{name}_whitened", f"{name}_bag"}
    for feature in alone.candidate_features:
        torch.testing.assert_close(found[feature], expected[feature], atol=1e-6, rtol=0)
    wanted = {key for key in fused.unwhitened(batch) if key in alone.whitening}
    assert set(alone.unwhitened(batch)) == set(alone.whitening) == wanted


def test_whitening_is_learned_from_one_modality() -> None:
    for model in (tiny_imageonly(whitening_samples=24), tiny_textonly(whitening_samples=24)):
        batches = [example_batch(model.input_spec(), batch_size=12, seed=seed) for seed in range(2)]
        before = model.encode(batches[0])
        model.fit_whitening(batches)
        assert model.whitening_is_fitted
        after = model.encode(batches[0])
        moved = {name for name in model.candidate_features if not torch.allclose(before[name], after[name], atol=1e-3)}
        assert {name.partition("_")[2] for name in moved} == {"whitened", "bag"}


def test_views_of_pictures_never_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    model = tiny_imageonly(visual_input="grid").to("meta").train()
    loss = _loss(model, example_batch(model.input_spec(), model.device), 0)
    loss.backward()
    assert loss.device.type == "meta"


def test_the_text_stream_starts_from_a_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    sizes = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 40}
    bert = BertForPreTraining(BertConfig(num_hidden_layers=2, num_attention_heads=4, layer_norm_eps=1e-12, **sizes))
    bert.save_pretrained(tmp_path)
    model = tiny_textonly(text_weights=str(tmp_path), text_layers=2)
    model.setup("fit")
    model.eval()
    batch = _batch(model)
    with torch.no_grad():
        found = model.network(batch.token_mask_BT, batch.tokens_BT).states_BND
        expected = bert.eval().bert(batch.tokens_BT, attention_mask=batch.token_mask_BT.long()).last_hidden_state
    torch.testing.assert_close(found[batch.token_mask_BT], expected[batch.token_mask_BT], atol=2e-6, rtol=0)
    loaded = [name for name, _ in model.named_parameters() if name.startswith(model.pretrained_prefixes)]
    assert loaded
    assert {name.split(".")[1] for name in loaded} == {"embedding", "layers"}


@pytest.mark.parametrize(
    ("make", "changes", "words"),
    [
        (tiny_textonly, {"dropout": 0.0}, r"model\.dropout 0.0"),
        (tiny_textonly, {"dropout": 1.0}, r"model\.dropout 1.0"),
        (tiny_textonly, {"objectives": ["clr"]}, r"model\.objectives: 'clr' is unknown; known: view"),
        (tiny_textonly, {"temperature": 0.0}, r"model\.temperature 0.0"),
        (tiny_textonly, {"retrieval_feature": "image_stream"}, "known: auto, text_stream"),
        (tiny_imageonly, {"objectives": []}, "at least one objective"),
        (tiny_imageonly, {"temperature": -0.1}, r"model\.temperature -0.1"),
        (tiny_imageonly, {"smallest_crop": 0.0}, r"model\.smallest_crop 0.0"),
        (tiny_imageonly, {"jitter": 1.5}, r"model\.jitter 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[..., Any], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make(**changes)


def test_a_model_of_pictures_says_what_the_batch_lacks() -> None:
    captions = example_batch(tiny_textonly().input_spec())
    for kind, words in (("grid", "needs pictures"), ("regions", "needs region features")):
        with pytest.raises(ModelError, match=words):
            _loss(tiny_imageonly(visual_input=kind), captions, 0)
