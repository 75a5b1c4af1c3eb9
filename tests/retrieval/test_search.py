"""rank(): the same exact list from every backend, block size and precision setting, ties by id."""

from __future__ import annotations

import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import NO_ITEM, RetrievalError, rank, search

CPU_BACKENDS = ("torch", "faiss")


def naive_rank(query_QD, gallery_ND, query_ids, gallery_ids, k, exclude_self):
    """Per query the ids in order; exact where the products are exact in float64."""
    lists = []
    for query_D, own in zip(np.asarray(query_QD, np.float64), query_ids, strict=True):
        scored = [
            (-np.float32(query_D @ item_D), item)
            for item_D, item in zip(np.asarray(gallery_ND, np.float64), gallery_ids, strict=True)
            if not (exclude_self and item == own)
        ]
        lists.append([item for _, item in sorted(scored)[:k]])
    return lists


def lists_of(ranking):
    return [ranking.item_ids(row) for row in range(len(ranking.query_ids))]


def names(prefix, number, seed=0):
    """Ids in no order, of different lengths, so that code-point order is neither row nor number order."""
    return [f"{prefix}{i}" for i in np.random.default_rng(seed).permutation(number)]


def unit_rows(number, width, seed):
    rows = np.random.default_rng(seed).standard_normal((number, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@st.composite
def problems(draw):
    """Coordinates of few values: products are exact, zero vectors and ties abound."""
    width, num_queries, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.integers(0, 3))
    vectors = generator.integers(-spread, spread + 1, (num_queries + num_items, width)).astype(np.float32) / 4
    ids = draw(
        st.lists(st.text("aAbB019._-", min_size=1, max_size=4), min_size=num_items, max_size=num_items, unique=True)
    )
    own = draw(st.lists(st.sampled_from([*ids, "stranger"]), min_size=num_queries, max_size=num_queries))
    return vectors[:num_queries], vectors[num_queries:], own, ids, draw(st.integers(1, 45)), draw(st.booleans())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@given(problem=problems(), margin=st.sampled_from([0, 1, 28]))
@settings(max_examples=150, deadline=None)
def test_order_is_score_then_id_in_small_blocks_with_heavy_ties(backend, problem, margin):
    *arrays, k, exclude_self = problem
    with mock.patch.multiple(search, MARGIN=margin, QUERY_BLOCK=3, GALLERY_BLOCK=7):
        ranking = rank(*arrays, k=k, backend=backend, exclude_self=exclude_self)
    assert lists_of(ranking) == naive_rank(*arrays, k, exclude_self)
    assert ranking.index_QK.shape[1] == min(k, len(arrays[1]))
    ended = ranking.index_QK == NO_ITEM
    assert np.isneginf(ranking.score_QK[ended]).all()
    assert not np.isinf(ranking.score_QK[~ended]).any()


@pytest.mark.parametrize("width", [7, 64, 1024])
def test_backends_agree_on_ids_and_scores_and_with_float64(width):
    arrays = unit_rows(150, width, 0), unit_rows(3000, width, 1), names("q", 150), names("g", 3000)
    by_torch, by_faiss = (rank(*arrays, k=50, backend=backend) for backend in CPU_BACKENDS)
    assert (by_torch.index_QK == by_faiss.index_QK).all()
    assert (by_torch.score_QK == by_faiss.score_QK).all()
    assert lists_of(by_torch) == naive_rank(*arrays, 50, False)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_500_identical_items_around_rank_k_come_in_id_order(backend):
    gallery_ND = np.concatenate([np.repeat(unit_rows(1, 96, 0), 500, 0), unit_rows(700, 96, 1)])
    ids = names("g", 1200)
    ranking = rank(gallery_ND[:3], gallery_ND, ["q0", "q1", "q2"], ids, k=100, backend=backend)
    for row in range(3):
        assert ranking.item_ids(row) == sorted(ids[:500])[:100]
    assert np.unique(ranking.score_QK).size == 1


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_nearly_equal_items_do_not_depend_on_blocks_or_batch(backend):
    """A collapsed model: all cosines within 1e-5 of 1, closer than the rounding of a matrix product."""
    noise = np.random.default_rng(0).standard_normal((900, 256)).astype(np.float32)
    gallery_ND = unit_rows(1, 256, 1) + 1e-4 * noise / 16
    gallery_ND /= np.linalg.norm(gallery_ND, axis=1, keepdims=True)
    ids, query_QD = names("g", 900), gallery_ND[:20]
    whole = rank(query_QD, gallery_ND, names("q", 20), ids, k=10, backend=backend)
    assert lists_of(whole) == naive_rank(query_QD, gallery_ND, whole.query_ids, ids, 10, False)
    with mock.patch.multiple(search, QUERY_BLOCK=6, GALLERY_BLOCK=101):
        turned = rank(query_QD[::-1], gallery_ND[::-1], names("q", 20)[::-1], ids[::-1], k=10, backend=backend)
    assert lists_of(turned)[::-1] == lists_of(whole)
    assert (turned.score_QK[::-1] == whole.score_QK).all()


def test_a_proposal_that_lost_items_is_noticed_by_the_gap_only():
    """The second search runs for the queries that need it, not for all."""
    gallery_ND = np.concatenate([np.eye(40, dtype=np.float32), np.repeat(np.eye(1, 40, 3, dtype=np.float32), 200, 0)])
    query_QD = np.linspace(1, 2, 40, dtype=np.float32)[None] * np.ones((2, 1), np.float32)
    query_QD[0, 3] = 9  # the 201 items along axis 3 are the best of query 0, and tie; for query 1 they tie as well
    query_QD[1, 3] = -1  # … at the very end
    with (
        mock.patch.object(search, "MARGIN", 3),
        mock.patch.object(search, "_search_all", wraps=search._search_all) as second,
    ):
        ranking = rank(query_QD, gallery_ND, ["q0", "q1"], names("g", 240), k=20)
    assert [len(call.args[0]) for call in second.call_args_list] == [1]
    assert lists_of(ranking) == naive_rank(query_QD, gallery_ND, ["q0", "q1"], names("g", 240), 20, False)


def test_half_precision_settings_change_nothing_and_are_put_back():
    arrays = unit_rows(30, 128, 0), unit_rows(500, 128, 1), names("q", 30), names("g", 500)
    expected = rank(*arrays, k=20)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = rank(*(torch.from_numpy(rows) for rows in arrays[:2]), *arrays[2:], k=20)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (got.index_QK == expected.index_QK).all()
    assert (got.score_QK == expected.score_QK).all()


def test_accepts_what_a_training_loop_hands_over():
    query_QD = torch.randn(4, 8, requires_grad=True)
    gallery_ND = np.random.default_rng(0).standard_normal((8, 30))[:, ::2].T  # float64, strided
    gallery_ND.setflags(write=False)
    gallery_ND = gallery_ND.astype(np.float64)
    ranking = rank(query_QD, gallery_ND, names("q", 4), names("g", 15), k=3)
    rounded = gallery_ND.astype(np.float32)
    assert lists_of(ranking) == naive_rank(query_QD.detach(), rounded, names("q", 4), names("g", 15), 3, False)
    half = rank(query_QD.bfloat16(), gallery_ND, names("q", 4), names("g", 15), k=3)
    assert half.score_QK.dtype == np.float32
    assert half.index_QK.dtype == np.int64
    assert rank(np.zeros((0, 8)), gallery_ND, [], names("g", 15), k=3).index_QK.shape == (0, 3)


def test_exclude_self_leaves_out_the_own_item_only():
    rows = unit_rows(200, 16, 0)
    ids = names("g", 200)
    ranking = rank(rows, rows, ids, ids, k=5, exclude_self=True)
    with_self = rank(rows, rows, ids, ids, k=6)
    for row, own in enumerate(ids):
        assert with_self.item_ids(row)[0] == own
        assert ranking.item_ids(row) == with_self.item_ids(row)[1:]
    alone = rank(rows[:1], rows[:1], ids[:1], ids[:1], exclude_self=True)
    assert alone.index_QK.tolist() == [[NO_ITEM]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_traced_to_their_id(bad):
    query_QD, gallery_ND = unit_rows(3, 4, 0), unit_rows(5, 4, 1)
    gallery_ND[2, 1] = bad
    with pytest.raises(RetrievalError, match="embedding of gallery g2 holds nan or inf"):
        rank(query_QD, gallery_ND, ["a", "b", "c"], [f"g{i}" for i in range(5)])
    with pytest.raises(RetrievalError, match="embedding of query g2 holds nan or inf"):
        rank(gallery_ND, query_QD, [f"g{i}" for i in range(5)], ["a", "b", "c"])


def test_mistakes_are_named():
    rows = unit_rows(3, 4, 0)
    ids = ["a", "b", "c"]
    with pytest.raises(RetrievalError, match="gallery is empty"):
        rank(rows, rows[:0], ids, [])
    with pytest.raises(RetrievalError, match=r"duplicate gallery id b \(rows 1 and 2\)"):
        rank(rows, rows, ids, ["a", "b", "b"])
    with pytest.raises(RetrievalError, match="unknown search backend 'fais'"):
        rank(rows, rows, ids, ids, backend="fais")
    with pytest.raises(RetrievalError, match="differ in width: 4 and 3"):
        rank(rows, rows[:, :3], ids, ids)
    with pytest.raises(RetrievalError, match="one row per id"):
        rank(rows, rows, ids[:2], ids)
    with pytest.raises(RetrievalError, match="k must be"):
        rank(rows, rows, ids, ids, k=0)
    with pytest.raises(RetrievalError, match="normalise"):
        rank(rows * 1e25, rows * 1e25, ids, ids)


def test_a_missing_faiss_breaks_only_the_faiss_backend():
    rows, ids = unit_rows(3, 4, 0), ["a", "b", "c"]
    with mock.patch.dict(sys.modules, {"faiss": None}):
        assert len(rank(rows, rows, ids, ids).query_ids) == 3
        with pytest.raises(RetrievalError, match="use backend 'torch'"):
            rank(rows, rows, ids, ids, backend="faiss")


def test_faiss_gpu_asks_for_a_gpu_or_agrees():
    faiss = pytest.importorskip("faiss")
    arrays = unit_rows(20, 32, 0), unit_rows(400, 32, 1), names("q", 20), names("g", 400)
    if getattr(faiss, "get_num_gpus", int)():
        assert lists_of(rank(*arrays, k=10, backend="faiss-gpu")) == lists_of(rank(*arrays, k=10))
    else:
        with pytest.raises(RetrievalError, match="finds no GPU"):
            rank(*arrays, backend="faiss-gpu")


def test_scoring_loads_neither_torch_nor_faiss():
    code = (
        "import sys, retrieval\n"
        "from retrieval import Ranking, official_metrics, score_files, paired_bootstrap, merge_rankings, rank\n"
        "print(sorted({'torch', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
