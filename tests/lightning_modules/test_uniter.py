"""UNITER: a BERT where there is only text, its region embedding, one objective per step, hard negatives, refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lightning_modules import UNITER, ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.regions import Regions, with_global
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny

ALL = ["mlm", "mrm", "mrc", "mrc_kl", "itm", "wra", "clr"]


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
    model = tiny(UNITER, layers=3, text_weights=str(tmp_path))
    model.setup("fit")
    model.eval()
    batch = example_batch(model.input_spec(), batch_size=5)
    theirs = bert.bert(batch.tokens_BT, batch.token_mask_BT.long(), output_hidden_states=True).hidden_states
    x_BTD = model.network.text_embedding(batch.tokens_BT)
    for number, expected_BTD in enumerate(theirs):
        real_BT = batch.token_mask_BT
        torch.testing.assert_close(x_BTD[real_BT], expected_BTD[real_BT], atol=3e-6, rtol=1e-5)
        if number < 3:
            x_BTD = model.network.layers[number](x_BTD, real_BT)
    assert model.mlm is not None
    word_VD = model.network.text_embedding.word.weight
    logits_BTV = bert.cls.predictions(theirs[-1])
    targets_BT = torch.where(batch.token_mask_BT, batch.tokens_BT, -1)
    expected = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-1)
    torch.testing.assert_close(model.mlm(theirs[-1], targets_BT, word_VD), expected)


@torch.no_grad()
def test_a_region_is_embedded_as_the_paper_says() -> None:
    """LN(LN(Linear(feature)) + LN(Linear(x1, y1, x2, y2, w, h, w·h)) + segment), one region at a time."""
    torch.manual_seed(0)
    network = tiny(UNITER).eval().network
    network.region_embedding.hidden.normal_()
    box = [0.1, 0.2, 0.4, 0.8]
    features_B1D = torch.randn(2, 1, 24)
    boxes_BR5 = torch.tensor([*box, 0.3 * 0.6]).expand(2, 1, 5)
    regions = with_global(Regions(features_B1D, boxes_BR5, torch.ones(2, 1, dtype=torch.bool)))
    hidden_BR = torch.tensor([[False], [True]])
    found_BRD = network.embed_regions(regions, hidden_BR)
    part = network.region_embedding
    segment = network.text_embedding.segment.weight[1]
    for row in range(2):
        for place, (x1, y1, x2, y2) in enumerate([(0.0, 0.0, 1.0, 1.0), tuple(box)]):
            feature = features_B1D[row, 0] + (part.hidden if row == 1 and place == 1 else 0)
            seven = torch.tensor([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)])
            of_feature = part.feature_norm(part.feature(feature))
            expected = part.norm(of_feature + part.box_norm(part.box(seven)) + segment)
            torch.testing.assert_close(found_BRD[row, place], expected)


def test_a_step_trains_one_objective_in_the_released_proportion() -> None:
    model = tiny(UNITER, objectives=["mlm", "mrm", "mrc_kl", "itm", "wra"])
    assert model.tasks == {"mlm": 2, "mrm": 1, "mrc_kl": 1, "itm": 2}  # alignment is computed with matching
    batch = example_batch(model.input_spec(), batch_size=4)
    with torch.no_grad():
        drawn = [frozenset(n for n in model.losses(batch, Draws(0, step, "cpu")) if n[0] != "_") for step in range(300)]
    count = Counter(drawn)
    assert set(count) == {
        frozenset({"loss_mlm"}),
        frozenset({"loss_mrm"}),
        frozenset({"loss_mrc_kl"}),
        frozenset({"loss_itm", "loss_wra"}),
    }
    assert 70 <= count[frozenset({"loss_mlm"})] <= 130  # 100 expected, standard deviation 8
    assert 30 <= count[frozenset({"loss_mrm"})] <= 70  # 50, 6.5
    with_contrast = tiny(UNITER, objectives=["clr", "wra", "mlm"], shares=[1.0, 0.5])
    assert with_contrast.tasks == {"wra": 1.0, "mlm": 0.5}
    for task in with_contrast.tasks:
        losses = with_contrast.losses(batch, Draws(0, 0, "cpu", task=task))
        assert {"loss_clr", f"loss_{task}"} == {name for name in losses if name[0] != "_"}
    assert set(tiny(UNITER, objectives=["clr"]).losses(batch, Draws(0, 0, "cpu"))) == {"loss_clr"}


def test_the_unmatched_caption_is_the_hardest_of_the_candidates() -> None:
    """With as many candidates as there are other captions, it is the best matching one of all."""
    torch.manual_seed(0)
    model = tiny(UNITER, objectives=["itm"], matching_candidates=5, init_std=0.3).eval()
    batch = example_batch(model.input_spec(), batch_size=6)
    regions = with_global(model.visual(batch))
    assert model.itm is not None
    exchanged = model.itm.exchange(
        batch.tokens_BT,
        batch.token_mask_BT,
        Draws(0, 1, "cpu"),
        lambda tokens, mask: model._match_logit(tokens, mask, regions),
    )
    assert 0 < exchanged.matched_B.sum() < 6
    with torch.no_grad():
        for row in range(6):
            if exchanged.matched_B[row]:
                assert torch.equal(exchanged.tokens_BT[row], batch.tokens_BT[row])
                continue
            logits = []
            for other in range(6):
                mixed = batch.tokens_BT.clone(), batch.token_mask_BT.clone()
                mixed[0][row], mixed[1][row] = batch.tokens_BT[other], batch.token_mask_BT[other]
                logits.append(-1e9 if other == row else float(model._match_logit(*mixed, regions)[row]))
            hardest = max(range(6), key=logits.__getitem__)
            assert torch.equal(exchanged.tokens_BT[row], batch.tokens_BT[hardest])


@torch.no_grad()
def test_a_match_reads_both_captions_with_the_others_picture() -> None:
    torch.manual_seed(0)
    model = tiny(UNITER, init_std=0.3).eval()
    batch = example_batch(model.input_spec(), batch_size=6)
    queries, items = batch.rows([0, 1, 2]), batch.rows([3, 4, 5])
    found_B = model.match(queries, items)
    torch.testing.assert_close(found_B, model.match(items, queries))
    one = model._match_logit(queries.tokens_BT, queries.token_mask_BT, with_global(model.visual(items)))
    other = model._match_logit(items.tokens_BT, items.token_mask_BT, with_global(model.visual(queries)))
    torch.testing.assert_close(found_B, one + other)
    assert found_B.unique().numel() == 3
    with pytest.raises(ModelError, match="no matching head"):
        tiny(UNITER, objectives=["mlm"]).match(queries, items)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objectives": ["mrc_kl"], "visual_input": "grid"}, "mrc_kl needs.*'grid'"),
        ({"objectives": ["mrc"], "region_classes": 0}, "mrc.*model.region_classes"),
        ({"objectives": ["mlm", "itm"], "shares": [1.0]}, "model.shares.*one number for each"),
        ({"objectives": ["mlm", "itm"], "shares": [1.0, 0.0]}, "above 0"),
        ({"mrm_prob": 0.0}, r"model\.mrm_prob 0.0"),
        ({"objectives": ["mlm", "vqa"]}, "vqa.*unknown"),
        ({"matching_candidates": 0}, r"model\.matching_candidates 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tiny(UNITER, **arguments)


def test_a_batch_without_class_scores_is_refused() -> None:
    model = tiny(UNITER, objectives=["mrc_kl"])
    batch = example_batch(model.input_spec())._replace(class_scores_BRC=None)
    with pytest.raises(ModelError, match="class scores"):
        model.losses(batch, Draws(0, 0, "cpu"))


def test_a_single_sample_cannot_be_matched() -> None:
    model = tiny(UNITER, objectives=["itm"])
    with pytest.raises(ModelError, match=r"data\.batch_size"):
        model.losses(example_batch(model.input_spec(), batch_size=1), Draws(0, 0, "cpu"))
