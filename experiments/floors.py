"""What a model must beat to have learned anything: a random order, and TF-IDF on the captions alone.

(The third floor, the same model before training, needs the model and lives in train.py.) Official mAP@10 is generous:
a random order reaches about 0.18 on Product1M, so a number without its floors says little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from retrieval import Ranking, official_metrics, per_query_scores, same_product_scores, without_own

RANDOM_SEED = 0  # one fixed draw: the floor is the same number in every run on the same shards
TFIDF_BLOCK = 256  # query rows compared at once: 40 MB against 40,000 gallery items


def random_ranking(query_ids: np.ndarray, gallery_ids: np.ndarray, k: int) -> Ranking:
    """`k` distinct gallery items per query, in random order."""
    draw = np.random.default_rng(RANDOM_SEED)
    k = min(k, len(gallery_ids))
    index_QK = np.empty((len(query_ids), k), np.int64)
    for row in index_QK:
        row[:] = draw.choice(len(gallery_ids), k, replace=False)
    score_K = np.linspace(1, 0, k, dtype=np.float32)
    return Ranking(query_ids, gallery_ids, index_QK, np.tile(score_K, (len(query_ids), 1)))


def tfidf_ranking(
    query_captions: Sequence[str],
    gallery_captions: Sequence[str],
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    k: int,
) -> Ranking:
    """Cosine of TF-IDF vectors, weights fitted on the gallery: what reading the captions without learning gives.

    Tokens are characters and pairs of them for Chinese, else words and pairs.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    chinese = mostly_cjk(gallery_captions)
    vectorizer = TfidfVectorizer(
        analyzer="char" if chinese else "word",
        ngram_range=(1, 2),
        token_pattern=None if chinese else r"(?u)\b\w+\b",
        dtype=np.float32,
    )
    try:
        gallery_ND = vectorizer.fit_transform(gallery_captions)
    except ValueError:  # "empty vocabulary": no caption has a word
        return random_ranking(query_ids, gallery_ids, k)
    query_QD = vectorizer.transform(query_captions)
    by_id_N = np.argsort(gallery_ids, kind="stable")
    gallery_ND = gallery_ND[by_id_N]  # in id order, a stable sort by score breaks ties by id
    k = min(k, len(gallery_ids))
    index_QK = np.empty((len(query_ids), k), np.int64)
    score_QK = np.empty((len(query_ids), k), np.float32)
    for start in range(0, len(query_ids), TFIDF_BLOCK):
        score_BN = (query_QD[start : start + TFIDF_BLOCK] @ gallery_ND.T).toarray()
        order_BK = _top(score_BN, k)
        index_QK[start : start + TFIDF_BLOCK] = by_id_N[order_BK]
        score_QK[start : start + TFIDF_BLOCK] = np.take_along_axis(score_BN, order_BK, 1)
    return Ranking(query_ids, gallery_ids, index_QK, score_QK)


def _top(score_BN: np.ndarray, k: int) -> np.ndarray:
    """Columns of the k largest per row, ties in column order."""
    found = np.empty((len(score_BN), k), np.int64)
    for row, score_N in zip(found, score_BN, strict=True):
        smallest = np.partition(score_N, len(score_N) - k)[len(score_N) - k]
        above_C = np.flatnonzero(score_N >= smallest)  # sorting the few instead of all: 40 times faster at 40,000
        row[:] = above_C[np.argsort(-score_N[above_C], kind="stable")[:k]]
    return found


def mostly_cjk(captions: Iterable[str], sample: int = 1000) -> bool:
    """Whether more than half of the letters of the first captions are Chinese, Japanese or Korean."""
    text = "".join(caption for caption, _ in zip(captions, range(sample), strict=False))
    letters = [c for c in text if c.isalpha()]
    return 2 * sum("\u2e80" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7af" for c in letters) > len(letters)


def caption_floors(
    data: Any, split: str, ks: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of both floors on a split, and their per-query scores under `<floor>/<metric>`.

    Args:
        data: A DataModule with ids, labels and captions, set up.
    """
    queries, gallery = data.eval_splits(split)
    ids = np.asarray(data.ids(queries)), np.asarray(data.ids(gallery))
    labels = data.labels(queries), data.labels(gallery)
    depth = max(ks)
    rankings = {
        "random": random_ranking(*ids, depth),
        "tfidf": tfidf_ranking(data.captions(queries), data.captions(gallery), *ids, depth),
    }
    metrics = {name: official_metrics(ranking, *labels, ks=tuple(ks)) for name, ranking in rankings.items()}
    per_query = {
        f"{name}/{key}": score
        for name, ranking in rankings.items()
        for key, score in per_query_scores(ranking, *labels, ks=tuple(ks)).scores.items()
    }
    return metrics, per_query


def same_product_floors(
    data: Any, split: str, query_ids: np.ndarray, ks: Sequence[int]
) -> tuple[dict[str, dict[str, float]], dict[str, np.ndarray]]:
    """The same floors for the identical-product task: items of a split against all others of it.

    Returns: Metrics by floor, as `same/mAP@10`, and per-query scores under `<floor>/same/<metric>`.
    """
    ids, labels, captions = np.asarray(data.ids(split)), data.labels(split), data.captions(split)
    row_of = {item: row for row, item in enumerate(ids.tolist())}
    rows = [row_of[query] for query in query_ids.tolist()]
    depth = max(ks) + 1  # one of them may be the query itself
    rankings = {
        "random": random_ranking(query_ids, ids, depth),
        "tfidf": tfidf_ranking([captions[row] for row in rows], captions, query_ids, ids, depth),
    }
    metrics: dict[str, dict[str, float]] = {}
    per_query: dict[str, np.ndarray] = {}
    for name, ranking in rankings.items():
        others = without_own(ranking)
        others = others._replace(index_QK=others.index_QK[:, : depth - 1], score_QK=others.score_QK[:, : depth - 1])
        found = same_product_scores(others, [labels[row][:1] for row in rows], labels, ks)
        metrics[name] = {f"same/{key}": mean for key, mean in found.means().items()}
        per_query |= {f"{name}/same/{key}": score for key, score in found.scores.items()}
    return metrics, per_query
