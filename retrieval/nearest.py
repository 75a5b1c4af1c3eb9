"""nearest_rows(): the nearest other rows of every row of one matrix, exact up to some size, by a FAISS index above.

The index is an inverted file (rows in cells around k-means centres; only the nearest cells of a row are searched). How
many cells that must be depends on the data, so it is found out: some rows are searched exactly, and the number of cells
is doubled until the index finds what the exact search found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.pair_scores import full_precision
from retrieval.search import load_faiss

if TYPE_CHECKING:
    from torch import Tensor

NO_ROW = -1
EXACT_BELOW = 10_000  # rows; up to here the exact search takes seconds
RECALL = 0.98  # share of the true neighbours that the sampled rows must find
PROBED_ROWS = 512  # rows that are searched exactly to find it out: one row is 1/512 of the answer
SPARE = 8  # candidates more than wanted: the fast distances of the exact search are off in the last digits
BLOCK_BYTES = 32 << 20  # of distances or differences at a time
ROWS_PER_CENTRE, KMEANS_ITERATIONS = 20, 8  # twice as many rows move recall by less than 0.01


class NearestRows(NamedTuple):
    """The nearest other rows of each row, nearest first, equally near ones by row number; a row never lists itself."""

    index_NK: np.ndarray  # int64; NO_ROW where the matrix has too few rows
    squared_NK: np.ndarray  # Euclidean distance squared, of the vectors' own float type; inf at NO_ROW


def nearest_rows(
    vectors_ND: Tensor, k: int, exact_below: int = EXACT_BELOW, recall: float = RECALL, seed: int = 0
) -> NearestRows:
    """The k nearest other rows of every row, by Euclidean distance (for unit rows that is the order by cosine).

    Args:
        vectors_ND: float32 or float64, on the CPU.
        k: rows to list for each; a matrix with N <= k rows lists N - 1 and ends in NO_ROW.
        exact_below: rows from which the FAISS index is used, whose search is approximate.
        recall: of the k true neighbours, what the index must find on average (on a sample of the rows).
        seed: of the index's centres and the sample.

    Raises: RetrievalError on nan or inf (naming the row), k < 1, or a missing FAISS.
    """
    import torch

    if k < 1:
        raise RetrievalError(f"k must be at least 1; got {k}")
    bad = torch.nonzero(~torch.isfinite(vectors_ND.sum(1)))
    if len(bad):
        raise RetrievalError(
            f"vector {int(bad[0])} holds nan or inf ({len(bad)} of {len(vectors_ND)} do): look for a diverged training"
        )
    num, wanted = len(vectors_ND), min(k, len(vectors_ND) - 1)
    padded = _no_rows(num, k, vectors_ND.numpy().dtype)
    if wanted < 1:
        return padded
    with full_precision():
        if num < exact_below:
            # Distances stay the same and lose fewer digits: many embeddings share one long component.
            found = _exact(vectors_ND - vectors_ND.mean(0), np.arange(num), wanted)
        else:
            found = _by_index(vectors_ND, wanted, recall, seed)
    padded.index_NK[:, :wanted], padded.squared_NK[:, :wanted] = found
    return padded


def _exact(vectors_ND: Tensor, rows: np.ndarray, k: int) -> NearestRows:
    """The neighbours of some rows among all rows: proposals from products, then distances from differences."""
    import torch

    num, width = vectors_ND.shape
    spare = min(k + 1 + SPARE, num)  # 1: the row itself
    squared_N = torch.linalg.vector_norm(vectors_ND, dim=1).square()  # square() would copy it all
    block = max(1, BLOCK_BYTES // (vectors_ND.element_size() * max(num, spare * width)))
    index, squared = [], []
    for chosen in torch.from_numpy(rows).split(block):
        part_BD = vectors_ND[chosen]
        fast_BN = torch.addmm(squared_N, part_BD, vectors_ND.T, alpha=-2.0)
        fast_BN[torch.arange(len(chosen)), chosen] = -torch.inf  # kept for now, dropped below
        index_BC = fast_BN.topk(spare, largest=False, sorted=False).indices
        exact_BC = (vectors_ND[index_BC] - part_BD[:, None]).square_().sum(-1)
        own_BC = index_BC == chosen[:, None]
        found = _sorted(index_BC.numpy(), exact_BC.masked_fill_(own_BC, torch.inf).numpy(), k)
        index.append(found.index_NK)
        squared.append(found.squared_NK)
    return NearestRows(np.concatenate(index), np.concatenate(squared))


def _sorted(index_BC: np.ndarray, squared_BC: np.ndarray, k: int) -> NearestRows:
    """The nearest k of each row's candidates."""
    order = np.lexsort((index_BC, squared_BC), axis=1)[:, :k]
    return NearestRows(np.take_along_axis(index_BC, order, 1), np.take_along_axis(squared_BC, order, 1))


def _by_index(vectors_ND: Tensor, k: int, recall: float, seed: int) -> NearestRows:
    num = len(vectors_ND)
    generator = np.random.default_rng(seed)
    probed = np.sort(generator.choice(num, min(PROBED_ROWS, num), replace=False))
    true = _exact(vectors_ND, probed, k)
    index, rows = _build_index(vectors_ND.float().numpy(), generator)
    index.nprobe = 1
    while index.nprobe < index.nlist and _recall(_search(index, vectors_ND, probed, k), true) < recall:
        index.nprobe = min(2 * index.nprobe, index.nlist)
    # Rows of a cell search the same cells, which stay in the cache: 1.6 times as fast.
    in_turn, found = _search(index, vectors_ND, rows, k), _no_rows(num, k)
    found.index_NK[rows], found.squared_NK[rows] = in_turn
    short = np.flatnonzero((found.index_NK == NO_ROW).any(1))  # its cells hold fewer rows than wanted
    if short.size:
        found.index_NK[short], found.squared_NK[short] = _exact(vectors_ND, short, k)
    return found


def _build_index(vectors_ND: np.ndarray, generator: np.random.Generator) -> tuple[Any, np.ndarray]:
    """The index, and all rows cell after cell."""
    faiss = load_faiss("a search among this many rows", "raise exact_below")
    num, width = vectors_ND.shape
    num_cells = int(4 * num**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, num_cells, faiss.METRIC_L2)
    index.cp.seed, index.cp.niter, index.cp.min_points_per_centroid = (
        int(generator.integers(2**31)),
        KMEANS_ITERATIONS,
        1,
    )
    # Rows in no cluster gather around a centre in the middle of the sphere, which is near to everyone and would be
    # searched for all: up to ten times the work. On the sphere itself there is no middle.
    index.cp.spherical = bool(np.allclose(np.linalg.norm(vectors_ND[:1000], axis=1), 1, atol=1e-3))
    learnt = generator.choice(num, min(num, ROWS_PER_CENTRE * num_cells), replace=False)
    index.train(vectors_ND[learnt])
    cell_N = index.quantizer.assign(vectors_ND, 1).ravel()
    rows = np.argsort(cell_N, kind="stable")
    ends = np.cumsum(np.bincount(cell_N, minlength=num_cells))
    # Each cell written at once: `index.add` would let its lists grow, to up to twice the memory.
    for cell, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        codes = np.ascontiguousarray(vectors_ND[rows[start:end]])
        ids = rows[start:end].astype(np.int64)
        pointers = faiss.swig_ptr(ids), faiss.swig_ptr(codes.view(np.uint8))
        index.invlists.add_entries(cell, len(ids), *pointers)
    index.ntotal = num
    return index, rows


def _no_rows(num: int, k: int, dtype: Any = np.float32) -> NearestRows:
    return NearestRows(np.full((num, k), NO_ROW, np.int64), np.full((num, k), np.inf, dtype))


def _search(index: Any, vectors_ND: Tensor, rows: np.ndarray, k: int) -> NearestRows:
    found = _no_rows(len(rows), k)
    for start in range(0, len(rows), 16384):
        part = rows[start : start + 16384]
        squared_BC, index_BC = index.search(vectors_ND[part].float().numpy(), k + 1)
        squared_BC[(index_BC == part[:, None]) | (index_BC == NO_ROW)] = np.inf
        index_BC[index_BC == part[:, None]] = NO_ROW
        best = _sorted(index_BC, squared_BC, k)
        found.index_NK[start : start + 16384], found.squared_NK[start : start + 16384] = best
    return found


def _recall(found: NearestRows, true: NearestRows) -> float:
    """Share of the true neighbours found; one as near as the last true one counts as it."""
    last_Q1 = true.squared_NK[:, -1:]
    return float((found.squared_NK <= last_Q1 * (1 + 1e-5) + 1e-12).mean())
