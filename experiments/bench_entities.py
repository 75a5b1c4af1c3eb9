"""Entities that give the ranking losses all they can have to do: a built graph in which each has related ones."""

from __future__ import annotations

import torch

from datamodules.batch import ProductBatch
from lightning_modules.entity_graph.graph import EntityGraph
from lightning_modules.example_batch import SEP

NODES = 20_000  # a step reads only the batch's entities and what is drawn for them, whatever their number
LONGEST = 8  # tokens of an entity with its [SEP]; Chinese ones mostly have three to five
RELATED = 8  # nodes similar to each, more than the losses draw


def all_ranked(graph: EntityGraph, batch: ProductBatch, vocab_size: int, seed: int = 0) -> ProductBatch:
    """Build the graph by hand; returns the batch with entities of which no two are the same."""
    assert batch.entities_BE is not None
    generator = torch.Generator().manual_seed(seed)
    length_N1 = torch.randint(3, LONGEST + 1, (NODES, 1), generator=generator)
    tokens_NL = torch.randint(5, vocab_size, (NODES, LONGEST), generator=generator)
    place_L = torch.arange(LONGEST)
    tokens_NL = torch.where(place_L == length_N1 - 1, SEP, torch.where(place_L < length_N1, tokens_NL, 0))
    graph.set_entities(tokens_NL, "bench")
    index_NK = (torch.arange(NODES)[:, None] + torch.arange(1, RELATED + 1)) % NODES
    built = {"index_NK": index_NK, "score_NK": torch.ones(NODES, RELATED), "interval": torch.tensor(0)}
    graph.take_over({**graph.state_tensors(), **built})
    rows_BE = torch.randperm(NODES, generator=generator)[: batch.entities_BE.numel()].view_as(batch.entities_BE)
    return batch._replace(entities_BE=rows_BE.to(batch.entities_BE.device))
