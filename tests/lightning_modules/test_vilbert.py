"""ViLBERT: its text tower is a BERT, connections stand where the paper puts them, objectives read what they should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lightning_modules import ModelError, ViLBERT
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.regions import with_global
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny


@torch.no_grad()
def test_text_alone_is_the_bert_it_started_from(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    bert = BertForPreTraining(config).eval()
    bert.save_pretrained(tmp_path)
    model = tiny(ViLBERT, text_layers=3, cross_layers=2, text_weights=str(tmp_path))
    model.setup("fit")
    model.eval()
    batch = example_batch(model.input_spec(), batch_size=5)
    real_BT = batch.token_mask_BT
    theirs = bert.bert(batch.tokens_BT, real_BT.long(), output_hidden_states=True).hidden_states
    x_BTD = model.network.text_embedding(batch.tokens_BT)
    for number, expected_BTD in enumerate(theirs):
        torch.testing.assert_close(x_BTD[real_BT], expected_BTD[real_BT], atol=3e-6, rtol=1e-5)
        if number < 3:
            x_BTD = model.network.text_layers[number](x_BTD, real_BT)
    _, text_BTD, _, _ = model.network.alone(batch.tokens_BT, real_BT, with_global(model.visual(batch)))
    torch.testing.assert_close(text_BTD[real_BT], theirs[-1][real_BT], atol=3e-6, rtol=1e-5)


@torch.no_grad()
def test_connections_stand_before_the_last_layers_of_each_stream() -> None:
    """Released base: text layers 0 to 5, then (connection, image layer, text layer) six times; here in small."""
    torch.manual_seed(0)
    model = tiny(ViLBERT, text_layers=3, image_layers=2, cross_layers=2, image_width=24, init_std=0.3).eval()
    network, batch = model.network, example_batch(model.input_spec())
    regions = with_global(model.visual(batch))
    text, image = network.text_embedding(batch.tokens_BT), network.region_embedding(*regions[:2])
    text = network.text_layers[0](text, batch.token_mask_BT)
    for number in range(2):
        image, text = network.connections[number](image, regions.mask_BR, text, batch.token_mask_BT)
        image = network.image_layers[number](image, regions.mask_BR)
        text = network.text_layers[1 + number](text, batch.token_mask_BT)
    found_text, found_image = network(batch.tokens_BT, batch.token_mask_BT, regions)
    torch.testing.assert_close(found_text, text)
    torch.testing.assert_close(found_image, image)
    pooled = F.relu(network.text_pooler(text[:, 0])) * F.relu(network.image_pooler(image[:, 0]))
    torch.testing.assert_close(model.embed(batch)["product_pooled"], pooled)


def test_words_and_regions_are_predicted_on_matched_pairs_only() -> None:
    """With every pair unmatched nothing is predicted; with matching left out, everything is."""
    model = tiny(ViLBERT, objectives=["mlm", "mrm", "mrc_kl", "itm"], mlm_prob=0.5, mrm_prob=0.5)
    batch = example_batch(model.input_spec(), batch_size=8)
    assert model.itm is not None
    losses = model.losses(batch, Draws(0, 1, "cpu"))
    assert all(losses[f"loss_{name}"] > 0 for name in ("mlm", "mrm", "mrc_kl", "itm"))
    exchange = model.itm.exchange

    def never_matched(*arguments: object) -> object:
        return exchange(*arguments)._replace(matched_B=torch.zeros(8, dtype=torch.bool))  # type: ignore[arg-type]

    model.itm.exchange = never_matched  # type: ignore[method-assign, assignment]
    losses = model.losses(batch, Draws(0, 1, "cpu"))
    assert all(losses[f"loss_{name}"] == 0 for name in ("mlm", "mrm", "mrc_kl"))
    assert losses["loss_itm"] > 0


@torch.no_grad()
def test_the_contrast_reads_streams_that_have_not_met() -> None:
    """Another caption leaves the image's stream as it is, and the fused product not."""
    torch.manual_seed(0)
    model = tiny(ViLBERT, objectives=["clr", "itm"], init_std=0.3).eval()
    batch = example_batch(model.input_spec(), batch_size=4)
    other = batch._replace(tokens_BT=batch.tokens_BT.roll(1, 0), token_mask_BT=batch.token_mask_BT.roll(1, 0))
    before, after = model.embed(batch), model.embed(other)
    torch.testing.assert_close(before["image_stream"], after["image_stream"])
    assert not torch.allclose(before["product_pooled"], after["product_pooled"])
    torch.testing.assert_close(before["text_stream"].roll(1, 0), after["text_stream"])


def test_a_backbone_is_run_once_for_whatever_reads_whole_pictures() -> None:
    """Hidden cells are other pixels and need a pass of their own; all else shares one, and so does an embedding."""
    torch.manual_seed(0)
    model = tiny(ViLBERT, visual_input="grid", objectives=["mlm", "mrm", "itm", "clr"], dropout=0.0)
    batch = example_batch(model.input_spec(), batch_size=4)
    passes: list[int] = []
    model.visual.backbone.register_forward_hook(lambda *_: passes.append(1))
    with_contrast = model.losses(batch, Draws(0, 1, "cpu"))
    assert len(passes) == 2
    model.embed(batch)
    assert len(passes) == 3
    model.clr = None
    without = model.losses(batch, Draws(0, 1, "cpu"))
    assert len(passes) == 6  # hidden, the target, and candidates of a hard negative
    for name, value in without.items():  # whether the contrast's pass is at hand changes nothing
        torch.testing.assert_close(with_contrast[name], value)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ModelError, match="do without"):
        tiny(ViLBERT, visual_input="grid")
    model = tiny(ViLBERT, objectives=["mlm"])
    batch = example_batch(model.input_spec())
    with pytest.raises(ModelError, match="no matching head"):
        model.match(batch, batch)
