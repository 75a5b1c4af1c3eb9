"""What enters the two streams: token embeddings and region embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.errors import ModelError
from lightning_modules.layers.attention import NORM_EPS


class TextEmbedding(nn.Module):
    """BERT's sum of word, position and segment vectors, then LayerNorm and dropout. Segment ids are all 0."""

    def __init__(self, vocab_size: int, width: int, max_positions: int, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(vocab_size, width, padding_idx=0)
        self.position = nn.Embedding(max_positions, width)
        self.segment = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens_BT: Tensor, first: int = 0) -> Tensor:
        """Vectors of tokens that stand at the positions from `first` on."""
        last, known = first + tokens_BT.shape[1], self.position.num_embeddings
        if last > known:
            raise ModelError(
                f"texts of {last} tokens, but model.max_positions={known}: raise it (a pretrained text tower has what "
                "it came with), or shorten the text (model.text_length)"
            )
        position_TD = self.position.weight[first : first + tokens_BT.shape[1]]
        return self.dropout(self.norm(self.word(tokens_BT) + position_TD + self.segment.weight[0]))


class RegionEmbedding(nn.Module):
    """Linear of the region feature plus Linear of its box (x1, y1, x2, y2, area), LayerNorm unless told, dropout."""

    def __init__(self, region_width: int, width: int, dropout: float, norm: bool = True) -> None:
        super().__init__()
        self.feature = nn.Linear(region_width, width)
        self.box = nn.Linear(5, width)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions_BRD: Tensor, boxes_BR5: Tensor) -> Tensor:
        return self.dropout(self.norm(self.feature(regions_BRD) + self.box(boxes_BR5)))


def init_bert_style(module: nn.Module, std: float = 0.02) -> None:
    """Normal(0, std) weights and zero biases, as BERT; LayerNorm 1 and 0. Apply with `module.apply`."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
