"""The index on disk against the exact search: what it finds, how parts merge, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval import NO_ITEM, RetrievalError, rank
from retrieval.disk_index import DiskIndex, Found, fill_index, merge_found, train_index

WIDTH, CELLS, NUM = 16, 8, 10_400


def clustered(number: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((200, WIDTH))
    rows = centres[generator.integers(0, 200, number)] + 0.3 * generator.standard_normal((number, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = clustered(NUM, 0), clustered(50, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "trained.faiss"
    train_index(path, VECTORS, CELLS, code_bytes=4)
    return path


@pytest.fixture(scope="module")
def index(trained: Path) -> DiskIndex:
    folder = trained.parent / "whole"
    fill_index(folder, trained, np.array_split(VECTORS, 3))
    return DiskIndex(folder)


def exact(k: int, vectors_ND: np.ndarray = VECTORS) -> Found:
    ids = [f"{row:06d}" for row in range(len(vectors_ND))]
    ranking = rank(QUERIES, vectors_ND, [f"q{row}" for row in range(len(QUERIES))], ids, k)
    return Found(ranking.index_QK, ranking.score_QK)


def test_all_cells_and_all_candidates_give_the_exact_list_and_scores(index: DiskIndex) -> None:
    found, true = index.search(QUERIES, 10, CELLS, num_rescored=NUM), exact(10)
    assert (found.index_QK == true.index_QK).all()
    assert (found.score_QK == true.score_QK).all()


def test_more_cells_and_more_candidates_find_more(index: DiskIndex) -> None:
    def recall(*options: int) -> float:
        found = index.search(QUERIES, 10, *options).index_QK
        return float((found[:, :, None] == exact(10).index_QK[:, None]).any(1).mean())

    by_codes, one_cell, all_cells = recall(CELLS), recall(1, 200), recall(CELLS, 200)
    assert 0.2 < by_codes < all_cells
    assert one_cell < all_cells
    assert all_cells > 0.95


def test_parts_on_several_machines_merge_into_the_list_of_one(trained: Path, index: DiskIndex, tmp_path: Path) -> None:
    first_rows, parts = (0, 100, 4_000), []
    for first, end in zip(first_rows, (100, 4_000, NUM), strict=True):
        fill_index(tmp_path / str(first), trained, [VECTORS[first:end]])
        parts.append(DiskIndex(tmp_path / str(first)).search(QUERIES, 20, CELLS, num_rescored=300))
    whole = exact(20)
    merged = merge_found(parts, first_rows, 20)
    assert np.mean(merged.index_QK == whole.index_QK) > 0.95
    right = (merged.index_QK == whole.index_QK).all(1)
    assert (merged.score_QK[right] == whole.score_QK[right]).all()


def test_equal_vectors_come_by_row_and_lists_end(trained: Path, tmp_path: Path) -> None:
    fill_index(tmp_path / "few", trained, [VECTORS[:1], VECTORS[[0, 0]], VECTORS[5:6]])
    found = DiskIndex(tmp_path / "few").search(VECTORS[:1], 6, CELLS, num_rescored=6)
    assert found.index_QK.tolist() == [[0, 1, 2, 3, NO_ITEM, NO_ITEM]]
    assert np.isneginf(found.score_QK[0, 4:]).all()
    merged = merge_found([found, found], [0, 10], 6)
    assert merged.index_QK.tolist() == [[0, 1, 2, 10, 11, 12]]


def test_a_folder_can_move_and_codes_alone_are_small(trained: Path, tmp_path: Path) -> None:
    fill_index(tmp_path / "old", trained, [VECTORS], keep_vectors=False)
    before = DiskIndex(tmp_path / "old").search(QUERIES, 5, 3)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = DiskIndex(tmp_path / "new")
    assert (moved.search(QUERIES, 5, 3).index_QK == before.index_QK).all()
    assert moved.bytes_on_disk < NUM * (4 + 8) * 1.3 + 50_000  # a code and a row number each
    with pytest.raises(RetrievalError, match="keeps its vectors"):
        moved.search(QUERIES, 5, 3, num_rescored=50)


def test_an_interrupted_build_is_no_index_and_can_begin_anew(trained: Path, tmp_path: Path) -> None:
    def interrupted():
        yield VECTORS[:500]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_index(tmp_path, trained, interrupted())
    with pytest.raises(RetrievalError, match="holds no finished index"):
        DiskIndex(tmp_path)
    fill_index(tmp_path, trained, [VECTORS[:700]])
    assert DiskIndex(tmp_path).num == 700
    with pytest.raises(RetrievalError, match="holds an index already"):
        fill_index(tmp_path, trained, [VECTORS[:700]])


def test_mistakes_are_named(trained: Path, index: DiskIndex, tmp_path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"code_bytes=5 does not divide the width 16: choose one of \[1, 2, 4"):
        train_index(tmp_path / "t", VECTORS, CELLS, code_bytes=5)
    with pytest.raises(RetrievalError, match=r"num_cells=1000 wants 39,000 vectors or more .* the sample has 10,400"):
        train_index(tmp_path / "t", VECTORS, 1000, code_bytes=4)
    with pytest.raises(RetrievalError, match="wants 9,984"):
        train_index(tmp_path / "t", VECTORS[:500], 2, code_bytes=4)
    with pytest.raises(RetrievalError, match="t is missing"):
        fill_index(tmp_path / "f", tmp_path / "t", [VECTORS])
    (tmp_path / "t").write_bytes(b"something else")
    with pytest.raises(RetrievalError, match="no trained index"):
        fill_index(tmp_path / "f", tmp_path / "t", [VECTORS])
    with pytest.raises(RetrievalError, match="no vectors"):
        fill_index(tmp_path / "f", trained, [])
    with pytest.raises(RetrievalError, match="16 axes wide"):
        fill_index(tmp_path / "f", trained, [VECTORS[:, :8]])
    broken = VECTORS[:20].copy()
    broken[3, 2] = np.nan
    with pytest.raises(RetrievalError, match="vector 13 holds nan or inf"):
        fill_index(tmp_path / "f", trained, [VECTORS[:10], broken])
    with pytest.raises(RetrievalError, match="cells from 1 to 8"):
        index.search(QUERIES, 5, 9)
    with pytest.raises(RetrievalError, match="16 axes wide"):
        index.search(QUERIES[:, :4], 5, 2)
    with pytest.raises(RetrievalError, match="at least k=5"):
        index.search(QUERIES, 5, 2, num_rescored=4)
