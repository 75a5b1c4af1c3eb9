"""What CAPTURE promises whatever its weights: independence of the batch, honest ablations, clear refusals."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from torch import nn

from datamodules.batch import ProductBatch
from lightning_modules import CAPTURE, ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.layers.pooling import PositionPooling
from lightning_modules.layers.regions import Regions, with_global
from lightning_modules.objectives.draws import Draws
from tests.lightning_modules.tiny_models import tiny_capture

SUBSETS = list(chain.from_iterable(combinations(("mlm", "mrm", "clr"), n) for n in (1, 2, 3)))


@pytest.mark.parametrize("visual_input", ["regions", "grid"])
def test_embeddings_are_unit_and_independent_of_the_batch(visual_input: str) -> None:
    """The released co-transformer gave a padded sample another sample's mask; here company changes nothing."""
    torch.manual_seed(0)
    model = tiny_capture(visual_input=visual_input)
    batch = example_batch(model.input_spec(), batch_size=6)
    together = model.encode(batch)
    order = [4, 2, 5]
    subset = model.encode(batch.rows(order))
    alone = {name for names in model.modalities.values() for name in names}
    assert {"product", "image", "text", *model.candidate_features, *alone} == set(together)
    for name, vectors in together.items():
        assert vectors.dtype == torch.float32
        norms = vectors.norm(dim=-1)
        assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()
        torch.testing.assert_close(subset[name], vectors[order], atol=2e-6, rtol=0)


def test_padding_does_not_change_embeddings() -> None:
    """More padded regions, garbage under the masks: the same vectors."""
    torch.manual_seed(0)
    model = tiny_capture()
    batch = example_batch(model.input_spec(), batch_size=5)
    features, boxes, mask = batch.features_BRD, batch.boxes_BR5, batch.region_mask_BR
    noisy = batch._replace(
        tokens_BT=torch.where(batch.token_mask_BT, batch.tokens_BT, 77),
        features_BRD=torch.cat([torch.where(mask.unsqueeze(-1), features, 9.0), torch.full((5, 3, 24), 5.0)], 1),
        boxes_BR5=torch.cat([boxes, torch.rand(5, 3, 5)], 1),
        region_mask_BR=torch.cat([mask, torch.zeros(5, 3, dtype=torch.bool)], 1),
    )
    for name, vectors in model.encode(batch).items():
        torch.testing.assert_close(model.encode(noisy)[name], vectors, atol=2e-6, rtol=0)


@pytest.mark.parametrize("objectives", SUBSETS, ids="+".join)
@pytest.mark.parametrize("depths", [(1, 1), (0, 0), (1, 0)], ids=lambda d: f"cross{d[0]}co{d[1]}")
def test_every_trainable_parameter_gets_a_gradient(objectives: tuple[str, ...], depths: tuple[int, int]) -> None:
    model = tiny_capture(objectives=list(objectives), cross_layers=depths[0], co_layers=depths[1])
    model.setup("fit")
    owned = {name.split(".")[0] for name, _ in model.named_parameters()} & {"mlm", "mrm"}
    assert owned == set(objectives) & {"mlm", "mrm"}
    losses = model.losses(example_batch(model.input_spec(), seed=1), Draws(1, 1, model.device))
    assert set(losses) == {f"loss_{name}" for name in objectives}
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert sum(p.requires_grad for p in model.parameters()) > 10


def test_below_one_a_masked_copy_of_the_share_is_fused_and_the_contrast_reads_everything_unmasked() -> None:
    torch.manual_seed(0)
    whole = tiny_capture(visual_input="grid", dropout=0.0)
    half = tiny_capture(visual_input="grid", dropout=0.0, fused_share=0.5)
    half.load_state_dict(whole.state_dict())
    batch = example_batch(whole.input_spec(), batch_size=8)

    def losses(model: CAPTURE, batch: ProductBatch, step: int = 0) -> dict[str, torch.Tensor]:
        return model.losses(batch, Draws(0, step, model.device))

    found = losses(half, batch)
    # MLM and MRM: those of the first rows, weighted by the share of samples they are summed over
    first_rows = losses(whole, batch.rows(slice(4)))
    torch.testing.assert_close(found["loss_mlm"], 0.5 * first_rows["loss_mlm"])
    torch.testing.assert_close(found["loss_mrm"], 0.5 * first_rows["loss_mrm"])
    # a mask in the contrast would tell which caption belongs to which picture
    assert losses(whole, batch, step=1)["loss_clr"] != losses(whole, batch)["loss_clr"]
    assert losses(half, batch, step=1)["loss_clr"] == found["loss_clr"]
    whole.mlm.mask_prob = whole.mrm.mask_prob = 0.0
    torch.testing.assert_close(found["loss_clr"], losses(whole, batch)["loss_clr"])
    with pytest.raises(ModelError, match="fused_share 0"):
        tiny_capture(fused_share=0.0)


@pytest.mark.parametrize("objectives", [["clr"], ["mlm", "mrm"]])
def test_without_the_contrast_or_without_both_masked_objectives_one_pass_reads_every_sample(
    objectives: list[str],
) -> None:
    model = tiny_capture(visual_input="grid", objectives=objectives, fused_share=0.5)
    read: list[int] = []
    model.network.text_embedding.register_forward_hook(lambda module, args, out: read.append(len(out)))
    model.losses(example_batch(model.input_spec(), batch_size=8), Draws(0, 0, model.device))
    assert read == [8]


def test_without_region_norm_the_length_of_a_region_counts_in_the_bag() -> None:
    torch.manual_seed(0)
    changes = {}
    for norm in (True, False):
        model = tiny_capture(region_norm=norm, image_layers=0, dropout=0.0)
        assert any("region_embedding.norm" in name for name in model.state_dict()) == norm
        batch = example_batch(model.input_spec(), batch_size=2)
        with torch.no_grad():
            model.network.region_embedding.box.weight.zero_()
            before = model.encode(batch)["image_bag"]
            louder = batch.features_BRD.clone()
            louder[0, 0] *= 10
            # the whole-image region follows the mean of the others: compared in both models alike
            changes[norm] = (model.encode(batch._replace(features_BRD=louder))["image_bag"] - before)[0].norm()
    assert changes[True] < 0.5 * changes[False]


def test_attention_pooling_starts_as_the_mean_of_the_real_positions_and_the_contrast_trains_it() -> None:
    torch.manual_seed(0)
    mean, attention = tiny_capture(text_pooling="mean"), tiny_capture(text_pooling="attention", text_layers=0)
    assert set(attention.state_dict()) - set(mean.state_dict()) == {"network.text_pooling.query"}
    x_BND, mask_BN = torch.randn(3, 5, 64), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    pooling = PositionPooling(64, "attention")
    torch.testing.assert_close(
        pooling(x_BND, pooling.weights(x_BND, mask_BN)),
        torch.stack([x_BND[0].mean(0), x_BND[1, :2].mean(0), x_BND[2, 0]]),
    )
    batch = example_batch(attention.input_spec(), batch_size=8)
    attention.setup("fit")
    attention.losses(batch, Draws(0, 0, attention.device))["loss_clr"].backward()
    assert attention.network.text_pooling.query.grad.abs().max() > 0


def test_contrast_alone_does_not_claim_the_cross_layers() -> None:
    model = tiny_capture(objectives=["clr"])
    model.setup("fit")
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert {"cross_layers", "co_layers", "co_position", "text_output", "image_output"} == frozen


def test_hidden_grid_cells_cannot_leak_into_visible_pixels() -> None:
    """Masking comes before the backbone: the pixels of a hidden cell have no influence at all."""
    torch.manual_seed(0)
    model = tiny_capture(visual_input="grid")
    batch = example_batch(model.input_spec(), batch_size=2)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True  # row 1, column 1 of 4×4 cells of 16 px
    images = batch.images_B3HW
    assert images is not None
    changed = images.clone()
    changed[:, :, 16:32, 16:32] = 255 - changed[:, :, 16:32, 16:32]
    with torch.no_grad():
        seen = model.visual(batch, hidden).features_BRD
        also = model.visual(batch._replace(images_B3HW=changed), hidden).features_BRD
        open_ = model.visual(batch._replace(images_B3HW=changed)).features_BRD
    assert torch.equal(seen, also)
    assert not torch.allclose(open_, model.visual(batch).features_BRD)


def test_global_region_is_the_mean_after_masking() -> None:
    model = tiny_capture()
    batch = example_batch(model.input_spec(), batch_size=4)
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[:, 0] = True
    regions = with_global(model.visual(batch, hidden))
    for row in range(4):
        count = int(batch.region_mask_BR[row].sum())
        expected = batch.features_BRD[row, 1:count].float().sum(0) / count
        torch.testing.assert_close(regions.features_BRD[row, 0], expected)
    assert regions.boxes_BR5[:, 0].tolist() == [[0, 0, 1, 1, 1]] * 4


def test_global_region_as_the_maximum_ignores_padding() -> None:
    features = torch.tensor([[[1.0, -3.0], [-2.0, -1.0], [9.0, 9.0]]])
    regions = Regions(features, torch.zeros(1, 3, 5), torch.tensor([[True, True, False]]))
    assert with_global(regions, "max").features_BRD[0, 0].tolist() == [1.0, -1.0]
    nothing = regions._replace(mask_BR=torch.zeros(1, 3, dtype=torch.bool))
    assert with_global(nothing, "max").features_BRD[0, 0].tolist() == [0.0, 0.0]


def test_no_batch_statistics_anywhere() -> None:
    for name in ("resnet_tiny", "resnet18"):
        model = tiny_capture(visual_input="grid", backbone=name, image_size_px=64)
        assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objectives": ["mlm", "clip"]}, ["'clip'", "mlm, mrm, clr"]),
        ({"objectives": []}, ["at least one"]),
        ({"retrieval_feature": "concat"}, ["'concat'", "concat_stream"]),
        ({"visual_input": "grid", "image_size_px": 100}, ["100", "16"]),
        ({"visual_input": "grid", "backbone": "vgg"}, ["'vgg'", "resnet50"]),
        ({"visual_input": "grid", "backbone": "resnet18", "backbone_weights": "no/such.pt"}, ["no/such.pt"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        tiny_capture(**arguments)
    assert all(word in str(caught.value) for word in words)


def test_wrong_feature_width_is_named() -> None:
    model = tiny_capture()
    batch = example_batch(model.input_spec()._replace(region_width=20))
    with pytest.raises(ModelError, match=r"width 20, but model\.region_width=24: set model\.region_width=20"):
        model.encode(batch)


def test_a_vocabulary_smaller_than_the_probes_can_be_trained() -> None:
    tiny_capture(vocab_size=20).setup("fit")
