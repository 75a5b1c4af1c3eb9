"""The random batch of probes and benchmarks holds what the spec asks for."""

from __future__ import annotations

import torch

from datamodules.batch import InputSpec
from datamodules.regions import check_class_scores
from lightning_modules.example_batch import CLS, ENTITY_ROWS, SEP, example_batch, example_entity_tokens

SPEC = InputSpec(num_regions=5, region_width=8, text_length=10)


def test_class_scores_are_probabilities_of_the_real_regions() -> None:
    batch = example_batch(SPEC._replace(region_classes=91), batch_size=6)
    assert batch.class_scores_BRC.shape == (6, 5, 91)
    assert batch.class_scores_BRC.dtype == torch.float16
    assert 0 < int(batch.region_mask_BR.sum()) < 30, "some regions are padding"
    check_class_scores(batch.class_scores_BRC[batch.region_mask_BR].numpy())
    assert (batch.class_scores_BRC[~batch.region_mask_BR] == 0).all()
    likeliest = batch.class_scores_BRC[batch.region_mask_BR].argmax(-1)
    assert len(likeliest.unique()) > 1


def test_class_scores_change_nothing_else() -> None:
    without, scored = example_batch(SPEC, seed=3), example_batch(SPEC._replace(region_classes=7), seed=3)
    assert without.class_scores_BRC is None
    for name in ("index_B", "tokens_BT", "token_mask_BT", "features_BRD", "boxes_BR5", "region_mask_BR"):
        assert torch.equal(getattr(without, name), getattr(scored, name)), name


def test_pictures_have_no_class_scores() -> None:
    batch = example_batch(SPEC._replace(visual_input="grid", image_size_px=16, region_classes=7))
    assert batch.class_scores_BRC is None
    assert batch.images_B3HW is not None


def test_entities_are_rows_of_a_table_and_their_tokens_one_after_the_other() -> None:
    spec = SPEC._replace(num_entities=4, entity_length=12)
    batch = example_batch(spec, batch_size=40)
    rows, tokens, mask = batch.entities_BE, batch.entity_tokens_BT, batch.entity_token_mask_BT
    assert (rows.shape, tokens.shape, mask.shape) == ((40, 4), (40, 12), (40, 12))
    assert {int(row.ge(0).sum()) for row in rows} == {0, 1, 2, 3, 4}
    assert int(rows.max()) < ENTITY_ROWS
    assert rows[rows >= 0].unique().numel() < int((rows >= 0).sum()), "some are in several captions"
    for caption, row in enumerate(rows.tolist()):
        words = [token for entity in row if entity >= 0 for token in example_entity_tokens(entity, 100)] or [SEP]
        expected = [CLS, *words][:12]
        expected[-1] = SEP
        assert tokens[caption, mask[caption]].tolist() == expected
    without = example_batch(SPEC, batch_size=40)
    assert without.entities_BE is without.entity_tokens_BT is without.entity_token_mask_BT is None
    assert torch.equal(without.features_BRD, batch.features_BRD)
