"""A model with a matching head whose verdict is known, and its data, in memory: for tests of re-ranking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import InputSpec, ProductBatch
from lightning_modules import RetrievalModule
from lightning_modules.distributed import rank, world_size
from lightning_modules.objectives.draws import Draws

WIDTH = 4  # of an item's vector, twice: the first half is embedded, the second read by the matching head


class PairModel(RetrievalModule):
    """Embeds the first half of an item's features; its head multiplies the second halves."""

    candidate_features = ("product",)
    modalities: ClassVar = {}
    uses_in_batch_negatives = False

    def __init__(self) -> None:
        super().__init__("product", 1e-3, 0.0, 0.1)
        self.most_pairs = 0

    def input_spec(self) -> InputSpec:
        return InputSpec(text_length=4, num_regions=1, region_width=2 * WIDTH)

    def losses(self, batch: ProductBatch, draws: Draws) -> dict[str, Tensor]:
        raise AssertionError("these tests only evaluate")

    def embed(self, batch: ProductBatch) -> dict[str, Tensor]:
        return {"product": halves(batch)[0]}

    def match(self, queries: ProductBatch, items: ProductBatch) -> Tensor:
        assert not self.training
        self.most_pairs = max(self.most_pairs, len(queries.index_B))
        return (halves(queries)[1] * halves(items)[1]).sum(-1)


def halves(batch: ProductBatch) -> tuple[Tensor, Tensor]:
    """What is embedded and what is matched, B×WIDTH each."""
    assert batch.features_BRD is not None
    first, second = batch.features_BRD[:, 0].float().split(WIDTH, dim=-1)
    return first, second


def random_split(rows: int, seed: int, length: int = 4) -> ProductBatch:
    """Items with small whole numbers as features, so that a product of two is the same in any order of summation."""
    generator = torch.Generator().manual_seed(seed)
    features_BD = torch.randint(-3, 4, (rows, 2 * WIDTH), generator=generator)
    tokens_BT = torch.ones(rows, length, dtype=torch.int64)
    return ProductBatch(
        torch.arange(rows), tokens_BT, tokens_BT.bool(), features_BRD=features_BD[:, None].to(torch.float16)
    )


class PairData(LightningDataModule):
    """Two splits of queries and a gallery, dealt over ranks in batches."""

    def __init__(self, queries: int, items: int, batch_size: int = 3) -> None:
        super().__init__()
        self.splits = {"test": random_split(queries, 1), "val": random_split(queries, 2)}
        self.splits["gallery"] = random_split(items, 3)
        self.batch_size = batch_size

    def ids(self, split: str) -> np.ndarray:
        names = [f"{split}{row}" for row in range(len(self.splits[split].index_B))]
        return np.random.default_rng(0).permutation(names)

    def labels(self, split: str) -> list[tuple[str, ...]]:
        return [(str(row % 5),) for row in range(len(self.splits[split].index_B))]

    def eval_splits(self, stage: str) -> tuple[str, str]:
        return stage, "gallery"

    def evaluation_loader(self, split: str) -> DataLoader:
        batches: Any = list(self._batches(split))
        return DataLoader(batches, batch_size=None)

    def _batches(self, split: str) -> Iterator[ProductBatch]:
        for number, start in enumerate(range(0, len(self.splits[split].index_B), self.batch_size)):
            if number % world_size() == rank():
                yield self.splits[split].rows(slice(start, start + self.batch_size))

    def val_dataloader(self) -> list[DataLoader]:
        return [self.evaluation_loader(split) for split in self.eval_splits("val")]

    def test_dataloader(self) -> list[DataLoader]:
        return [self.evaluation_loader(split) for split in self.eval_splits("test")]
