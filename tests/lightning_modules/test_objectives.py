"""Each objective against a slow transcription of its definition, and its masking against its rates."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.objectives.chosen import chosen
from lightning_modules.objectives.cross_modal_contrast import CrossModalContrast
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_contrast import ImageTextContrast
from lightning_modules.objectives.masked_language_modelling import NOT_MASKED, MaskedLanguageModelling
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling, region_moments
from lightning_modules.objectives.pairwise_sigmoid import PairwiseSigmoid

CPU = torch.device("cpu")


def _nt_xent_slow(image: Tensor, text: Tensor, temperature: float) -> float:
    """SimCLR's equation 1, one row at a time."""
    rows = [*image.tolist(), *text.tolist()]
    batch = len(image)

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    total = 0.0
    for i, row in enumerate(rows):
        positive = rows[(i + batch) % (2 * batch)]
        denominator = sum(math.exp(cosine(row, other) / temperature) for k, other in enumerate(rows) if k != i)
        total -= math.log(math.exp(cosine(row, positive) / temperature) / denominator)
    return total / (2 * batch)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_contrast_equals_slow_transcription(batch: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(batch)
    image, text = torch.randn(2, batch, 5, generator=generator)
    loss = CrossModalContrast(temperature)(image, text)
    assert loss.item() == pytest.approx(_nt_xent_slow(image, text, temperature), rel=1e-5, abs=1e-5)


def test_contrast_of_aligned_pairs_is_lower_than_of_shuffled() -> None:
    image = torch.eye(6)
    contrast = CrossModalContrast()
    assert contrast(image, image) < contrast(image, image.roll(1, 0)) - 1


def _cosines(image: Tensor, text: Tensor) -> list[list[float]]:
    def unit(row: list[float]) -> list[float]:
        norm = math.sqrt(sum(x * x for x in row))
        return [x / norm for x in row]

    return [[sum(x * y for x, y in zip(unit(i), unit(t), strict=True)) for t in text.tolist()] for i in image.tolist()]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_infonce_equals_figure_3_of_clip(batch: int) -> None:
    image, text = torch.randn(2, batch, 5, generator=torch.Generator().manual_seed(batch))
    scale = 1 / 0.07
    logits = [[scale * cosine for cosine in row] for row in _cosines(image, text)]
    loss_i = loss_t = 0.0
    for n in range(batch):  # axis 0, then axis 1
        loss_i -= math.log(math.exp(logits[n][n]) / sum(math.exp(logits[m][n]) for m in range(batch))) / batch
        loss_t -= math.log(math.exp(logits[n][n]) / sum(math.exp(logits[n][m]) for m in range(batch))) / batch
    assert ImageTextContrast()(image, text).item() == pytest.approx((loss_i + loss_t) / 2, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_pairwise_sigmoid_equals_algorithm_1_of_siglip(batch: int) -> None:
    image, text = torch.randn(2, batch, 5, generator=torch.Generator().manual_seed(batch))
    t, bias = math.exp(math.log(10)), -10.0
    total = 0.0
    for i, row in enumerate(_cosines(image, text)):
        for j, cosine in enumerate(row):
            label = 1 if i == j else -1
            total -= math.log(1 / (1 + math.exp(-label * (t * cosine + bias))))
    assert PairwiseSigmoid()(image, text).item() == pytest.approx(total / batch, rel=1e-5)


def test_the_learned_scale_never_exceeds_100_and_comes_back_from_there() -> None:
    contrast = ImageTextContrast()
    contrast.log_scale.data.fill_(7.0)
    image = torch.eye(4)
    contrast(image, image.roll(1, 0)).backward()  # every pair is wrong: a smaller scale is better
    assert contrast.log_scale.exp().item() == pytest.approx(100)
    assert contrast.log_scale.grad is not None
    assert contrast.log_scale.grad.item() > 1


def test_token_masking_follows_its_rates_and_spares_special_tokens() -> None:
    mlm = MaskedLanguageModelling(8, 8, vocab_size=1000, mask_token_id=4)
    tokens = torch.randint(5, 1000, (400, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(30) < torch.randint(3, 31, (400, 1), generator=torch.Generator().manual_seed(1))
    masked = mlm.mask(tokens, mask, Draws(0, 0, CPU))
    predicted = masked.targets_BT != NOT_MASKED
    last = mask.sum(1) - 1
    assert not predicted[:, 0].any()
    assert not predicted[torch.arange(400), last].any()
    assert not predicted[~mask].any()
    assert torch.equal(masked.targets_BT[predicted], tokens[predicted])
    assert torch.equal(masked.tokens_BT[~predicted], tokens[~predicted])
    maskable = mask.sum() - 2 * 400
    assert predicted.sum() / maskable == pytest.approx(0.15, abs=0.015)
    replaced, original = masked.tokens_BT[predicted], tokens[predicted]
    assert (replaced == 4).float().mean() == pytest.approx(0.8, abs=0.04)
    assert (replaced == original).float().mean() == pytest.approx(0.1, abs=0.03)


def test_region_masking_follows_its_rates() -> None:
    mrm = MaskedRegionModelling(8, 8, 8)
    real = torch.rand(500, 20, generator=torch.Generator().manual_seed(0)) < 0.8
    masked = mrm.mask(real, Draws(0, 0, CPU))
    assert not masked.predicted_BR[~real].any()
    assert not masked.hidden_BR[~masked.predicted_BR].any()
    assert masked.predicted_BR.sum() / real.sum() == pytest.approx(0.15, abs=0.015)
    assert masked.hidden_BR.sum() / masked.predicted_BR.sum() == pytest.approx(0.9, abs=0.03)


def test_draws_depend_on_seed_and_step_only() -> None:
    same = [Draws(3, 5, CPU).uniform(4, 6) for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], Draws(3, 6, CPU).uniform(4, 6))
    assert not torch.equal(same[0], Draws(4, 5, CPU).uniform(4, 6))


def test_masked_losses_equal_full_length_heads_and_are_zero_without_masks() -> None:
    torch.manual_seed(0)
    mlm = MaskedLanguageModelling(6, 8, vocab_size=50, mask_token_id=4)
    outputs, words = torch.randn(3, 5, 6), torch.randn(50, 8)
    targets = torch.full((3, 5), NOT_MASKED)
    assert mlm(outputs, targets, words).item() == 0
    targets[0, 1], targets[2, 3] = 7, 9
    hidden = mlm.norm(torch.nn.functional.gelu(mlm.transform(mlm.back(outputs))))
    logits = hidden @ words.T + mlm.bias
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_MASKED)
    torch.testing.assert_close(mlm(outputs, targets, words), expected)

    mrm = MaskedRegionModelling(6, 8, 4)
    image, features = torch.randn(3, 5, 6), torch.randn(3, 5, 4)
    predicted = torch.zeros(3, 5, dtype=torch.bool)
    assert mrm(image, features, predicted).item() == 0
    predicted[1, 2] = predicted[0, 0] = True
    guess = mrm.decoder(mrm.norm(torch.nn.functional.gelu(mrm.transform(mrm.back(image)))))
    expected = (guess - features)[predicted].square().mean()
    torch.testing.assert_close(mrm(image, features, predicted), expected)


def test_standardised_target_does_not_reward_shrinking_features() -> None:
    """Scaling and shifting the target changes nothing: the loss cannot be lowered by collapsing."""
    torch.manual_seed(0)
    mrm = MaskedRegionModelling(6, 8, 4)
    image, features = torch.randn(30, 5, 6), torch.randn(30, 5, 4)
    real = torch.ones(30, 5, dtype=torch.bool)
    shrunk = features * 0.1 + 3
    full, less = (mrm(image, x, real, region_moments(x, real)) for x in (features, shrunk))
    torch.testing.assert_close(full, less, rtol=1e-3, atol=1e-3)
    variance, smaller = (region_moments(x, real).variance_D.mean().item() for x in (features, shrunk))
    assert smaller == pytest.approx(variance * 0.01, rel=1e-3)


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6),
)
def test_chosen_positions_are_those_of_the_boolean_index(rows: list[list[bool]]) -> None:
    choice = torch.tensor(rows)
    found = chosen(choice, Draws(0, 0, CPU))
    values = torch.rand(len(rows), 5)
    assert torch.equal(values.flatten()[found.in_batch_M], values[choice])
    assert torch.equal(values.gather(1, found.position_BK).flatten()[found.in_grid_M], values[choice])
    assert found.position_BK.shape[1] == max(1, int(choice.sum(1).max()))


def test_moments_are_of_the_real_regions_only() -> None:
    features, real = torch.randn(4, 6, 3), torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    mean, variance = region_moments(features, real)
    torch.testing.assert_close(mean, features[real].mean(0))
    torch.testing.assert_close(variance, features[real].var(0, correction=0))
