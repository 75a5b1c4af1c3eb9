"""MLM: predict the masked tokens of the caption."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lightning_modules.distributed import mean_over_ranks
from lightning_modules.layers.attention import NORM_EPS
from lightning_modules.objectives.chosen import Chosen, check_rate, chosen
from lightning_modules.objectives.draws import Draws

NOT_MASKED = -1


class MaskedTokens(NamedTuple):
    """Tokens with some replaced, the original ids to predict (−1 = not predicted), and where those may stand."""

    tokens_BT: Tensor
    targets_BT: Tensor
    chosen: Chosen


class MaskedLanguageModelling(nn.Module):
    """BERT's cloze task on the text output, averaged over all masked tokens of the global batch.

    Head: Linear back to the stream width, BERT's transform (Linear, GELU, LayerNorm), and a decoder tied to the word
    embeddings. It runs on the positions it is given, which are the chosen ones: about 15 % of the logits of a
    full-length head.
    Source: BERT (arXiv 1810.04805) §3.1; CAPTURE §4.3 and its released `cls` head.

    Args:
        output_width: Width of the text outputs this head reads; None = `width`, and no layer back to it.
        width: Width of the word embeddings.
        vocab_size: Number of tokens.
        mask_token_id: Id of [MASK].
        mask_prob: Share of tokens predicted; of these 80 % become [MASK], 10 % a random token, 10 % stay.
        shared: Another such objective whose transform and bias this one uses instead of its own.
    """

    def __init__(
        self,
        output_width: int | None,
        width: int,
        vocab_size: int,
        mask_token_id: int,
        mask_prob: float = 0.15,
        shared: MaskedLanguageModelling | None = None,
    ) -> None:
        super().__init__()
        check_rate("mlm", mask_prob)
        self.vocab_size = vocab_size
        self.mask_token_id = mask_token_id
        self.mask_prob = mask_prob
        self.back = nn.Identity() if output_width is None else nn.Linear(output_width, width)
        self._shared = None if shared is None else (shared,)  # in a tuple: its weights are listed under its own name
        if shared is None:
            self.transform = nn.Linear(width, width)
            self.norm = nn.LayerNorm(width, eps=NORM_EPS)
            self.bias = nn.Parameter(torch.zeros(vocab_size))

    def mask(self, tokens_BT: Tensor, token_mask_BT: Tensor, draws: Draws, separated: bool = False) -> MaskedTokens:
        """Choose and replace tokens; [CLS], [SEP] and padding are never chosen.

        Args:
            separated: [SEP] not only closes the sequence, but also stands between its parts.
        """
        batch, length = tokens_BT.shape
        uniform_B3T = draws.uniform(batch, 3, length)
        choice_BT, fate_BT, other_BT = draws.send(uniform_B3T).unbind(1)
        last_B1 = token_mask_BT.sum(1, keepdim=True) - 1  # position of [SEP]
        position_T = torch.arange(length, device=tokens_BT.device)
        maskable = token_mask_BT & (position_T > 0) & (position_T < last_B1)
        if separated:
            maskable &= tokens_BT != tokens_BT.gather(1, last_B1.clamp(min=0))
        predicted = maskable & (choice_BT < self.mask_prob)
        replaced = torch.where(predicted & (fate_BT < 0.8), self.mask_token_id, tokens_BT)
        random_tokens = (other_BT * self.vocab_size).long()
        replaced = torch.where(predicted & (fate_BT >= 0.8) & (fate_BT < 0.9), random_tokens, replaced)
        targets = torch.where(predicted, tokens_BT, NOT_MASKED)
        return MaskedTokens(replaced, targets, chosen(uniform_B3T[:, 0] < self.mask_prob, draws))

    def forward(self, outputs_MD: Tensor, targets_M: Tensor, word_VD: Tensor) -> Tensor:
        """Cross-entropy, averaged over the masked tokens of all ranks (0 where there are none).

        Inputs:
            outputs_MD: Text outputs at any positions, in any shape (..., D).
            targets_M: Their original tokens, −1 where none is to be predicted.
            word_VD: The word embeddings.
        """
        head = self if self._shared is None else self._shared[0]
        hidden_MD = head.norm(F.gelu(head.transform(self.back(outputs_MD))))
        logits_MV = F.linear(hidden_MD, word_VD, head.bias).float()
        total = F.cross_entropy(logits_MV.flatten(0, -2), targets_M.flatten(), ignore_index=NOT_MASKED, reduction="sum")
        return mean_over_ranks(total, (targets_M != NOT_MASKED).sum())
