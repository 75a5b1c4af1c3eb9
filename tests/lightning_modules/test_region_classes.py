"""What is predicted of a hidden region: its class against slow transcriptions, its features through a tied decoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_classification import MaskedRegionClassification
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling


def _regions() -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, scores that sum to anything, and which regions count; the last row is padding without any score."""
    generator = torch.Generator().manual_seed(0)
    outputs, scores = torch.randn(3, 4, 6, generator=generator), torch.rand(3, 4, 5, generator=generator)
    predicted = torch.rand(3, 4, generator=generator) < 0.5
    scores[0, :, 2] = 0.0  # a class that cannot be
    scores[2, 3], predicted[2, 3] = 0.0, False
    return outputs, scores, predicted


def _mean_slow(mrc: MaskedRegionClassification, of_region: Callable[[list[float], list[float]], float]) -> float:
    """The mean over predicted regions of a function of their log-probabilities and scores."""
    outputs, scores, predicted = _regions()
    logits = mrc.decoder(mrc.norm(gelu(mrc.transform(outputs))))[predicted].tolist()
    total = 0.0
    for row, score in zip(logits, scores[predicted].tolist(), strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        total += of_region([x - normaliser for x in row], score)
    return total / len(logits)


def _cross_entropy(log_q: list[float], score: list[float]) -> float:
    return -log_q[max(range(len(score)), key=score.__getitem__)]


def _divergence(log_q: list[float], score: list[float]) -> float:
    p = [x / sum(score) for x in score]
    return sum(x * (math.log(x) - y) for x, y in zip(p, log_q, strict=True) if x > 0)


@pytest.mark.parametrize(
    ("target", "weighted", "of_region"),
    [
        ("hard", False, _cross_entropy),
        ("hard", True, lambda log_q, score: max(score) * _cross_entropy(log_q, score)),
        ("kl", False, _divergence),
    ],
)
def test_the_loss_equals_its_slow_transcription(target: str, weighted: bool, of_region: Callable) -> None:
    torch.manual_seed(0)
    mrc = MaskedRegionClassification(6, 5, target, weight_by_confidence=weighted)  # type: ignore[arg-type]
    outputs, scores, predicted = _regions()
    loss = mrc(outputs, scores.half().float(), predicted)
    assert loss.item() == pytest.approx(_mean_slow(mrc, of_region), rel=1e-3)
    loss = mrc(outputs, scores, predicted)
    assert loss.item() == pytest.approx(_mean_slow(mrc, of_region), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in mrc.parameters())
    flat = mrc(outputs.flatten(0, 1), scores.flatten(0, 1), predicted.flatten())
    torch.testing.assert_close(flat, loss)
    assert mrc(outputs, scores, torch.zeros_like(predicted)).item() == 0
    nothing = mrc(outputs[:0, 0], scores[:0, 0], predicted[:0, 0])
    assert nothing.item() == 0


def test_a_perfect_prediction_has_no_divergence() -> None:
    mrc = MaskedRegionClassification(6, 5, "kl")
    outputs, scores, predicted = _regions()
    nn.init.zeros_(mrc.decoder.weight)
    mrc.decoder.bias.data = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log()
    same = mrc.decoder.bias.detach().exp().expand_as(scores) * 7  # scores need not sum to 1
    assert mrc(outputs, same, predicted).item() == pytest.approx(0, abs=1e-6)


def test_regions_are_chosen_as_for_the_regression_of_features() -> None:
    real = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < 0.8
    found = MaskedRegionClassification(6, 5, "hard").mask(real, Draws(1, 2, "cpu"))
    expected = MaskedRegionModelling(6, 6, 4).mask(real, Draws(1, 2, "cpu"))
    assert expected.predicted_BR.any()
    assert torch.equal(found.predicted_BR, expected.predicted_BR)
    assert torch.equal(found.hidden_BR, expected.hidden_BR)
    assert all(torch.equal(*pair) for pair in zip(found.chosen, expected.chosen, strict=True))


def test_wrong_settings_are_named() -> None:
    outputs, scores, predicted = _regions()
    with pytest.raises(ModelError, match=r"scores of 5 classes.* expects 9; set model\.region_classes=5"):
        MaskedRegionClassification(6, 9, "kl")(outputs, scores, predicted)
    for rate in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(ModelError, match=r"model\.mrm_prob .* must lie in \(0, 1\].*model\.objectives"):
            MaskedRegionClassification(6, 5, "kl", mask_prob=rate)
        with pytest.raises(ModelError, match=r"model\.mrm_prob"):
            MaskedRegionModelling(6, 6, 4, mask_prob=rate)
        with pytest.raises(ModelError, match=r"model\.mlm_prob"):
            MaskedLanguageModelling(None, 6, vocab_size=9, mask_token_id=4, mask_prob=rate)
    with pytest.raises(ModelError, match="'soft' is unknown; known: hard, kl"):
        MaskedRegionClassification(6, 5, "soft")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="weight_by_confidence"):
        MaskedRegionClassification(6, 5, "kl", weight_by_confidence=True)


@pytest.mark.parametrize("target", ["hard", "kl"])
def test_it_never_waits_for_the_device(target: str) -> None:
    mrc = MaskedRegionClassification(6, 5, target).to("meta")  # type: ignore[arg-type]
    outputs, scores, predicted = (x.to("meta") for x in _regions())
    mrc.mask(predicted, Draws(0, 0, "meta"))
    loss = mrc(outputs, scores, predicted)
    loss.backward()
    assert loss.device.type == "meta"


def test_a_tied_regression_decodes_with_the_transpose_of_the_embedding() -> None:
    torch.manual_seed(0)
    embedding = nn.Linear(4, 6)  # region width 4, stream width 6
    mrm = MaskedRegionModelling(None, 6, 4, tied=True)
    nn.init.normal_(mrm.bias)
    outputs, features, predicted = torch.randn(3, 5, 6), torch.randn(3, 5, 4), torch.rand(3, 5) < 0.5
    loss = mrm(outputs, features, predicted, feature_WD=embedding.weight)
    total = 0.0
    hidden = mrm.norm(gelu(mrm.transform(outputs)))[predicted].tolist()
    for h, feature in zip(hidden, features[predicted].tolist(), strict=True):
        for d in range(4):
            guess = sum(h[w] * embedding.weight[w, d].item() for w in range(6)) + mrm.bias[d].item()
            total += (guess - feature[d]) ** 2 / 4
    assert loss.item() == pytest.approx(total / len(hidden), rel=1e-4)
    loss.backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.any()


def test_heads_at_stream_width_have_no_layer_back() -> None:
    heads = {
        "mlm": MaskedLanguageModelling(None, 6, vocab_size=9, mask_token_id=4),
        "mrm": MaskedRegionModelling(None, 6, 4),
        "tied": MaskedRegionModelling(None, 6, 4, tied=True),
    }
    names = {name: set(dict(head.named_parameters())) for name, head in heads.items()}
    common = {"transform.weight", "transform.bias", "norm.weight", "norm.bias"}
    assert names["mlm"] == names["tied"] == common | {"bias"}
    assert names["mrm"] == common | {"decoder.weight", "decoder.bias"}
    words, targets = torch.randn(9, 6), torch.tensor([3, -1])
    assert heads["mlm"](torch.randn(2, 6), targets, words).item() > 0


def test_a_tied_decoder_and_its_matrix_go_together() -> None:
    outputs, features, predicted = torch.randn(2, 6), torch.randn(2, 4), torch.ones(2, dtype=torch.bool)
    with pytest.raises(TypeError, match="needs it"):
        MaskedRegionModelling(None, 6, 4, tied=True)(outputs, features, predicted)
    with pytest.raises(TypeError, match="belongs to a tied decoder"):
        MaskedRegionModelling(None, 6, 4)(outputs, features, predicted, feature_WD=torch.randn(6, 4))
