"""The identical-product task for a trained model: gallery items against the gallery without themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_modules.split_search import SplitSearch
from retrieval import Ranking, same_product_metrics, same_product_rows, same_product_scores
from retrieval.same_product import CUT_OFFS


class SameProduct(NamedTuple):
    """What the task found; keys are `same/mAP@N` and `same/Prec@N`, behind `image/`, `text/` and `textbook/`."""

    metrics: dict[str, float]
    ranking: Ranking  # by the product embedding; its queries are the gallery items with another of their label
    per_query: dict[str, np.ndarray]  # the numbers behind the official means, in the ranking's query order
    left_out: int  # gallery items without another of their label
    seconds: float  # of ranking and scoring on this rank


def rank_same_product(
    search: SplitSearch,
    gallery_labels: Sequence[Sequence[str]],
    chosen: Mapping[str, str],
    ks: Sequence[int] = CUT_OFFS,
) -> SameProduct | None:
    """Rank each gallery item that has another of its label among all others, exactly; all ranks call together.

    Args:
        chosen: Role (product, image, text) -> the vector that serves as it: that of the multi-product task, nothing
            is chosen here.

    Returns: The same on every rank; None where no two items share a label.
    """
    begin = time.perf_counter()
    rows_Q = same_product_rows(gallery_labels)
    if not len(rows_Q):
        return None
    labels = [gallery_labels[row][:1] for row in rows_Q.tolist()], gallery_labels
    metrics: dict[str, float] = {}
    per_query: dict[str, np.ndarray] = {}
    rankings: dict[str, Ranking] = {}
    for role, name in chosen.items():
        if name not in rankings:
            rankings[name] = search.among_gallery(name, rows_Q, max(ks))
        found = same_product_scores(rankings[name], *labels, ks=ks)
        prefix = "same/" if role == "product" else f"{role}/same/"
        metrics |= {f"{prefix}{key}": mean for key, mean in found.means().items()}
        per_query |= {f"{prefix}{key}": score for key, score in found.scores.items()}
    ranking = rankings[chosen["product"]]
    textbook = same_product_metrics(ranking, *labels, ks=ks, protocol="textbook")
    metrics |= {f"textbook/same/{key}": mean for key, mean in textbook.items()}
    seconds = time.perf_counter() - begin
    return SameProduct(metrics, ranking, per_query, len(gallery_labels) - len(rows_Q), seconds)
