"""Re-ranking: the first items of each list in the order of the model's matching head, which reads both sides at once.

Shape legend beside the project's: C places re-ranked, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import ProductBatch
from lightning_modules.distributed import all_objects, all_sum
from lightning_modules.embedding_store import gather_uneven
from lightning_modules.errors import ModelError
from lightning_modules.example_batch import example_batch
from lightning_modules.full_precision import full_precision
from lightning_modules.retrieval_module import RetrievalModule
from lightning_modules.stopwatch import Stopwatch
from retrieval import Ranking, RetrievalError, reorder_top

PAIRS_AT_ONCE = 256


class Reranked(NamedTuple):
    """The re-ordered lists and what they cost."""

    ranking: Ranking
    pairs: int  # scored by all ranks together
    seconds: float  # of scoring them, summed over ranks; reading queries and gallery not counted


def check_matching_head(model: RetrievalModule) -> None:
    """Raise, before anything long runs, unless the model scores pairs: two random ones are tried.

    Raises:
        ModelError: The model's own where it has no matching head; else what is wrong with the scores.
    """
    spec = model.input_spec()
    queries, items = (example_batch(spec, model.weights_device, batch_size=2, seed=seed) for seed in (0, 1))
    logits_B = _match(model, queries, items)
    if logits_B.shape != (2,):
        raise ModelError(
            f"{type(model).__name__}.match gives shape {tuple(logits_B.shape)} for two pairs; it must give one score "
            "per pair"
        )


def rerank(
    model: RetrievalModule,
    ranking: Ranking,
    queries: Iterable[ProductBatch],
    gallery: Iterable[ProductBatch],
    depth: int,
) -> Reranked:
    """The first `depth` items of each list by the model's matching head; the rest of the list stays.

    The gallery is read once, and each rank scores the pairs of the items it reads; queries wait on the CPU.

    Args:
        ranking: the same on every rank, its rows the rows of `index_B`.
        queries, gallery: this rank's share of both splits; every rank calls, also one without batches.

    Returns: the same on every rank.

    Raises:
        ModelError: a score that is not finite.
    """
    row_QC = ranking.index_QK[:, :depth]
    everyone = _everywhere(model, queries)
    score_QC, watch, pairs = _scores(model, row_QC, everyone, gallery)
    parts = torch.stack(gather_uneven(score_QC.to(model.device))).cpu()
    # An item that two ranks have read (padding) is scored by both: the first one's counts. Nan where nobody has.
    merged_QC = parts[0]
    for part_QC in parts[1:]:
        merged_QC = torch.where(merged_QC.isnan(), part_QC, merged_QC)
    cost = torch.tensor([pairs, watch.seconds()], dtype=torch.float64)
    if model.device.type == "mps":
        cost = cost.float()  # it knows no float64
    pairs, seconds = all_sum(cost.to(model.device)).tolist()
    try:
        reordered = reorder_top(ranking, merged_QC.numpy())
    except RetrievalError as problem:
        raise ModelError(f"{type(model).__name__}.match: {problem}") from None
    return Reranked(reordered, int(pairs), seconds)


def _scores(
    model: RetrievalModule, row_QC: np.ndarray, queries: ProductBatch, gallery: Iterable[ProductBatch]
) -> tuple[Tensor, Stopwatch, int]:
    """The scores of the pairs whose item this rank reads, Q×C, nan elsewhere; the time they took; their number."""
    depth = row_QC.shape[1]
    pair_P = np.argsort(row_QC, axis=None, kind="stable")  # places of row_QC, those of one item together
    item_P = row_QC.reshape(-1)[pair_P]
    score_QC = torch.full(row_QC.shape, torch.nan)
    watch, pairs, seen = Stopwatch(model.device), 0, set[int]()
    for batch in gallery:
        rows_B = batch.index_B.cpu().numpy()
        starts_B, ends_B = np.searchsorted(item_P, rows_B, "left"), np.searchsorted(item_P, rows_B, "right")
        new = [place for place, row in enumerate(rows_B.tolist()) if row not in seen]
        seen.update(rows_B.tolist())
        places = [np.full(ends_B[place] - starts_B[place], place) for place in new]
        wanted = [pair_P[starts_B[place] : ends_B[place]] for place in new]
        if not sum(map(len, wanted)):
            continue
        place_P, pair_here_P = np.concatenate(places), np.concatenate(wanted)
        items, logits = model.transfer_batch_to_device(batch, model.device, 0), []
        for chunk in _chunks(len(place_P)):
            query_rows = (pair_here_P[chunk] // depth).tolist()
            asking = model.transfer_batch_to_device(queries.rows(query_rows), model.device, 0)
            watch.start()
            logits.append(_match(model, asking, items.rows(place_P[chunk].tolist())))
            watch.stop()
        score_QC.view(-1)[torch.from_numpy(pair_here_P)] = torch.cat(logits).float().cpu()
        pairs += len(place_P)
    return score_QC, watch, pairs


def _chunks(num: int) -> Iterator[slice]:
    for start in range(0, num, PAIRS_AT_ONCE):
        yield slice(start, start + PAIRS_AT_ONCE)


@torch.no_grad()
def _match(model: RetrievalModule, queries: ProductBatch, items: ProductBatch) -> Tensor:
    """As `encode`: dropout is off and no autocast or TF32 applies, whatever mode and precision training runs in."""
    training = model.training
    model.eval()
    try:
        with full_precision(model.device):
            return model.match(queries, items)
    finally:
        model.train(training)


def _everywhere(model: RetrievalModule, batches: Iterable[ProductBatch]) -> ProductBatch:
    """The batches of all ranks as one on the CPU, row r of the split at row r."""
    own = list(batches)
    fields = [None if parts[0] is None else torch.cat(parts) for parts in zip(*own, strict=True)]
    layouts = all_objects([None if field is None else (field.shape[1:], field.dtype) for field in fields])
    layout = next(layout for layout in layouts if layout)  # a rank without batches learns what the others hold
    fields = fields or [None if kind is None else torch.zeros(0, *kind[0], dtype=kind[1]) for kind in layout]
    whole = [
        None if field is None else torch.cat([part.cpu() for part in gather_uneven(field.to(model.device))])
        for field in fields
    ]
    everyone = ProductBatch._make(whole)
    rows, first = np.unique(everyone.index_B.numpy(), return_index=True)
    assert np.array_equal(rows, np.arange(len(rows)))  # the evaluation has checked that each query is there
    return everyone.rows(first.tolist())
