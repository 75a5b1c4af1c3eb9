"""The graph of entities that a model keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.entity_graph.neighbours import Neighbours
from lightning_modules.errors import ModelError


class EntityGraph(nn.Module):
    """Nodes and neighbours; by cosine alone."""

    tokens_NL: Tensor
    hash: Tensor
    index_NK: Tensor
    score_NK: Tensor

    def __init__(self, method: str = "adagae", rounds: int = 10, steps: int = 50, seed: int = 0) -> None:
        super().__init__()
        self.method, self.rounds, self.steps, self.seed = method, rounds, steps, seed
        self.register_buffer("tokens_NL", torch.zeros(0, 0, dtype=torch.int32))
        self.register_buffer("hash", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("index_NK", torch.zeros(0, 0, dtype=torch.int64))
        self.register_buffer("score_NK", torch.zeros(0, 0))

    @property
    def num_nodes(self) -> int:
        return len(self.tokens_NL)

    @property
    def is_built(self) -> bool:
        return len(self.index_NK) > 0

    @property
    def neighbours(self) -> Neighbours:
        return Neighbours(self.index_NK, self.score_NK)

    def set_entities(self, tokens_NL: Tensor, table_hash: str) -> None:
        hash_bytes = torch.tensor(list(table_hash.encode()), dtype=torch.uint8)
        if len(self.hash) and not torch.equal(self.hash.cpu(), hash_bytes):
            raise ModelError(f"the graph is of entity table {bytes(self.hash.tolist()).decode()}, not {table_hash}")
        self.tokens_NL, self.hash = tokens_NL.to(self.hash.device), hash_bytes.to(self.hash.device)

    def rebuild(self, features_ND: Tensor, interval: int) -> None:
        unit_ND = nn.functional.normalize(features_ND.float(), dim=-1)
        score_NN = (unit_ND @ unit_ND.T).fill_diagonal_(float("-inf"))
        self.score_NK, self.index_NK = score_NN.topk(min(10, len(unit_ND) - 1))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name, own in list(self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if own is not None and stored is not None and own.shape != stored.shape:
                setattr(self, name, torch.empty_like(stored, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
