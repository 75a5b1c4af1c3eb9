"""A random batch of the form a model asks for: for probing gradients, benchmarks, export and tests."""

from __future__ import annotations

import torch

from datamodules.batch import InputSpec, ProductBatch

ENTITY_ROWS = 50  # entities are rows of the table below this one
CLS, SEP = 2, 3  # of the entities' tokens


def example_batch(
    spec: InputSpec,
    device: torch.device | str = "cpu",
    batch_size: int = 4,
    vocab_size: int | None = None,
    seed: int = 0,
) -> ProductBatch:
    """Random captions of different lengths with random pictures, regions (with class scores if wanted) or neither.

    Of entities, if wanted, a caption may have none, and the same one stands in several captions.

    Args:
        spec: What the model published with `input_spec()`.
        vocab_size: Token ids are drawn below it; None = 100, or what the model knows if that is less.
    """
    vocab_size = vocab_size or min(100, spec.vocab_size or 100)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    length, regions = spec.text_length, spec.num_regions
    lengths_B1 = 3 + (uniform(batch_size, 1) * (length - 2)).long().clamp(max=length - 3)
    token_mask_BT = torch.arange(length) < lengths_B1
    tokens_BT = (5 + uniform(batch_size, length) * (vocab_size - 5)).long() * token_mask_BT
    if spec.end_token_id is not None:
        tokens_BT = torch.where(torch.arange(length) == lengths_B1 - 1, spec.end_token_id, tokens_BT)
    batch = ProductBatch(torch.arange(batch_size), tokens_BT, token_mask_BT)
    if spec.visual_input == "grid":
        size = spec.image_size_px
        batch = batch._replace(images_B3HW=(uniform(batch_size, 3, size, size) * 255).to(torch.uint8))
    elif spec.visual_input == "regions":
        corners_BR4 = torch.cat(
            [uniform(batch_size, regions, 2) * 0.5, 0.5 + uniform(batch_size, regions, 2) * 0.5], -1
        )
        x1, y1, x2, y2 = corners_BR4.unbind(-1)
        area_BR1 = ((x2 - x1) * (y2 - y1)).unsqueeze(-1)
        counts_B1 = 1 + (uniform(batch_size, 1) * regions).long().clamp(max=regions - 1)
        mask_BR = torch.arange(regions) < counts_B1
        batch = batch._replace(
            features_BRD=(uniform(batch_size, regions, spec.region_width) * mask_BR.unsqueeze(-1)).half(),
            boxes_BR5=torch.cat([corners_BR4, area_BR1], -1) * mask_BR.unsqueeze(-1),
            region_mask_BR=mask_BR,
        )
        if spec.region_classes:  # drawn last: the other values do not depend on it
            scores_BRC = (4 * uniform(batch_size, regions, spec.region_classes)).softmax(-1)
            batch = batch._replace(class_scores_BRC=(scores_BRC * mask_BR.unsqueeze(-1)).half())
    if spec.num_entities:
        entities = _entities(uniform(batch_size, 1 + spec.num_entities), spec, vocab_size)
        names = ("entity_tokens_BT", "entity_token_mask_BT", "entities_BE")
        batch = batch._replace(**dict(zip(names, entities, strict=True)))
    return ProductBatch._make(None if field is None else field.to(device) for field in batch)


def example_instances(
    spec: InputSpec, device: torch.device | str = "cpu", num_queries: int = 2, per_query: int = 3, seed: int = 0
) -> ProductBatch:
    """Random instances of random queries: the caption repeated, a crop or regions and a box of their own for each.

    The last one is that of a query in which nothing was found.
    """
    rows = num_queries * per_query
    queries = example_batch(spec, device, num_queries, seed=seed)
    batch = example_batch(
        spec, device, rows, seed=seed + 1
    )  # its pictures and regions serve as crops and their regions
    owner_B = torch.arange(rows, device=device) // per_query
    shared = {
        name: getattr(queries, name)[owner_B.tolist()]
        for name in ("tokens_BT", "token_mask_BT", "entity_tokens_BT", "entity_token_mask_BT", "entities_BE")
        if getattr(queries, name) is not None
    }
    generator = torch.Generator().manual_seed(seed)
    corners_B4 = torch.rand(rows, 4, generator=generator) * 0.5 + torch.tensor([0.0, 0.0, 0.5, 0.5])
    sides_B2 = corners_B4[:, 2:] - corners_B4[:, :2]
    box_B5 = torch.cat([corners_B4, sides_B2.prod(1, keepdim=True)], 1)
    score_B = torch.ones(rows)
    box_B5[-1], score_B[-1] = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]), 0.0
    feature_BD = None
    if spec.visual_input == "regions":
        feature_BD = torch.rand(rows, spec.region_width, generator=generator).half().to(device)
    return batch._replace(
        **shared,
        index_B=torch.arange(rows, device=device),
        owner_B=owner_B,
        instance_box_B5=box_B5.to(device),
        instance_score_B=score_B.to(device),
        instance_feature_BD=feature_BD,
    )


def example_entity_tokens(row: int, vocab_size: int) -> list[int]:
    """Tokens of one row of the table: one to three words and [SEP]."""
    return [5 + (7 * row + place) % (vocab_size - 5) for place in range(1 + row % 3)] + [SEP]


def _entities(uniform_BE: torch.Tensor, spec: InputSpec, vocab_size: int) -> tuple[torch.Tensor, ...]:
    """Tokens_BT with their mask_BT, and rows_BE; the first number says how many entities there are."""
    batch_size, length = len(uniform_BE), spec.entity_length
    counts_B1 = (uniform_BE[:, :1] * (spec.num_entities + 1)).long()
    rows_BE = (uniform_BE[:, 1:] * ENTITY_ROWS).long()
    rows_BE = torch.where(torch.arange(spec.num_entities) < counts_B1, rows_BE, -1)
    tokens_BT = torch.zeros(batch_size, length, dtype=torch.int64)
    for tokens_T, rows_E in zip(tokens_BT, rows_BE.tolist(), strict=True):
        tokens = [CLS, *(token for row in rows_E if row >= 0 for token in example_entity_tokens(row, vocab_size))]
        tokens = (tokens if len(tokens) > 1 else [CLS, SEP])[:length]
        tokens[-1] = SEP
        tokens_T[: len(tokens)] = torch.tensor(tokens)
    return tokens_BT, tokens_BT != 0, rows_BE
