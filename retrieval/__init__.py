"""Embeddings -> rankings -> metrics. Knows no training and no file format but the official text lists.

Names are imported on first use: `import retrieval` loads neither torch nor faiss, and scoring needs numpy alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.disk_index import DiskIndex, fill_index, merge_found, train_index
    from retrieval.errors import RetrievalError
    from retrieval.false_negatives import false_negatives_per_batch
    from retrieval.instances import merge_instances
    from retrieval.merge import merge_rankings
    from retrieval.metrics import QueryScores, official_metrics, per_query_scores, textbook_metrics
    from retrieval.nearest import nearest_rows
    from retrieval.official_lists import (
        Annotations,
        read_annotations,
        read_ranking,
        write_annotations,
        write_ranking,
    )
    from retrieval.ranking import NO_ITEM, UNKNOWN_ITEM, Ranking
    from retrieval.reorder import reorder_top
    from retrieval.same_product import (
        same_product_metrics,
        same_product_rows,
        same_product_scores,
        without_own,
    )
    from retrieval.score import score_files
    from retrieval.search import rank
    from retrieval.significance import Interval, paired_bootstrap

_HOME = {
    "DiskIndex": "disk_index",
    "fill_index": "disk_index",
    "merge_found": "disk_index",
    "train_index": "disk_index",
    "RetrievalError": "errors",
    "false_negatives_per_batch": "false_negatives",
    "merge_instances": "instances",
    "merge_rankings": "merge",
    "QueryScores": "metrics",
    "official_metrics": "metrics",
    "per_query_scores": "metrics",
    "textbook_metrics": "metrics",
    "nearest_rows": "nearest",
    "Annotations": "official_lists",
    "read_annotations": "official_lists",
    "read_ranking": "official_lists",
    "write_annotations": "official_lists",
    "write_ranking": "official_lists",
    "NO_ITEM": "ranking",
    "UNKNOWN_ITEM": "ranking",
    "Ranking": "ranking",
    "reorder_top": "reorder",
    "same_product_metrics": "same_product",
    "same_product_rows": "same_product",
    "same_product_scores": "same_product",
    "without_own": "same_product",
    "score_files": "score",
    "rank": "search",
    "Interval": "significance",
    "paired_bootstrap": "significance",
}

__all__ = [
    "NO_ITEM",
    "UNKNOWN_ITEM",
    "Annotations",
    "DiskIndex",
    "Interval",
    "QueryScores",
    "Ranking",
    "RetrievalError",
    "false_negatives_per_batch",
    "fill_index",
    "merge_found",
    "merge_instances",
    "merge_rankings",
    "nearest_rows",
    "official_metrics",
    "paired_bootstrap",
    "per_query_scores",
    "rank",
    "read_annotations",
    "read_ranking",
    "reorder_top",
    "same_product_metrics",
    "same_product_rows",
    "same_product_scores",
    "score_files",
    "textbook_metrics",
    "train_index",
    "without_own",
    "write_annotations",
    "write_ranking",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.{_HOME[name]}"), name)
