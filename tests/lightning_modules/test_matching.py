"""Image-text matching: whose caption a sample gets, and what is asked about it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_matching import ImageTextMatching


def _captions(words: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Captions of any lengths; what lies under the mask differs from one to the next."""
    mask = torch.arange(6) < torch.tensor([len(caption) for caption in words])[:, None]
    padding = 90 + torch.arange(len(words))[:, None].expand(-1, 6)
    tokens = padding.clone()
    for row, caption in enumerate(words):
        tokens[row, : len(caption)] = torch.tensor(caption)
    return tokens, mask


def _read(tokens: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True)]


def _exchange_slow(words: list[list[int]], uniform: Tensor, logits: list[list[float]]) -> list[int]:
    """Whose caption each sample gets: draw among those that read differently, one after the other, take the best."""
    taken = []
    for row, (fate, *places) in enumerate(uniform.tolist()):
        others = [other for other, caption in enumerate(words) if caption != words[row]]
        drawn = [others.pop(int(place * len(others))) for place in places if others]
        best = max(drawn, key=lambda other: logits[row][other]) if drawn else row
        taken.append(best if fate < 0.5 else row)
    return taken


@settings(deadline=None)
@given(
    words=st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=3), min_size=2, max_size=9),
    candidates=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_the_exchange_equals_its_slow_transcription(words: list[list[int]], candidates: int, seed: int) -> None:
    tokens, mask = _captions(words)
    logits = torch.rand(len(words), len(words), generator=torch.Generator().manual_seed(seed))
    rows_of = {tuple(row.tolist()): number for number, row in enumerate(tokens)}
    calls = []

    def score(candidate_tokens: Tensor, candidate_mask: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        columns = [rows_of[tuple(row.tolist())] for row in candidate_tokens]
        assert torch.equal(candidate_mask, mask[columns])
        calls.append(columns)
        return logits[torch.arange(len(words)), columns]

    found = ImageTextMatching(8, candidates).exchange(tokens, mask, Draws(seed, 0, "cpu"), score)
    uniform = Draws(seed, 0, "cpu").uniform(len(words), 1 + candidates)
    taken = _exchange_slow(words, uniform, logits.tolist())
    assert torch.equal(found.tokens_BT, tokens[taken])
    assert torch.equal(found.token_mask_BT, mask[taken])
    assert found.matched_B.tolist() == [row == other for row, other in enumerate(taken)]
    assert len(calls) == (candidates if candidates > 1 else 0)
    # What is promised, apart from how it is drawn:
    for before, after, matched in zip(
        _read(tokens, mask), _read(found.tokens_BT, found.token_mask_BT), found.matched_B.tolist(), strict=True
    ):
        assert (after == before) == matched
        assert list(after) in words


def test_half_of_the_pairs_stay_matched_and_every_other_caption_is_as_likely() -> None:
    words = [[5, number] for number in range(10, 16)] + [[5, 10]]  # rows 0 and 6 read the same
    tokens, mask = _captions(words)
    counts, matched, steps = torch.zeros(7, 7), 0.0, 2000
    for step in range(steps):
        found = ImageTextMatching(8).exchange(tokens, mask, Draws(0, step, "cpu"))
        counts[torch.arange(7), found.tokens_BT[:, 2] - 90] += 1  # padding tells whose caption it is
        matched += found.matched_B.float().mean().item() / steps
    assert matched == pytest.approx(0.5, abs=0.02)
    assert counts[0, 6] == counts[6, 0] == 0
    for row in range(7):
        others = [other for other in range(7) if words[other] != words[row]]
        share = counts[row, others] / counts[row, others].sum()
        torch.testing.assert_close(share, torch.full((len(others),), 1 / len(others)), atol=0.05, rtol=0)


def test_hard_negatives_are_the_captions_that_match_best() -> None:
    tokens, mask = _captions([[5, number] for number in range(10, 18)])

    def score(candidate_tokens: Tensor, candidate_mask: Tensor) -> Tensor:
        return candidate_tokens[:, 1].float()

    found = ImageTextMatching(8, candidates=7).exchange(tokens, mask, Draws(0, 0, "cpu"), score)
    exchanged = ~found.matched_B
    assert exchanged.any()
    best = torch.full((8,), 17)
    best[7] = 16  # its own caption is the best one
    assert torch.equal(found.tokens_BT[exchanged, 1], best[exchanged])


def test_fewer_captions_than_candidates_never_bring_the_own_one_back() -> None:
    tokens, mask = _captions([[5, 6], [5, 7]])
    itm = ImageTextMatching(8, candidates=4)
    exchanged = 0
    for step in range(20):

        def score(candidate_tokens: Tensor, candidate_mask: Tensor) -> Tensor:
            return (candidate_tokens == tokens).all(1).float()  # the own caption matches best, as it should

        found = itm.exchange(tokens, mask, Draws(0, step, "cpu"), score)
        assert torch.equal((found.tokens_BT == tokens).all(1), found.matched_B)
        exchanged += int((~found.matched_B).sum())
    assert exchanged > 10


def test_without_another_caption_every_pair_stays_matched() -> None:
    tokens, mask = _captions([[5, 6]] * 4)
    for candidates in (1, 3):
        itm = ImageTextMatching(8, candidates)
        found = itm.exchange(tokens, mask, Draws(0, 0, "cpu"), lambda tokens, mask: torch.zeros(len(tokens)))
        assert found.matched_B.all()
        assert torch.equal(found.tokens_BT, tokens)


def test_the_loss_equals_its_slow_transcription() -> None:
    torch.manual_seed(0)
    itm, pooled = ImageTextMatching(4), torch.randn(5, 4)
    matched = [True, False, False, True, True]
    weight, bias = itm.head.weight[0].tolist(), itm.head.bias.item()
    expected = 0.0
    for row, is_matched in zip(pooled.tolist(), matched, strict=True):
        logit = sum(x * w for x, w in zip(row, weight, strict=True)) + bias
        expected -= math.log(1 / (1 + math.exp(-logit if is_matched else logit))) / 5
    assert itm(pooled, torch.tensor(matched)).item() == pytest.approx(expected, rel=1e-5)
    alone = itm.score(pooled)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(itm.score(pooled), alone)  # in fp32: the logit ranks


def test_scoring_candidates_in_bfloat16_leaves_the_model_trainable() -> None:
    """Autocast keeps the weights it has cast; those cast while scoring have no gradient."""
    itm, pooler, table = ImageTextMatching(4, candidates=2), torch.nn.Linear(4, 4), torch.randn(99, 4)
    tokens, mask = _captions([[5, 6], [5, 7], [5, 8], [9]])
    with torch.autocast("cpu", dtype=torch.bfloat16):

        def fuse(tokens: Tensor) -> Tensor:
            return pooler(table[tokens].mean(1))

        found = itm.exchange(tokens, mask, Draws(0, 0, "cpu"), lambda tokens, mask: itm.score(fuse(tokens)))
        itm(fuse(found.tokens_BT), found.matched_B).backward()
    assert pooler.weight.grad is not None
    assert pooler.weight.grad.any()


def test_wrong_settings_are_named() -> None:
    tokens, mask = _captions([[5, 6]])
    with pytest.raises(ModelError, match=r"data\.batch_size × processes must be at least 2"):
        ImageTextMatching(4).exchange(tokens, mask, Draws(0, 0, "cpu"))
    with pytest.raises(ModelError, match=r"model\.matching_candidates 0 must"):
        ImageTextMatching(4, candidates=0)
    with pytest.raises(TypeError, match="score"):
        ImageTextMatching(4, candidates=2).exchange(*_captions([[5], [6]]), Draws(0, 0, "cpu"))


@pytest.mark.parametrize("candidates", [1, 3])
def test_it_never_waits_for_the_device(candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: nullcontext())  # it knows no meta device
    itm, table = ImageTextMatching(4, candidates).to("meta"), torch.randn(99, 4, device="meta")
    tokens, mask = (x.to("meta") for x in _captions([[5, 6], [5, 7], [8]]))
    found = itm.exchange(tokens, mask, Draws(0, 0, "meta"), lambda tokens, mask: itm.score(table[tokens].mean(1)))
    loss = itm(table[found.tokens_BT].mean(1), found.matched_B)
    loss.backward()
    assert loss.device.type == found.matched_B.device.type == "meta"
