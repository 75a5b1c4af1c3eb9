"""ITM: does this caption belong to this picture?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows, world_size
from lightning_modules.errors import ModelError
from lightning_modules.objectives.draws import Draws

Score = Callable[[Tensor, Tensor], Tensor]


class Exchanged(NamedTuple):
    """Captions of which some are another sample's; matched_B is False for these."""

    tokens_BT: Tensor
    token_mask_BT: Tensor
    matched_B: Tensor


@torch.no_grad()
def exchange_captions(
    tokens_BT: Tensor, token_mask_BT: Tensor, draws: Draws, candidates: int = 1, score: Score | None = None
) -> Exchanged:
    """With probability 1/2 give a sample the caption of another one, drawn from the batches of all ranks.

    Near-duplicates are the rule in shops: a caption that reads like the sample's own is no negative, and a sample
    for which there is no other caption stays matched.

    Inputs:
        tokens_BT, token_mask_BT: Captions, of the same shape on every rank.
        candidates: Captions drawn for an exchange; of several the one with the highest score is taken.
        score: How well captions match this rank's pictures: (tokens_BT, token_mask_BT) -> logit_B. Called without
            gradient once per candidate, if there are several.

    Raises:
        ModelError: the global batch is a single sample.
    """
    rows = len(tokens_BT)
    if rows * world_size() < 2:
        raise ModelError(
            "a matching objective needs another caption in the batch: data.batch_size × processes must be at least 2"
        )
    uniform_BK = draws.send(draws.uniform(rows, 1 + candidates))
    captions_G2T = gather_rows(torch.stack([tokens_BT, token_mask_BT.to(tokens_BT.dtype)], 1))
    tokens_GT, token_mask_GT = captions_G2T[:, 0], captions_G2T[:, 1].bool()
    read_GT = torch.where(token_mask_GT, tokens_GT, -1)
    read_B1T = torch.where(token_mask_BT, tokens_BT, -1).unsqueeze(1)
    other_BG = (read_B1T != read_GT).any(-1)
    row_BK, exists_BK = _without_replacement(other_BG, uniform_BK[:, 1:])
    row_B = row_BK[:, 0]
    if candidates > 1:
        if score is None:
            raise TypeError("several candidates need a score")
        logits_BK = torch.stack(
            [score(tokens_GT[row_B], token_mask_GT[row_B]).float() for row_B in row_BK.unbind(1)], 1
        )
        hardest_B1 = logits_BK.masked_fill(~exists_BK, float("-inf")).argmax(1, keepdim=True)
        row_B = row_BK.gather(1, hardest_B1).squeeze(1)
        # Weights that autocast has cast without gradient must not serve the pass with gradient that follows.
        torch.clear_autocast_cache()
    matched_B = (uniform_BK[:, 0] >= 0.5) | ~exists_BK[:, 0]
    return Exchanged(
        torch.where(matched_B[:, None], tokens_BT, tokens_GT[row_B]),
        torch.where(matched_B[:, None], token_mask_BT, token_mask_GT[row_B]),
        matched_B,
    )


class ImageTextMatching(nn.Module):
    """A yes-or-no question about each picture and caption, half of the captions exchanged.

    The head is one Linear; the pooler of the fused stream belongs to the model.
    Source: UNITER (arXiv 1909.11740) §3.2, ITM; ViLBERT (arXiv 1908.02265) §2.2, alignment prediction; LXMERT
    (arXiv 1908.07490) §3.1.3, cross-modality matching. Several candidates: the hard negatives of UNITER's fine-tuning
    for retrieval, in its released `UniterForImageTextRetrievalHardNeg` the ones that score highest without gradient
    (and without dropout, which here stays as it is).
    Differs: one logit instead of two, of which only the difference counts. Negatives are captions of the global batch,
    not of the whole data set, and never equal to the sample's own. UNITER exchanges caption or picture.

    Args:
        width: Width of the pooled vector.
        candidates: Captions drawn for an exchange; of several the one that matches best is taken.
    """

    def __init__(self, width: int, candidates: int = 1) -> None:
        super().__init__()
        if candidates < 1:
            raise ModelError(f"model.matching_candidates {candidates} must be at least 1 (1 = any other caption)")
        self.candidates = candidates
        self.head = nn.Linear(width, 1)

    def exchange(self, tokens_BT: Tensor, token_mask_BT: Tensor, draws: Draws, score: Score | None = None) -> Exchanged:
        """`exchange_captions` with this objective's number of candidates."""
        return exchange_captions(tokens_BT, token_mask_BT, draws, self.candidates, score)

    def score(self, pooled_BD: Tensor) -> Tensor:
        """How well picture and caption match, as a logit in fp32."""
        with torch.autocast(pooled_BD.device.type, enabled=False):
            return self.head(pooled_BD.float()).squeeze(-1)

    def forward(self, pooled_BD: Tensor, matched_B: Tensor) -> Tensor:
        """Binary cross-entropy averaged over this rank's rows, whose number is the same on every rank."""
        return F.binary_cross_entropy_with_logits(self.score(pooled_BD), matched_B.float())


def _without_replacement(eligible_BG: Tensor, uniform_BK: Tensor) -> tuple[Tensor, Tensor]:
    """K distinct eligible columns of each row, each set equally likely, and which of the K there are."""
    rows, existing = [], []
    for uniform_B in uniform_BK.unbind(1):
        count_B = eligible_BG.sum(1)
        nth_B = torch.minimum((uniform_B * count_B).long(), count_B - 1)  # a product just below the count rounds up
        row_B1 = torch.searchsorted(eligible_BG.cumsum(1), nth_B[:, None] + 1)  # 0 where nothing is eligible
        eligible_BG = eligible_BG.scatter(1, row_B1, False)
        rows.append(row_B1.squeeze(1))
        existing.append(count_B > 0)
    return torch.stack(rows, 1), torch.stack(existing, 1)
