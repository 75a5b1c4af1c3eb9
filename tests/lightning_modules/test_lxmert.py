"""LXMERT's network against transformers' and a transcription, its objectives against their definitions, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules.batch import ProductBatch
from lightning_modules import LXMERT, ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.regions import with_global
from lightning_modules.lxmert_network import CrossModalityLayer
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny_lxmert


def _attend_slow(layer: Any, asking_ND: Tensor, asked_MD: Tensor, heads: int) -> Tensor:
    """LayerNorm(x + W_o · softmax(q·k / √d) v), one head and one position at a time."""
    width = asking_ND.shape[-1]
    d = width // heads
    weight, bias = layer.query_key_value.weight, layer.query_key_value.bias
    query, _, _ = (asking_ND @ weight.T + bias).split(width, -1)
    _, key, value = (asked_MD @ weight.T + bias).split(width, -1)
    rows = []
    for n in range(len(asking_ND)):
        mixed = []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            scores = [math.exp(float(query[n, part] @ key[m, part]) / math.sqrt(d)) for m in range(len(asked_MD))]
            mixed.append(sum(s / sum(scores) * value[m, part] for m, s in enumerate(scores)))
        rows.append(layer.norm(asking_ND[n] + layer.out(torch.cat(mixed))))
    return torch.stack(rows)


@torch.no_grad()
def test_a_cross_layer_equals_its_slow_transcription_and_both_directions_share_their_weights() -> None:
    torch.manual_seed(0)
    layer = CrossModalityLayer(width=8, heads=2, inner=12, dropout=0.3).eval()
    text_BTD, image_BRD = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    text_mask_BT = torch.arange(5) < torch.tensor([[5], [3]])
    image_mask_BR = torch.arange(4) < torch.tensor([[2], [4]])
    found = layer(text_BTD, text_mask_BT, image_BRD, image_mask_BR)
    for row in range(2):
        text_TD, image_RD = text_BTD[row, text_mask_BT[row]], image_BRD[row, image_mask_BR[row]]
        crossed = {
            "text_layer": _attend_slow(layer, text_TD, image_RD, heads=2),
            "image_layer": _attend_slow(layer, image_RD, text_TD, heads=2),  # the layer's input, not the new text
        }
        expected = {}
        for name, x_ND in crossed.items():
            own = getattr(layer, name)
            x_ND = _attend_slow(own, x_ND, x_ND, heads=2)
            up_ND = x_ND @ own.feed_forward.up.weight.T + own.feed_forward.up.bias
            gelu_ND = up_ND * (1 + torch.erf(up_ND / math.sqrt(2))) / 2
            expected[name] = own.feed_forward.norm(x_ND + own.feed_forward.down(gelu_ND))
        torch.testing.assert_close(found.text_BTD[row, text_mask_BT[row]], expected["text_layer"])
        torch.testing.assert_close(found.image_BRD[row, image_mask_BR[row]], expected["image_layer"])
    layer.image_layer = layer.text_layer  # now nothing tells the directions apart
    found = layer(text_BTD, text_mask_BT, image_BRD, image_mask_BR)
    exchanged = layer(image_BRD, image_mask_BR, text_BTD, text_mask_BT)
    torch.testing.assert_close(exchanged.image_BRD, found.text_BTD)
    torch.testing.assert_close(exchanged.text_BTD, found.image_BRD)


def _transformers_names(network: nn.Module) -> dict[str, str | list[str]]:
    """Our names -> those of transformers' LxmertModel; three of theirs make one query_key_value."""
    stems = {
        "text_embedding.word": "embeddings.word_embeddings",
        "text_embedding.position": "embeddings.position_embeddings",
        "text_embedding.segment": "embeddings.token_type_embeddings",
        "text_embedding.norm": "embeddings.LayerNorm",
        "region_embedding.feature": "encoder.visn_fc.visn_fc",
        "region_embedding.feature_norm": "encoder.visn_fc.visn_layer_norm",
        "region_embedding.box": "encoder.visn_fc.box_fc",
        "region_embedding.box_norm": "encoder.visn_fc.box_layer_norm",
        "pooler": "pooler.dense",
    }

    def layer(ours: str, attention: str, up: str, down: str) -> None:
        stems[f"{ours}.query_key_value"] = f"{attention}.self"
        stems[f"{ours}.out"], stems[f"{ours}.norm"] = f"{attention}.output.dense", f"{attention}.output.LayerNorm"
        stems[f"{ours}.feed_forward.up"], stems[f"{ours}.feed_forward.down"] = f"{up}.dense", f"{down}.dense"
        stems[f"{ours}.feed_forward.norm"] = f"{down}.LayerNorm"

    for kind, theirs in (("text_layers", "encoder.layer"), ("image_layers", "encoder.r_layers")):
        for n in range(len(getattr(network, kind))):
            stem = f"{theirs}.{n}"
            layer(f"{kind}.{n}", f"{stem}.attention", f"{stem}.intermediate", f"{stem}.output")
    for n in range(len(network.cross_layers)):
        stem = f"encoder.x_layers.{n}"
        for ours, theirs in (("text_layer", "lang"), ("image_layer", "visn")):
            layer(
                f"cross_layers.{n}.{ours}",
                f"{stem}.{theirs}_self_att",
                f"{stem}.{theirs}_inter",
                f"{stem}.{theirs}_output",
            )
        stems[f"cross_layers.{n}.query_key_value"] = f"{stem}.visual_attention.att"
        stems[f"cross_layers.{n}.out"] = f"{stem}.visual_attention.output.dense"
        stems[f"cross_layers.{n}.norm"] = f"{stem}.visual_attention.output.LayerNorm"

    names: dict[str, str | list[str]] = {}
    for name, _ in network.named_parameters():
        stem, leaf = name.rsplit(".", 1)
        if stem in ("text_pooler", "image_pooler"):  # of the streams, which transformers' model does not pool
            continue
        theirs = stems[stem]
        is_qkv = stem.endswith("query_key_value")
        names[name] = [f"{theirs}.{x}.{leaf}" for x in ("query", "key", "value")] if is_qkv else f"{theirs}.{leaf}"
    return names


@torch.no_grad()
def test_the_network_computes_what_transformers_lxmert_computes() -> None:
    from transformers import LxmertConfig, LxmertModel

    torch.manual_seed(0)
    config = LxmertConfig(
        vocab_size=120,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        l_layers=3,
        x_layers=2,
        r_layers=2,
        visual_feat_dim=24,
        initializer_range=0.2,
    )
    theirs = LxmertModel(config).eval()
    model = tiny_lxmert(text_layers=3, image_layers=2, cross_layers=2).eval()
    state = theirs.state_dict()
    parameters = dict(model.network.named_parameters())
    used = set()
    for ours, names in _transformers_names(model.network).items():
        parts = [names] if isinstance(names, str) else names
        parameters[ours].copy_(torch.cat([state[part] for part in parts]))
        used.update(parts)
    assert used == set(state)

    batch = example_batch(model.input_spec(), batch_size=5)
    regions = with_global(model.visual(batch))
    expected = theirs(
        batch.tokens_BT,
        visual_feats=regions.features_BRD,
        visual_pos=regions.boxes_BR5[..., :4],
        attention_mask=batch.token_mask_BT.long(),
        visual_attention_mask=regions.mask_BR.long(),
    )
    streams = model.network.streams(batch.tokens_BT, batch.token_mask_BT, regions)
    found = model.network.cross(streams.text.states_BND, batch.token_mask_BT, streams.image.states_BND, regions.mask_BR)
    real_BT, real_BR = batch.token_mask_BT, regions.mask_BR
    torch.testing.assert_close(found.text_BTD[real_BT], expected.language_output[real_BT], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.image_BRD[real_BR], expected.vision_output[real_BR], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.network.pool(found.text_BTD), expected.pooled_output, atol=1e-5, rtol=0)
    features = model.embed(batch)
    torch.testing.assert_close(features["first"], expected.language_output[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(features["pooled"], expected.pooled_output, atol=1e-5, rtol=0)
    means = [
        torch.cat([expected.language_output[row, real_BT[row]], expected.vision_output[row, real_BR[row]]]).mean(0)
        for row in range(5)
    ]
    torch.testing.assert_close(features["mean"], torch.stack(means), atol=1e-5, rtol=0)


def test_the_language_encoder_starts_from_a_bert(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = BertConfig(**sizes, intermediate_size=48, max_position_embeddings=40, layer_norm_eps=1e-12)
    BertForPreTraining(config).save_pretrained(tmp_path)
    model = tiny_lxmert(text_weights=str(tmp_path), text_layers=2)
    before = model.network.image_layers[0].out.weight.clone()
    model.setup("fit")
    model.eval()
    bert = BertForPreTraining.from_pretrained(tmp_path).eval()
    batch = example_batch(model.input_spec(), batch_size=3)
    mask_BT = batch.token_mask_BT
    with torch.no_grad():
        streams = model.network.streams(batch.tokens_BT, mask_BT, with_global(model.visual(batch)))
        read = bert(batch.tokens_BT, attention_mask=mask_BT.long(), output_hidden_states=True)
    expected_BTD = read.hidden_states[2]
    torch.testing.assert_close(streams.text.states_BND[mask_BT], expected_BTD[mask_BT], atol=2e-6, rtol=0)
    assert torch.equal(model.mlm.transform.weight, bert.cls.predictions.transform.dense.weight)
    assert torch.equal(model.network.image_layers[0].out.weight, before)


def _losses(model: LXMERT, batch: ProductBatch, step: int = 0) -> dict[str, Tensor]:
    return model.losses(batch, Draws(0, step, model.device))


@torch.no_grad()
def test_one_pass_over_exchanged_and_masked_inputs_serves_four_objectives() -> None:
    """The heads here read every position; the model hands them the chosen ones only."""
    torch.manual_seed(0)
    model = tiny_lxmert(dropout=0.0, mlm_prob=0.4, mrm_prob=0.4, init_std=0.2)
    batch = example_batch(model.input_spec(), batch_size=8)
    draws = Draws(0, 1, model.device)
    tokens_BT, mask_BT, matched_B = model.itm.exchange(batch.tokens_BT, batch.token_mask_BT, draws)
    assert 0 < matched_B.sum() < 8
    masked_BT, targets_BT, _ = model.mlm.mask(tokens_BT, mask_BT, draws)
    predicted_BR, hidden_BR, _ = model.mrm.mask(batch.region_mask_BR, draws)
    regions = with_global(model.visual(batch, hidden_BR))
    streams = model.network.streams(masked_BT, mask_BT, regions)
    text_BTD, image_BRD = model.network.cross(
        streams.text.states_BND, mask_BT, streams.image.states_BND, regions.mask_BR
    )
    regions_BRD = image_BRD[:, 1:]
    found = _losses(model, batch, step=1)
    clr = found.pop("loss_clr")
    words_VD = model.network.text_embedding.word.weight
    said_B = model.itm.head(model.network.pool(text_BTD))[:, 0] > 0
    expected = {
        "loss_mlm": model.mlm(text_BTD, targets_BT, words_VD),
        "loss_mrm": model.mrm(regions_BRD, batch.features_BRD, predicted_BR),
        "loss_mrc": model.mrc(regions_BRD, batch.class_scores_BRC, predicted_BR),
        "loss_itm": model.itm(model.network.pool(text_BTD), matched_B),
        "_itm_accuracy": (said_B == matched_B).float().mean(),
    }
    torch.testing.assert_close(found, expected)

    # the contrast reads neither the exchange nor the masks
    assert _losses(model, batch, step=2)["loss_clr"] == clr
    clean = model.network.streams(batch.tokens_BT, batch.token_mask_BT, with_global(model.visual(batch)))
    torch.testing.assert_close(clr, model.clr(clean.image.pooled_BD, clean.text.pooled_BD))


@torch.no_grad()
def test_feature_and_class_are_predicted_for_the_same_regions() -> None:
    torch.manual_seed(0)
    both = tiny_lxmert(objectives=["mrm", "mrc"], dropout=0.0)
    batch = example_batch(both.input_spec(), batch_size=8)
    together = _losses(both, batch)
    for name in ("mrm", "mrc"):
        alone = tiny_lxmert(objectives=[name], dropout=0.0)
        alone.load_state_dict(both.state_dict(), strict=False)
        torch.testing.assert_close(_losses(alone, batch), {f"loss_{name}": together[f"loss_{name}"]})


@pytest.mark.parametrize(
    ("objectives", "passes", "crossings"),
    [(["clr"], 1, 0), (["mlm"], 1, 1), (["mlm", "mrm", "mrc", "itm"], 1, 1), (["itm", "clr"], 2, 1)],
)
def test_no_pass_is_made_that_no_objective_reads(objectives: list[str], passes: int, crossings: int) -> None:
    model = tiny_lxmert(objectives=objectives)
    calls = {"text_embedding": 0, "cross_layers": 0}

    def count(name: str) -> None:
        calls[name] += 1

    model.network.text_embedding.register_forward_hook(lambda *_: count("text_embedding"))
    model.network.cross_layers[0].register_forward_hook(lambda *_: count("cross_layers"))
    _losses(model, example_batch(model.input_spec()))
    assert calls == {"text_embedding": passes, "cross_layers": crossings}


def test_the_contrast_alone_does_not_claim_the_cross_modality_encoder() -> None:
    model = tiny_lxmert(objectives=["clr"])
    model.setup("fit")
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {"cross_layers", "pooler"}
    assert model.uses_in_batch_negatives
    assert model.compares_samples
    masked = tiny_lxmert(objectives=["mlm", "mrm"])
    assert not masked.uses_in_batch_negatives
    assert not masked.compares_samples
    assert tiny_lxmert(objectives=["itm"]).compares_samples


def test_in_a_grid_the_features_of_the_cells_are_predicted_standardised() -> None:
    torch.manual_seed(0)
    model = tiny_lxmert(visual_input="grid", objectives=["mrm", "clr"], dropout=0.0)
    batch = example_batch(model.input_spec(), batch_size=4)
    found = _losses(model, batch)
    # with and without the contrast's pass over the clean picture at hand
    alone = tiny_lxmert(visual_input="grid", objectives=["mrm"], dropout=0.0)
    alone.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(_losses(alone, batch)["loss_mrm"], found["loss_mrm"])
    features_BRD = model.visual(batch).features_BRD
    torch.testing.assert_close(found["_mrm_target_variance"], features_BRD.detach().var((0, 1), correction=0).mean())


def test_without_region_norm_the_length_of_a_region_is_kept() -> None:
    torch.manual_seed(0)
    for norm in (True, False):
        embedding = tiny_lxmert(region_norm=norm, dropout=0.0).network.region_embedding
        x_BRD, boxes_BR5 = torch.randn(2, 3, 24), torch.rand(2, 3, 5)
        with torch.no_grad():
            embedding.box.weight.zero_()
            once, tenfold = embedding(x_BRD, boxes_BR5), embedding(10 * x_BRD, boxes_BR5)
        torch.testing.assert_close(tenfold, once if norm else 10 * once, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"visual_input": "grid"}, ["model.objectives", "visual_input is 'grid'", "class_scores", "do without"]),
        ({"region_classes": 0}, ["region_classes is 0", "class_scores", "[mlm,mrm,itm,clr]"]),
        ({"objectives": ["qa"]}, ["'qa'", "mlm, mrm, mrc, itm, clr"]),
        ({"retrieval_feature": "concat_co"}, ["'concat_co'", "concat_first"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        tiny_lxmert(**arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def test_class_scores_are_asked_for_only_where_they_are_read() -> None:
    assert tiny_lxmert().input_spec().region_classes == 9
    without = tiny_lxmert(objectives=["mlm", "mrm", "itm"])
    assert without.input_spec().region_classes == 0
    model = tiny_lxmert()
    with pytest.raises(ModelError, match="need class scores"):
        _losses(model, example_batch(without.input_spec()))


@torch.no_grad()
def test_match_reads_either_caption_with_the_other_picture() -> None:
    torch.manual_seed(0)
    model = tiny_lxmert(init_std=0.2).eval()
    batch = example_batch(model.input_spec(), batch_size=6)
    queries, items = batch.rows([0, 1, 2, 3]), batch.rows([2, 3, 4, 5])
    found = model.match(queries, items)

    def logit(caption: int, picture: int) -> Tensor:
        """Of one pair alone, through the vector that evaluation sees."""
        text, image = batch.rows([caption]), batch.rows([picture])
        pair = image._replace(tokens_BT=text.tokens_BT, token_mask_BT=text.token_mask_BT)
        return model.itm.score(model.embed(pair)["pooled"])[0]

    expected = [logit(query, query + 2) + logit(query + 2, query) for query in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(model.match(items, queries), found)
    with pytest.raises(ModelError, match="no matching head"):
        tiny_lxmert(objectives=["mlm"]).match(queries, items)
