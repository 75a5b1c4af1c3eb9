"""Score a ranking file against official annotation files: the numbers of a run, or of anybody else's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.metrics import PROTOCOLS, per_query_scores
from retrieval.official_lists import read_annotations, read_ranking
from retrieval.ranking import UNKNOWN_ITEM
from retrieval.same_product import same_product_scores

CUT_OFFS = (10, 50, 100)


def score_files(
    ranking: str | Path, queries: str | Path, gallery: str | Path, protocol: str = "official", same: bool = False
) -> dict[str, str | int | float]:
    """Score an official ranking file.

    Means run over the lines of the ranking file. A query of `queries` without a line is not counted, only reported.
    A line whose query is not in `queries` cannot be scored: it counts as 0 and among `unscorable`.

    Args:
        ranking: ranking file. queries, gallery: annotation files with labels.
        protocol: "official", "official-2022-04-20" or "textbook".
        same: the list is of the identical-product task: single against single, where a query is itself an item of the
            gallery (`queries` may be the gallery's own file), its own id leaves its list, and a query without another
            item of its label cannot be scored.

    Returns: "protocol", "queries" (lines scored), "unscorable", "missing" (queries without a line), "unknown_queries"
        and "unknown_items" (ids that the annotation files do not have), then "mAP@N", "mAR@N", "Prec@N",
        "coverage@N" for N = 10, 50, 100 as fractions; with `same` "same/mAP@N" and "same/Prec@N" for N = 1, 5, 10.

    Raises: RetrievalError on an unknown protocol, an unreadable file (see `official_lists`), a gallery without labels,
        or files that share no query or no item.
    """
    if protocol not in PROTOCOLS:  # before reading: a typo should not cost seconds
        raise RetrievalError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    query_list, gallery_list = read_annotations(queries), read_annotations(gallery)
    for path, read in ((queries, query_list), (gallery, gallery_list)):
        if not any(read.labels):
            raise RetrievalError(f"{path}: no line has labels, so nothing can be scored against it")
    found = read_ranking(ranking, gallery_list.ids)

    labels_of = dict(zip(query_list.ids.tolist(), query_list.labels, strict=True))
    known = [query in labels_of for query in found.query_ids.tolist()]
    if not any(known):
        raise RetrievalError(f"{ranking}: no query of it is in {queries}; give the annotation file of these queries")
    if found.index_QK.size and not (found.index_QK >= 0).any():
        raise RetrievalError(f"{ranking}: no item of it is in {gallery}; give the annotation file of this gallery")
    query_labels = [labels_of.get(query, ()) for query in found.query_ids.tolist()]
    if same:
        scored = same_product_scores(found, query_labels, gallery_list.labels, protocol=protocol)
    else:
        scored = per_query_scores(found, query_labels, gallery_list.labels, CUT_OFFS, protocol)
    prefix = "same/" if same else ""
    return {
        "protocol": protocol,
        "queries": len(known),
        "unscorable": scored.unscorable,
        "missing": len(labels_of) - sum(known),
        "unknown_queries": len(known) - sum(known),
        "unknown_items": int(np.count_nonzero(found.index_QK == UNKNOWN_ITEM)),
        **{f"{prefix}{key}": mean for key, mean in scored.means().items()},
    }
