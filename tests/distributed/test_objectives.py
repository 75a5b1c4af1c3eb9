"""DDP equals one process on the whole batch for objectives that draw captions from all ranks or count regions."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.distributed import all_sum, gather_rows, rank, world_size
from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws
from lightning_modules.objectives.image_text_matching import ImageTextMatching
from lightning_modules.objectives.masked_language_modelling import MaskedLanguageModelling
from lightning_modules.objectives.masked_region_classification import MaskedRegionClassification
from lightning_modules.objectives.masked_region_modelling import MaskedRegionModelling
from lightning_modules.objectives.word_region_alignment import WordRegionAlignment
from tests.distributed.gloo import run_on_ranks

BATCH, TOKENS, REGIONS, FEATURES, CLASSES, WIDTH, WORDS = 12, 7, 5, 6, 4, 8, 20  # the batch divides by 1, 2 and 3


class Rows(NamedTuple):
    """Pictures and captions of this rank."""

    tokens_BT: Tensor
    token_mask_BT: Tensor
    features_BRD: Tensor
    region_mask_BR: Tensor
    scores_BRC: Tensor


def _rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    lengths = 3 + torch.randint(TOKENS - 2, (BATCH, 1), generator=generator)
    counts = torch.randint(1, REGIONS + 1, (BATCH, 1), generator=generator)
    tokens = torch.randint(5, WORDS, (BATCH, TOKENS), generator=generator)
    tokens[7], lengths[7] = tokens[1], lengths[1]  # the same caption, on two ranks
    whole = Rows(
        tokens,
        torch.arange(TOKENS) < lengths,
        torch.rand(BATCH, REGIONS, FEATURES, generator=generator),
        torch.arange(REGIONS) < counts,
        torch.rand(BATCH, REGIONS, CLASSES, generator=generator),
    )
    share = BATCH // world_size()
    return Rows._make(field[rank() * share : (rank() + 1) * share] for field in whole)


class Toy(nn.Module):
    """Words and regions that see the mean of the other modality, and every objective on top."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.feature = nn.Embedding(WORDS, WIDTH), nn.Linear(FEATURES, WIDTH)
        self.mix, self.pooler = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.mlm = MaskedLanguageModelling(None, WIDTH, WORDS, mask_token_id=4, mask_prob=0.5)
        self.mrfr = MaskedRegionModelling(None, WIDTH, FEATURES, mask_prob=0.5, tied=True)
        self.hard = MaskedRegionClassification(WIDTH, CLASSES, "hard", mask_prob=0.5, weight_by_confidence=True)
        self.kl = MaskedRegionClassification(WIDTH, CLASSES, "kl", mask_prob=0.5)
        self.itm, self.mined = ImageTextMatching(WIDTH), ImageTextMatching(WIDTH, candidates=3)
        self.wra = WordRegionAlignment(weight=1.0)

    def fuse(
        self, tokens_BT: Tensor, token_mask_BT: Tensor, rows: Rows, hidden_BR: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text outputs, image outputs, and a pooled vector."""
        features_BRD = rows.features_BRD
        if hidden_BR is not None:
            features_BRD = features_BRD.masked_fill(hidden_BR[..., None], 0.0)
        text_BTD, image_BRD = self.word(tokens_BT), self.feature(features_BRD)
        text_B1D = (text_BTD * token_mask_BT[..., None]).sum(1, keepdim=True) / TOKENS
        image_B1D = (image_BRD * rows.region_mask_BR[..., None]).sum(1, keepdim=True) / REGIONS
        pooled_BD = self.pooler(torch.cat([text_B1D, image_B1D * text_B1D], -1)).squeeze(1).tanh()
        text_BTD = self.mix(torch.cat([text_BTD, image_B1D.expand_as(text_BTD)], -1)).tanh()
        image_BRD = self.mix(torch.cat([image_BRD, text_B1D.expand_as(image_BRD)], -1)).tanh()
        return text_BTD, image_BRD, pooled_BD

    def losses(self, rows: Rows, draws: Draws) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each loss, and whose captions matched."""
        captions = (rows.tokens_BT, rows.token_mask_BT)
        losses, matched = {}, {}
        masked = self.mlm.mask(*captions, draws)
        text_BTD, _, _ = self.fuse(masked.tokens_BT, rows.token_mask_BT, rows)
        losses["mlm"] = self.mlm(text_BTD, masked.targets_BT, self.word.weight)
        regions = self.kl.mask(rows.region_mask_BR, draws)
        _, image_BRD, _ = self.fuse(*captions, rows, regions.hidden_BR)
        losses["mrfr"] = self.mrfr(image_BRD, rows.features_BRD, regions.predicted_BR, feature_WD=self.feature.weight)
        for name, objective in (("hard", self.hard), ("kl", self.kl)):
            losses[name] = objective(image_BRD, rows.scores_BRC, regions.predicted_BR)
        for name, objective in (("itm", self.itm), ("mined", self.mined)):

            def score(tokens_BT: Tensor, token_mask_BT: Tensor, itm: ImageTextMatching = objective) -> Tensor:
                return itm.score(self.fuse(tokens_BT, token_mask_BT, rows)[2])

            pairs = objective.exchange(*captions, draws, score)
            text_BTD, image_BRD, pooled_BD = self.fuse(pairs.tokens_BT, pairs.token_mask_BT, rows)
            losses[name] = objective(pooled_BD, pairs.matched_B)
            losses[f"{name}_wra"] = self.wra(
                text_BTD, pairs.token_mask_BT, image_BRD, rows.region_mask_BR, pairs.matched_B
            )
            matched[f"matched/{name}"] = gather_rows(pairs.matched_B.long())
            matched[f"captions/{name}"] = gather_rows(pairs.tokens_BT * pairs.token_mask_BT)
        return losses, matched


def _results() -> dict[str, Tensor]:
    """Everything at once: starting a process group costs seconds. Steps with different draws, summed."""
    torch.manual_seed(0)
    toy, rows, results = Toy(), _rows(), {}
    for step in range(4):
        losses, matched = toy.losses(rows, Draws(0, step, "cpu"))
        torch.stack(list(losses.values())).sum().backward()
        results |= {f"{step}/{name}": all_sum(loss.detach()) / world_size() for name, loss in losses.items()}
        results |= {f"{step}/{name}": value for name, value in matched.items()}
    for name, parameter in toy.named_parameters():
        assert parameter.grad is not None, name
        results[f"grad/{name}"] = all_sum(parameter.grad) / world_size()
    shares = {"mlm": 2.0, "itm": 1.0, "mrfr": 1.0}
    chosen = [list(shares).index(Draws(0, step, "cpu").choose(shares)) for step in range(50)]
    results["choice"] = torch.tensor(chosen)
    try:  # one sample per rank: none for one process, two for two
        one = (field[:1] for field in rows[:2])
        ImageTextMatching(WIDTH).exchange(*one, Draws(0, 0, "cpu"))
        results["_refused"] = torch.tensor(False)
    except ModelError:
        results["_refused"] = torch.tensor(True)
    return results


@pytest.mark.parametrize("world", [2, 3])
def test_losses_gradients_and_captions_equal_one_process(world: int, tmp_path: Path) -> None:
    expected = _results()
    assert expected.pop("_refused").item()
    assert all(expected[f"0/{name}"] > 0 for name in ("mlm", "mrfr", "hard", "kl", "itm", "mined"))
    assert all(value.any() for name, value in expected.items() if name.startswith("grad/"))
    for name in ("itm", "mined"):
        shares = [expected[f"{step}/matched/{name}"].float().mean().item() for step in range(4)]
        assert all(0 < share < 1 for share in shares)
    assert not torch.equal(expected["0/captions/itm"], expected["0/captions/mined"])
    assert len(expected["choice"].unique()) == 3
    for found in run_on_ranks(world, tmp_path, _results):
        assert not found.pop("_refused").item()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=2e-5, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
