"""rank(): exact top-k of a gallery for each query by inner product, the same list from torch and from FAISS.

Three steps. (1) A fast fp32 search proposes k + MARGIN candidates; its scores depend on block shapes in the last
digits. (2) One kernel scores the candidates again, each pair by itself in float64, rounded to float32: this is *the*
score, and the order by (-score, gallery id) is *the* order. (3) Where the proposal cannot be proven complete (many
items equal or nearly so around rank k) the query is searched again, keeping all items that could belong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.order import LAST, id_ranks, pack, unpack
from retrieval.pair_scores import all_pair_scores, full_precision, pair_scores
from retrieval.ranking import NO_ITEM, UNKNOWN_ITEM, Ranking, as_ids, check_unique, own_rows

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("torch", "faiss", "faiss-gpu")
MARGIN = 28  # more candidates than wanted, so that a gap behind rank k is likely; 100 + 28 costs no more than 100
FP32_UNIT, TF32_UNIT = 2.0**-24, 2.0**-11  # relative rounding errors; FAISS lets NVIDIA GPUs multiply in TF32
DENSE_SHARE = 0.1  # of all pairs; above it a query block is scored as a whole
QUERY_BLOCK, GALLERY_BLOCK = 512, 65536  # 128 MB of scores at a time; long rows make top-k cheap
NORM_BLOCK = 2048  # rows of which a float64 copy is held
SECOND_BLOCK = 256  # queries of the second search, which may have to keep the whole gallery for each
GROUP = 32  # columns that stand together for their maximum
GPU_TEMP_BYTES = 256 << 20  # FAISS would take 1.5 GB of each GPU away from PyTorch


def rank(
    query_QD: Tensor | np.ndarray,
    gallery_ND: Tensor | np.ndarray,
    query_ids: Sequence[str] | np.ndarray,
    gallery_ids: Sequence[str] | np.ndarray,
    k: int = 100,
    backend: str = "torch",
    exclude_self: bool = False,
) -> Ranking:
    """Exact top-k by inner product (cosine for unit vectors), equal scores by gallery id in code-point order.

    Args:
        query_QD, gallery_ND: embeddings, tensors or arrays, scored in float32 whatever the precision settings.
            A zero vector scores 0 with everything. On a GPU, "torch" searches there.
        query_ids, gallery_ids: one per row; gallery ids are unique.
        k: items to keep. backend: "torch", "faiss" (CPU) or "faiss-gpu"; the result is the same.
        exclude_self: leave out the gallery item with the query's own id.

    Returns: Ranking with K = min(k, N); a row that runs out of items (exclude_self) ends in NO_ITEM.

    Raises: RetrievalError on an empty gallery, shapes that do not fit, duplicate gallery ids, nan or inf (naming the
        id), norms beyond float32, or a backend that is unknown or not installed.
    """
    if backend not in BACKENDS:
        raise RetrievalError(f"unknown search backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if k < 1:
        raise RetrievalError(f"k must be at least 1; got {k}")
    query_ids, gallery_ids = as_ids(query_ids), as_ids(gallery_ids)
    if not len(gallery_ids):
        raise RetrievalError("the gallery is empty: nothing can be ranked")
    check_unique(gallery_ids, "gallery")
    query_QD, gallery_ND = _matrix(query_QD, query_ids, "query"), _matrix(gallery_ND, gallery_ids, "gallery")
    if query_QD.shape[1] != gallery_ND.shape[1]:
        raise RetrievalError(
            f"query and gallery embeddings differ in width: {query_QD.shape[1]} and {gallery_ND.shape[1]}"
        )
    with full_precision():
        return _rank(query_QD, gallery_ND, query_ids, gallery_ids, k, backend, exclude_self)


def _rank(
    query_QD: Tensor,
    gallery_ND: Tensor,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    k: int,
    backend: str,
    exclude_self: bool,
) -> Ranking:
    num_queries, num_items = len(query_ids), len(gallery_ids)
    error_Q = _error_bounds(query_QD, gallery_ND, query_ids, gallery_ids, backend)
    ranks_N = id_ranks(gallery_ids)
    own_Q = own_rows(query_ids, gallery_ids) if exclude_self else np.full(num_queries, UNKNOWN_ITEM)
    kept = min(k, num_items)
    proposed = min(k + MARGIN + exclude_self, num_items)

    score_QC, index_QC = _propose(query_QD, gallery_ND, proposed, backend)
    lowest_Q = score_QC.min(axis=1, initial=np.inf)  # no item outside the proposal has a higher fast score
    worst = min(kept + exclude_self, num_items)  # candidates surely behind this place need no exact score
    floor_Q = np.partition(score_QC, proposed - worst, axis=1)[:, proposed - worst] - 2 * error_Q
    likely_QC = score_QC >= floor_Q[:, None]
    row_P, index_P = np.nonzero(likely_QC)[0], index_QC[likely_QC]
    packed_QC = np.full(index_QC.shape, LAST)
    packed_QC[likely_QC] = pack(pair_scores(query_QD, gallery_ND, row_P, index_P), ranks_N[index_P])
    packed_QC[index_QC == own_Q[:, None]] = LAST
    packed_QK = np.sort(packed_QC, axis=1)[:, :kept]

    if proposed < num_items:
        kth_Q = unpack(packed_QK[:, -1])[0].astype(np.float64)
        for rows in _blocks(np.flatnonzero(kth_Q <= lowest_Q + error_Q), SECOND_BLOCK):
            floor_B = kth_Q[rows] - error_Q[rows]
            packed_QK[rows] = _search_all(query_QD[rows], gallery_ND, floor_B, own_Q[rows], ranks_N, kept)

    score_QK, rank_QK = unpack(packed_QK)
    index_QK = np.where(rank_QK < 0, np.int64(NO_ITEM), np.argsort(ranks_N)[rank_QK])
    return Ranking(query_ids, gallery_ids, index_QK, score_QK)


def _propose(query_QD: Tensor, gallery_ND: Tensor, num: int, backend: str) -> tuple[np.ndarray, np.ndarray]:
    """Fast scores and gallery rows of the best `num` items, in any order."""
    if backend == "torch":
        return _propose_torch(query_QD, gallery_ND, num)
    return _propose_faiss(query_QD, gallery_ND, num, on_gpu=backend == "faiss-gpu")


def _propose_torch(query_QD: Tensor, gallery_ND: Tensor, num: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    score_QC = np.empty((len(query_QD), num), np.float32)
    index_QC = np.empty((len(query_QD), num), np.int64)
    buffer = torch.empty(min(QUERY_BLOCK, len(query_QD)) * min(GALLERY_BLOCK, len(gallery_ND)), device=query_QD.device)
    for first in range(0, len(query_QD), QUERY_BLOCK):
        block_BD = query_QD[first : first + QUERY_BLOCK]
        best_BC = torch.empty((len(block_BD), 0), device=query_QD.device)
        row_BC = torch.empty((len(block_BD), 0), dtype=torch.int64, device=query_QD.device)
        for start in range(0, len(gallery_ND), GALLERY_BLOCK):
            part_MD = gallery_ND[start : start + GALLERY_BLOCK]
            product_BM = buffer[: len(block_BD) * len(part_MD)].view(len(block_BD), len(part_MD))
            torch.mm(block_BD, part_MD.T, out=product_BM)
            top_BC, where_BC = _top(product_BM, min(num, len(part_MD)))
            both_BC, rows_BC = torch.cat([best_BC, top_BC], 1), torch.cat([row_BC, where_BC + start], 1)
            best_BC, chosen = both_BC.topk(min(num, both_BC.shape[1]), sorted=False)
            row_BC = rows_BC.gather(1, chosen)
        score_QC[first : first + QUERY_BLOCK] = best_BC.cpu().numpy()
        index_QC[first : first + QUERY_BLOCK] = row_BC.cpu().numpy()
    return score_QC, index_QC


def _top(score_BM: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`topk` of long rows, by way of the groups with the highest maxima: torch's own costs a third of the product.

    `num` groups hold `num` scores at or above their lowest maximum, and no other group holds any above it.
    """
    import torch

    num_grouped = score_BM.shape[1] // GROUP * GROUP
    if num_grouped <= 2 * num * GROUP:
        return score_BM.topk(num, sorted=False)
    grouped_BMG = score_BM[:, :num_grouped].unflatten(1, (-1, GROUP))
    group_BC = grouped_BMG.amax(-1).topk(num, sorted=False).indices
    column = torch.arange(score_BM.shape[1], device=score_BM.device)
    member_BCG = column[:num_grouped].view(-1, GROUP)[group_BC]
    score_BE = torch.cat([score_BM.gather(1, member_BCG.flatten(1)), score_BM[:, num_grouped:]], 1)
    column_BE = torch.cat([member_BCG.flatten(1), column[num_grouped:].expand(len(score_BM), -1)], 1)
    top_BC, chosen = score_BE.topk(num, sorted=False)
    return top_BC, column_BE.gather(1, chosen)


def _propose_faiss(query_QD: Tensor, gallery_ND: Tensor, num: int, on_gpu: bool) -> tuple[np.ndarray, np.ndarray]:
    faiss = load_faiss("backend 'faiss'", "use backend 'torch'")
    query, gallery = query_QD.cpu().numpy(), gallery_ND.cpu().numpy()
    if not on_gpu:
        return faiss.knn(query, gallery, num, metric=faiss.METRIC_INNER_PRODUCT)
    if not getattr(faiss, "get_num_gpus", int)():
        raise RetrievalError("backend 'faiss-gpu' finds no GPU: use 'faiss' or 'torch'")
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_TEMP_BYTES)
    index = faiss.GpuIndexFlatIP(resources, gallery.shape[1])
    index.add(gallery)
    return index.search(query, num)


def load_faiss(wanted_by: str, instead: str, module: str = "faiss") -> Any:
    """The module, imported where it is needed: a broken wheel breaks one feature with a clear message."""
    try:
        return import_module(module)
    except ImportError as error:
        raise RetrievalError(f"{wanted_by} needs faiss (see `make doctor`), or {instead}") from error


def _search_all(
    query_BD: Tensor, gallery_ND: Tensor, floor_B: np.ndarray, own_B: np.ndarray, ranks_N: np.ndarray, kept: int
) -> np.ndarray:
    """Packed best `kept` of each query, from every item whose fast score reaches `floor_B`."""
    possible_BN = (query_BD @ gallery_ND.T).cpu().numpy() >= floor_B[:, None]
    if possible_BN.mean() > DENSE_SHARE:
        return _sort_all(query_BD, gallery_ND, own_B, ranks_N, kept)
    row_P, index_P = np.nonzero(possible_BN)
    packed_P = pack(pair_scores(query_BD, gallery_ND, row_P, index_P), ranks_N[index_P])
    packed_P[index_P == own_B[row_P]] = LAST
    packed_P = packed_P[np.lexsort((packed_P, row_P))]
    starts_B = np.searchsorted(row_P, np.arange(len(query_BD)))
    place_BK = starts_B[:, None] + np.arange(kept)
    ends_B = np.append(starts_B[1:], len(row_P))
    return np.where(place_BK < ends_B[:, None], packed_P[np.minimum(place_BK, len(row_P) - 1)], LAST)


def _sort_all(query_BD: Tensor, gallery_ND: Tensor, own_B: np.ndarray, ranks_N: np.ndarray, kept: int) -> np.ndarray:
    """As `_search_all` for a collapsed or untrained model, to which nearly every item is a candidate."""
    packed_BN = pack(all_pair_scores(query_BD, gallery_ND), ranks_N[None])
    found = np.flatnonzero(own_B >= 0)
    packed_BN[found, own_B[found]] = LAST
    return np.sort(np.partition(packed_BN, kept - 1, axis=1)[:, :kept], axis=1)


def _error_bounds(
    query_QD: Tensor, gallery_ND: Tensor, query_ids: np.ndarray, gallery_ids: np.ndarray, backend: str
) -> np.ndarray:
    """Most that a fast score can differ from the exact one, float64 Q; checks the embeddings on the way.

    A sum of D products in float32, in any order, errs by at most about D·u·|q|·|g| (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, §3.1; Cauchy-Schwarz), plus D underflows of the smallest normal number.
    """
    norm_Q, norm_N = _norms(query_QD, query_ids, "query"), _norms(gallery_ND, gallery_ids, "gallery")
    width, largest = query_QD.shape[1], norm_N.max()
    limits = np.finfo(np.float32)
    if len(norm_Q) and norm_Q.max() * largest > float(limits.max):
        raise RetrievalError("embeddings are so long that their products overflow float32: normalise them")
    unit = (width + 2) * FP32_UNIT + (3 * TF32_UNIT if backend == "faiss-gpu" else 0.0)
    return 1.01 * unit * norm_Q * largest + width * float(limits.tiny)


def _norms(rows: Tensor, ids: np.ndarray, what: str) -> np.ndarray:
    """Euclidean norm of each row in float64. Raises RetrievalError naming the first row with nan or inf."""
    norm = np.concatenate(
        [block.double().norm(dim=1).cpu().numpy() for block in rows.split(NORM_BLOCK)] or [np.zeros(0)]
    )
    bad = np.flatnonzero(~np.isfinite(norm))
    if bad.size:
        raise RetrievalError(
            f"the embedding of {what} {ids[bad[0]]!s} holds nan or inf ({bad.size} of {len(norm)} do): "
            "look for a diverged training or a bad input"
        )
    return norm


def _matrix(rows: Any, ids: np.ndarray, what: str) -> Tensor:
    """Embeddings as a contiguous float32 tensor on the device they are on."""
    import torch

    if not isinstance(rows, torch.Tensor):
        rows = torch.from_numpy(np.require(rows, np.float32, ["C", "W"]))
    if rows.ndim != 2 or len(rows) != len(ids) or not rows.shape[1]:
        raise RetrievalError(
            f"{what} embeddings must be a matrix with one row per id ({len(ids)} ids); got shape {tuple(rows.shape)}"
        )
    return rows.detach().to(torch.float32).contiguous()


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
