"""EGE-CMP: what its three streams share, how they meet, and what its graph of entities trains."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from lightning_modules import CAPTURE, EGECMP, ModelError
from lightning_modules.ege_network import ThreeMasks
from lightning_modules.example_batch import CLS, ENTITY_ROWS, SEP, example_batch
from lightning_modules.objectives.draws import Draws
from lightning_modules.retrieval_module import total_loss
from tests.lightning_modules.tiny_models import tiny, tiny_ege

GRAPH = ("node", "subgraph")


def _losses(model: EGECMP, step: int = 0, batch_size: int = 8) -> dict[str, Tensor]:
    return model.losses(example_batch(model.input_spec(), batch_size=batch_size), Draws(0, step, model.device))


def test_the_entity_stream_has_no_weights_of_its_own() -> None:
    """Beside CAPTURE's: the layer that reads the guide's two outputs, and the way back to the entity tokens."""
    ege, capture = (dict(tiny(kind).named_parameters()) for kind in (EGECMP, CAPTURE))
    assert set(capture) <= set(ege)
    more = {f"{module}.{leaf}" for module in ("network.guide_output", "mlm_entity.back") for leaf in ("weight", "bias")}
    assert set(ege) - set(capture) == more
    model = tiny_ege().eval()
    batch = example_batch(model.input_spec())
    regions = model.regions(batch)
    text = (batch.tokens_BT, batch.token_mask_BT)
    streams = model.network.streams(*text, regions, *text)
    for of_text, of_entity in zip(streams.text, streams.entity, strict=True):
        assert torch.equal(of_text, of_entity)


@pytest.mark.parametrize("fusion", ["text", "image"])
def test_each_cross_and_co_layer_runs_twice_a_pass_and_each_stream_reads_what_it_should(fusion: str) -> None:
    torch.manual_seed(0)
    model = tiny_ege(fusion=fusion, init_std=0.2, cross_layers=1, co_layers=0).eval()
    batch = example_batch(model.input_spec(), batch_size=3)
    regions = model.regions(batch)
    calls: Counter[nn.Module] = Counter()
    for layer in model.network.cross_layers:
        layer.register_forward_hook(lambda module, args, out: calls.update([module]))
    arguments = (batch.tokens_BT, batch.token_mask_BT, regions, batch.entity_tokens_BT, batch.entity_token_mask_BT)
    streams, _ = model.network(*arguments)
    assert list(calls.values()) == [2]

    # With one cross layer and no co-layer: the entities read the guide and nothing else, the others read everything.
    masks = ThreeMasks(batch.token_mask_BT, regions.mask_BR, batch.entity_token_mask_BT)
    before = model.network.fuse(streams, masks)
    third = {"text": "image", "image": "text"}[fusion]
    for changed in ("text", "image", "entity"):
        stream = getattr(streams, changed)
        noisy = stream._replace(states_BND=stream.states_BND + 1.0 * torch.randn_like(stream.states_BND))
        after = model.network.fuse(streams._replace(**{changed: noisy}), masks)
        moved = {
            name: bool((new - old).abs().max() > 1e-4)
            for name, new, old in zip(("text", "image", "entity"), after, before, strict=True)
        }
        assert moved == {"text": True, "image": True, "entity": changed != third}


@pytest.mark.parametrize("fusion", ["text", "image"])
@pytest.mark.parametrize("depths", [(1, 1), (0, 0), (1, 0)], ids=lambda d: f"cross{d[0]}co{d[1]}")
def test_every_parameter_of_either_fusion_is_used(fusion: str, depths: tuple[int, int]) -> None:
    model = tiny_ege(fusion=fusion, cross_layers=depths[0], co_layers=depths[1], visual_input="grid")
    model.setup("fit")
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == []
    total_loss(_losses(model)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_outputs_at_chosen_positions_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    for fusion in ("text", "image"):
        model = tiny_ege(fusion=fusion, dropout=0.0, co_layers=2, objectives=["mlm", "mlm_entity", "mrm"])
        batch = example_batch(model.input_spec(), batch_size=6)
        expected = {}
        fuse = model.network.fuse
        for name in ("chosen", "all"):
            with pytest.MonkeyPatch.context() as patch:
                if name == "all":

                    def whole(streams, masks, read, fuse=fuse):  # type: ignore[no-untyped-def]
                        fused = fuse(streams, masks)
                        sample_B1 = torch.arange(6).unsqueeze(1)
                        return type(fused)(*(x[sample_B1, at] for x, at in zip(fused, read, strict=True)))

                    patch.setattr(model.network, "fuse", whole)
                expected[name] = model.losses(batch, Draws(0, 1, "cpu"))
        for name, value in expected["all"].items():
            torch.testing.assert_close(expected["chosen"][name], value)
            assert value > 0


def test_both_masked_text_objectives_predict_with_one_head() -> None:
    both, alone = tiny_ege(), tiny_ege(objectives=["mlm_entity"])
    assert {name for name in both.state_dict() if name.startswith("mlm_entity.")} == {
        "mlm_entity.back.weight",
        "mlm_entity.back.bias",
    }
    assert "mlm_entity.transform.weight" in alone.state_dict()
    _losses(both)["loss_mlm_entity"].backward()
    assert both.mlm.transform.weight.grad.any()
    assert both.mlm.back.weight.grad is None


def test_what_parts_two_entities_is_never_masked() -> None:
    model = tiny_ege()
    model.mlm_entity.mask_prob = 1.0
    batch = example_batch(model.input_spec(), batch_size=12)
    tokens_BT = batch.entity_tokens_BT
    seen = []
    model.network.text_embedding.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    model.losses(batch, Draws(0, 0, "cpu"))
    spared_BT = (tokens_BT == CLS) | (tokens_BT == SEP) | (tokens_BT == 0)
    assert int(((tokens_BT == SEP).sum(1) > 1).sum()) >= 3
    masked_BT = seen[1]  # the caption comes before its entities
    assert torch.equal(masked_BT[spared_BT], tokens_BT[spared_BT])
    assert (masked_BT != tokens_BT).sum() > 0.8 * (~spared_BT).sum()
    mask = model.mlm_entity.mask(tokens_BT, batch.entity_token_mask_BT, Draws(0, 0, "cpu"), separated=True)
    assert torch.equal(mask.targets_BT >= 0, ~spared_BT)


def test_the_contrast_is_that_of_text_and_of_entities() -> None:
    model = tiny_ege(dropout=0.0, objectives=["clr"])
    batch = example_batch(model.input_spec(), batch_size=6)
    arguments = (batch.tokens_BT, batch.token_mask_BT, model.regions(batch))
    streams = model.network.streams(*arguments, batch.entity_tokens_BT, batch.entity_token_mask_BT)
    image, text, entity = streams.image.pooled_BD, streams.text.pooled_BD, streams.entity.pooled_BD
    expected = model.clr(image, text) + model.clr(image, entity)
    torch.testing.assert_close(model.losses(batch, Draws(0, 0, "cpu"))["loss_clr"], expected)


def test_below_one_a_masked_copy_of_the_share_is_fused_and_contrast_and_graph_read_everything() -> None:
    torch.manual_seed(0)
    whole = tiny_ege(dropout=0.0, visual_input="grid")
    half = tiny_ege(dropout=0.0, visual_input="grid", fused_share=0.5)
    half.load_state_dict(whole.state_dict())
    batch = example_batch(whole.input_spec(), batch_size=8)
    found, everything = (model.losses(batch, Draws(0, 0, "cpu")) for model in (half, whole))
    first_rows = whole.losses(batch.rows(slice(4)), Draws(0, 0, "cpu"))
    for name in ("mlm", "mlm_entity", "mrm"):
        torch.testing.assert_close(found[f"loss_{name}"], 0.5 * first_rows[f"loss_{name}"])
    for name in GRAPH:
        assert found[f"loss_{name}"] == everything[f"loss_{name}"] > 0
    for objective in (whole.mlm, whole.mlm_entity, whole.mrm):
        objective.mask_prob = 0.0
    torch.testing.assert_close(found["loss_clr"], whole.losses(batch, Draws(0, 0, "cpu"))["loss_clr"])
    with pytest.raises(ModelError, match="fused_share 0"):
        tiny_ege(fused_share=0.0)


def test_captions_without_entities_are_embedded_and_trained_on() -> None:
    model = tiny_ege()
    model.setup("fit")
    batch = example_batch(model.input_spec(), batch_size=5)
    tokens_BT = torch.zeros_like(batch.entity_tokens_BT)
    tokens_BT[:, :2] = torch.tensor([CLS, SEP])
    rows_BE = torch.full_like(batch.entities_BE, -1)
    nothing = batch._replace(entity_tokens_BT=tokens_BT, entity_token_mask_BT=tokens_BT != 0, entities_BE=rows_BE)
    assert all(vectors.isfinite().all() for vectors in model.encode(nothing).values())
    losses = model.losses(nothing, Draws(0, 0, "cpu"))
    total_loss(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(losses[f"loss_{name}"] == losses[f"_{name}_share"] == 0 for name in GRAPH)
    assert losses["loss_mlm_entity"] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_shards_without_entities_are_named_with_the_remedy() -> None:
    model = tiny_ege()
    batch = example_batch(model.input_spec()._replace(num_entities=0))
    with pytest.raises(ModelError, match="data entities"):
        model.encode(batch)


# ---- the graph ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_node_is_the_mean_of_what_the_embedding_layer_makes_of_its_tokens() -> None:
    torch.manual_seed(0)
    model = tiny_ege(init_std=0.5).eval()
    part = model.network.text_embedding
    found_ND = model.node_features(model.graph.tokens_NL)
    for row in (0, 1, 2, 17):
        vectors = []
        for place, token in enumerate(token for token in model.graph.tokens_NL[row].tolist() if token):
            vector_D = part.word.weight[token] + part.position.weight[1 + place] + part.segment.weight[0]
            scaled_D = (vector_D - vector_D.mean()) / math.sqrt(float(vector_D.var(correction=0)))
            vectors.append(part.norm.weight * scaled_D + part.norm.bias)
        torch.testing.assert_close(found_ND[row], torch.stack(vectors).mean(0), atol=1e-5, rtol=1e-4)
    nothing_NL = torch.zeros(2, 16, dtype=torch.int32)
    assert not model.node_features(nothing_NL).any()


@pytest.mark.parametrize("objectives", [["node"], ["subgraph"], ["node", "subgraph"]], ids="+".join)
def test_training_brings_related_entities_together(objectives: list[str]) -> None:
    torch.manual_seed(0)
    model = tiny_ege(objectives=objectives, graph_negatives="table", dropout=0.0, init_std=0.2)
    model.setup("fit")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition("text_embedding")[0] for name in trained} == {"network."}
    row_N = torch.arange(ENTITY_ROWS)
    alike_NN = (row_N[:, None] % 6 == row_N % 6) & (row_N[:, None] != row_N)

    @torch.no_grad()
    def gap() -> float:
        unit_ND = nn.functional.normalize(model.node_features(model.graph.tokens_NL), dim=-1)
        cosine_NN = unit_ND @ unit_ND.T
        return float(cosine_NN[alike_NN].mean() - cosine_NN[row_N[:, None] % 6 != row_N % 6].mean())

    before = gap()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        total_loss(_losses(model, step)).backward()
        if step == 0:
            assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
        optimizer.step()
    assert gap() > before + 0.2


def test_before_the_graph_is_built_its_losses_are_zero_and_claim_the_same_parameters() -> None:
    built = tiny_ege(objectives=["node", "subgraph"])
    fresh = EGECMP(**built.hparams)
    assert fresh.graph is not None
    assert not fresh.graph.is_built
    claimed = []
    for model in (built, fresh):
        model.setup("fit")
        claimed.append({name for name, p in model.named_parameters() if p.requires_grad})
        losses = _losses(model)
        assert set(losses) == {"loss_node", "loss_subgraph", "_node_share", "_subgraph_share"}
        assert all((value > 0) == (model is built) for value in losses.values())
        total_loss(losses).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name in claimed[-1])
    assert claimed[0] == claimed[1]


def test_without_the_graph_s_objectives_there_is_none() -> None:
    model = tiny_ege(objectives=["mlm", "clr"])
    assert model.graph is None
    assert not [name for name in model.state_dict() if name.startswith("graph")]


def test_a_saved_graph_comes_back() -> None:
    model = tiny_ege()
    again = EGECMP(**model.hparams)
    again.load_state_dict(model.state_dict())
    assert again.graph.is_built
    assert torch.equal(again.graph.neighbours.index_NK, model.graph.neighbours.index_NK)
    batch = example_batch(model.input_spec())
    for name in GRAPH:
        assert torch.equal(*(m.eval().losses(batch, Draws(0, 1, "cpu"))[f"loss_{name}"] for m in (model, again)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objectives": ["mlm", "itm"]}, ["'itm'", "mlm, mlm_entity, mrm, clr, node, subgraph"]),
        ({"num_entities": 0}, ["num_entities 0", "EXP=capture"]),
        ({"entity_length": 1}, ["entity_length 1"]),
        ({"fusion": "entity"}, ["fusion 'entity'", "text, image"]),
        ({"graph_margin": -1.0}, ["graph_margin -1.0"]),
        ({"ranked_entities": 0}, ["ranked_entities 0"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        tiny_ege(**arguments)
    assert all(word in str(caught.value) for word in words)
