"""The stored entities of a split's captions -> the fields of a batch, and the tokens of the graph's nodes.

Shape legend: B batch, E entities of a caption, T tokens, N nodes, L tokens of a node.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import InputSpec, ProductBatch
from datamodules.entities import how_to_add, open_rows
from datamodules.errors import DataError
from datamodules.manifest import Manifest
from datamodules.tokenizer import AnyTokenizer, Tokenizer

NODE_LENGTH = 16  # the most tokens of an entity as a node of the graph, [SEP] included


class CaptionEntities:
    """Entities of the captions of one split, by row. Pickled to the loader's workers, which map the file themselves.

    Args:
        folder: shard folder.
        split: whose rows.
        manifest: of the folder.
        names: of the entity table.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, names: list[str]) -> None:
        self.folder, self.split, self.manifest, self.names = folder, split, manifest, names
        self._rows_NE: np.ndarray | None = None
        self._tokens: dict[int, list[int]] = {}  # of the names met so far

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_rows_NE": None, "_tokens": {}}

    def added(self, batch: ProductBatch, tokenizer: AnyTokenizer, spec: InputSpec) -> ProductBatch:
        """The batch with its three fields of entities."""
        rows = batch.index_B.tolist()
        assert isinstance(tokenizer, Tokenizer), "check_tokenizer"
        if self._rows_NE is None:
            self._rows_NE = open_rows(self.folder, self.split, self.manifest)
        entities_BE = np.full((len(rows), spec.num_entities), -1, np.int64)
        stored_BE = self._rows_NE[rows][:, : spec.num_entities]
        entities_BE[:, : stored_BE.shape[1]] = stored_BE
        if stored_BE.max(initial=-1) >= len(self.names):
            raise DataError(
                f"{self.folder}: entity {stored_BE.max()} of a {self.split} caption is not among the "
                f"{len(self.names)} of the table. {how_to_add(self.folder)}"
            )
        lists = [[entity for entity in row if entity >= 0] for row in stored_BE.tolist()]
        new = sorted({entity for row in lists for entity in row} - self._tokens.keys())
        self._tokens.update(zip(new, tokenizer.encode_words([self.names[entity] for entity in new]), strict=True))
        phrases = [[self._tokens[entity] for entity in row] for row in lists]
        tokens_BT, mask_BT = tokenizer.encode_phrases(phrases, spec.entity_length)
        return batch._replace(
            entity_tokens_BT=tokens_BT, entity_token_mask_BT=mask_BT, entities_BE=torch.from_numpy(entities_BE)
        )


def node_tokens(names: list[str], tokenizer: AnyTokenizer) -> Tensor:
    """Tokens of entities one by one, int32 [N, L]: without [CLS], with [SEP], filled up with 0 to the longest one.

    Longer than 16 none becomes; a node is embedded at full length in each step that draws it.

    Raises:
        DataError: the tokenizer has no [SEP].
    """
    if not isinstance(tokenizer, Tokenizer):
        raise _unfit("")
    tokens_NL = torch.zeros(len(names), NODE_LENGTH, dtype=torch.int32)
    longest = 1
    for row, tokens in enumerate(tokenizer.encode_words(names)):
        framed = [*tokens[: NODE_LENGTH - 1], tokenizer.sep_id]
        tokens_NL[row, : len(framed)] = torch.tensor(framed, dtype=torch.int32)
        longest = max(longest, len(framed))
    return tokens_NL[:, :longest].contiguous()


def check_tokenizer(tokenizer: AnyTokenizer, spec: InputSpec) -> None:
    """Refuse a tokenizer that cannot frame entities.

    Raises:
        DataError: it has no [SEP].
    """
    if not isinstance(tokenizer, Tokenizer):
        raise _unfit(spec.tokenizer)


def _unfit(name: str) -> DataError:
    return DataError(
        f"Tokenizer '{name}' has no token that parts entities. Use a BERT-style tokenizer "
        "(model.tokenizer), or 'shards'."
    )
