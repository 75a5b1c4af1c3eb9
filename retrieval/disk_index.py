"""An approximate search for galleries that no memory holds: a FAISS IVF-PQ index on disk, one part of it per machine.

Cells around k-means centres, of which the nearest to a query are searched (IVF), hold each vector as a few bytes: a
centre's number for each stretch of axes (PQ; Jégou, Douze, Schmid, Product Quantization for Nearest Neighbor Search,
TPAMI 2011). Codes and vectors stay on disk and are mapped into memory: the system keeps the pages that are used.

The list is approximate: codes propose candidates. With the vectors kept, the candidates' scores and order are exact,
those of `rank`, so the lists of several machines merge into one (`merge_found`). Metrics are never computed by it.

Shape legend beside that of `ranking.py`: C candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.order import LAST, pack, unpack
from retrieval.pair_scores import full_precision, pair_scores
from retrieval.ranking import NO_ITEM
from retrieval.search import load_faiss

if TYPE_CHECKING:
    from torch import Tensor

PER_CENTRE = 39  # vectors that k-means wants for each centre; FAISS warns below
CODE_CENTRES = 256  # of each stretch: one byte
QUERY_BLOCK = 256  # 26 MB of candidates at 100 × 256 axes
_MANIFEST, _LISTS, _INDEX, _VECTORS = "index.json", "lists.ivfdata", "index.faiss", "vectors.f32"


class Found(NamedTuple):
    """What an index, or several together, found; equal scores by row."""

    index_QK: np.ndarray  # int64, row in the order in which vectors were added, NO_ITEM where a list has ended
    score_QK: np.ndarray  # float32; -inf at NO_ITEM


def train_index(path: Path, sample_ND: np.ndarray, num_cells: int, code_bytes: int, seed: int = 0) -> None:
    """Learn cells and codes, and write them to `path`: all machines fill an index of the same.

    Args:
        sample_ND: float32, some of the vectors; 39 for each cell and for each of 256 code centres, or more.
        num_cells: about 4·√N to 16·√N for N vectors in one index.
        code_bytes: of a vector; a divisor of its width.

    Raises: RetrievalError on a width that code_bytes does not divide, too small a sample, nan or inf, or no FAISS.
    """
    faiss = load_faiss("an index on disk", "search exactly with `rank`")
    sample_ND = _checked(sample_ND, None, "sample vector")
    width = sample_ND.shape[1]
    if code_bytes < 1 or width % code_bytes:
        fitting = [number for number in range(1, width + 1) if width % number == 0]
        raise RetrievalError(f"code_bytes={code_bytes} does not divide the width {width}: choose one of {fitting}")
    wanted = PER_CENTRE * max(num_cells, CODE_CENTRES)
    if num_cells < 1 or len(sample_ND) < wanted:
        raise RetrievalError(
            f"num_cells={num_cells} wants {wanted:,} vectors or more to learn from, and the sample has "
            f"{len(sample_ND):,}: give more, or fewer cells (at least 1; {CODE_CENTRES} code centres want "
            f"{PER_CENTRE * CODE_CENTRES:,} whatever the cells)"
        )
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, num_cells, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = index.pq.cp.seed = seed + 1  # FAISS's own is 1234, and 0 is no seed to it
    index.train(sample_ND)
    path.parent.mkdir(parents=True, exist_ok=True)
    faiss.write_index(index, str(path))


def fill_index(folder: Path, trained: Path, blocks: Iterable[np.ndarray], keep_vectors: bool = True) -> None:
    """Write an index of all vectors of the blocks, one block in memory at a time.

    Args:
        folder: new, or what an interrupted call left. Holds twice the codes while they are merged.
        trained: from `train_index`.
        blocks: float32 matrices of the trained width; rows count on from block to block.
        keep_vectors: for exact scores of candidates; 4 bytes per axis on disk.

    Raises: RetrievalError on a folder that holds an index, a missing or foreign `trained`, no vectors, vectors of
        another width, nan or inf.
    """
    faiss = load_faiss("an index on disk", "search exactly with `rank`")
    if (folder / _MANIFEST).exists():
        raise RetrievalError(f"{folder} holds an index already: remove it, or choose another folder")
    parts = folder / "parts"
    rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    num, paths = 0, list[str]()
    with open(folder / _VECTORS, "wb") as kept:
        for block_ND in blocks:
            index = _read(trained)  # anew: an index that is emptied keeps its memory
            block_ND = _checked(block_ND, index.d, "vector", first=num)
            index.add_with_ids(block_ND, np.arange(num, num + len(block_ND)))
            paths.append(str(parts / f"{len(paths):06d}.faiss"))
            faiss.write_index(index, paths[-1])
            if keep_vectors:
                block_ND.tofile(kept)
            num += len(block_ND)
    if not num:
        raise RetrievalError(f"no vectors for {folder}: give at least one block with rows")
    if not keep_vectors:
        (folder / _VECTORS).unlink()
    index = _read(trained)
    load_faiss("an index on disk", "search exactly with `rank`", "faiss.contrib.ondisk").merge_ondisk(
        index, paths, str(folder / _LISTS)
    )
    faiss.write_index(index, str(folder / _INDEX))
    rmtree(parts)
    about = {"vectors": num, "width": index.d, "cells": index.nlist, "code_bytes": index.pq.M, "kept": keep_vectors}
    (folder / _MANIFEST).write_text(json.dumps(about) + "\n")  # last: without it a folder is none


class DiskIndex:
    """An index that `fill_index` wrote, mapped into memory.

    Raises: RetrievalError where the folder holds none, or the build was interrupted.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / _MANIFEST).read_text())
        except (OSError, ValueError) as problem:
            raise RetrievalError(
                f"{folder} holds no finished index ({_MANIFEST}: {problem}): build it with `fill_index`"
            ) from None
        faiss = load_faiss("an index on disk", "search exactly with `rank`")
        self.num, self.width, self.num_cells = about["vectors"], about["width"], about["cells"]
        self.bytes_on_disk = sum(path.stat().st_size for path in folder.iterdir())
        self._index = faiss.read_index(str(folder / _INDEX), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
        self._options = faiss.SearchParametersIVF
        shape = (self.num, self.width)
        self._vectors_ND = np.memmap(folder / _VECTORS, np.float32, "r", shape=shape) if about["kept"] else None

    def search(self, query_QD: np.ndarray | Tensor, k: int, num_probed: int, num_rescored: int = 0) -> Found:
        """The best k that the nearest cells hold.

        Args:
            query_QD: float32, of the index's width.
            num_probed: cells to search for each query: more find more and take longer.
            num_rescored: candidates by codes of which the best k are kept by their exact scores; 0 = by codes alone.

        Raises: RetrievalError on sizes that do not fit, nan or inf, or rescoring without kept vectors.
        """
        query_QD = _checked(np.asarray(query_QD), self.width, "query")
        if k < 1 or not 1 <= num_probed <= self.num_cells:
            raise RetrievalError(f"k={k} and num_probed={num_probed}: k from 1, cells from 1 to {self.num_cells}")
        if num_rescored and (num_rescored < k or self._vectors_ND is None):
            raise RetrievalError(
                f"num_rescored={num_rescored} must be 0 or at least k={k}, in an index that keeps its vectors"
            )
        options = self._options(nprobe=num_probed)
        parts = [Found(np.zeros((0, k), np.int64), np.zeros((0, k), np.float32))]
        for block_BD in _blocks(query_QD):
            score_BC, index_BC = self._index.search(block_BD, num_rescored or k, params=options)
            if num_rescored:
                score_BC = self._exact(block_BD, index_BC)
            parts.append(_best(index_BC, score_BC, k))
        return Found(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _exact(self, query_BD: np.ndarray, index_BC: np.ndarray) -> np.ndarray:
        import torch

        assert self._vectors_ND is not None
        there_BC = index_BC != NO_ITEM
        row_P, index_P = np.nonzero(there_BC)[0], index_BC[there_BC]
        wanted, place_P = np.unique(index_P, return_inverse=True)  # ascending: pages of the file in turn
        gallery_MD = torch.from_numpy(np.ascontiguousarray(self._vectors_ND[wanted]))
        score_BC = np.zeros(index_BC.shape, np.float32)
        with full_precision():
            score_BC[there_BC] = pair_scores(torch.from_numpy(query_BD), gallery_MD, row_P, place_P)
        return score_BC


def merge_found(parts: Sequence[Found], first_rows: Sequence[int], k: int) -> Found:
    """The best k of what the parts of one gallery found; exactly those of all together where scores are exact.

    Args:
        first_rows: what each part's row 0 is in the whole.
    """
    index_QC = np.concatenate(
        [
            np.where(part.index_QK == NO_ITEM, NO_ITEM, part.index_QK + first)
            for part, first in zip(parts, first_rows, strict=True)
        ],
        axis=1,
    )
    return _best(index_QC, np.concatenate([part.score_QK for part in parts], axis=1), k)


def _best(index_QC: np.ndarray, score_QC: np.ndarray, k: int) -> Found:
    ended_QC = index_QC == NO_ITEM
    packed_QC = np.where(ended_QC, LAST, pack(np.where(ended_QC, np.float32(0), score_QC), index_QC))
    score_QK, index_QK = unpack(np.sort(packed_QC, axis=1)[:, :k])
    return Found(np.where(index_QK < 0, np.int64(NO_ITEM), index_QK), score_QK)


def _blocks(query_QD: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(query_QD), QUERY_BLOCK):
        yield query_QD[start : start + QUERY_BLOCK]


def _checked(rows: np.ndarray, width: int | None, what: str, first: int = 0) -> np.ndarray:
    """The rows as contiguous float32. Raises RetrievalError naming the first that is not finite."""
    rows = np.ascontiguousarray(rows, np.float32)
    if rows.ndim != 2 or not rows.shape[1] or width not in (None, rows.shape[1]):
        raise RetrievalError(f"{what}s must be a matrix, {width or 'any number of'} axes wide; got shape {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows.sum(1, dtype=np.float64)))
    if bad.size:
        raise RetrievalError(f"{what} {first + bad[0]:,} holds nan or inf ({bad.size} of {len(rows)} beside it do)")
    return rows


def _read(trained: Path) -> Any:
    faiss = load_faiss("an index on disk", "search exactly with `rank`")
    if not trained.is_file():
        raise RetrievalError(f"{trained} is missing: write it with `train_index`")
    try:
        index = faiss.read_index(str(trained))
    except RuntimeError as problem:
        raise RetrievalError(f"{trained} is no trained index ({problem}): write it with `train_index`") from None
    if not isinstance(index, faiss.IndexIVFPQ) or index.ntotal:
        raise RetrievalError(f"{trained} is another kind of index, or filled already: write it with `train_index`")
    return index
