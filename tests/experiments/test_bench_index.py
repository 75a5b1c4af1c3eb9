"""The index bench at a small size: what it measures, and the arithmetic of its projection."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from experiments import bench_index as module
from experiments.bench import bench_command
from experiments.bench_index import Shop, bench_index
from experiments.errors import UsageError
from experiments.index_projection import GB, MeasuredIndex, cells_for, project


def test_the_projection_is_the_arithmetic_it_spells_out() -> None:
    measured = MeasuredIndex(
        vectors=1_000_000, width=256, cells=2_048, code_bytes=72, kept_bytes=1024, fill_seconds=100, num_probed=16,
        search_ms=2,
    )  # fmt: skip
    rows = {row["what"]: row for row in project(measured, items=80_000_000, nodes=8)}
    assert cells_for(10_000_000) == 8_192
    assert rows["disk, all nodes"]["figure"] == pytest.approx(80e6 * 1096 / GB)
    assert rows["disk of a node"]["figure"] == pytest.approx(10e6 * 1096 / GB)
    assert rows["codes of a node"]["figure"] == pytest.approx(10e6 * 72 / GB)
    assert rows["centres of a node"]["figure"] == pytest.approx(8)  # MB
    assert rows["filling a node"]["figure"] == pytest.approx(10 * 100 * 4 / 3600)
    assert rows["a query on a node, 16 cells"]["figure"] == pytest.approx(2 * 10 / 4)
    assert all(row["how"] for row in rows.values())


@pytest.mark.parametrize(("vectors", "cells"), [(1, 4), (256, 64), (500_000, 2_048), (12_500_000, 8_192)])
def test_cells_are_the_power_of_two_at_or_below_four_roots(vectors: int, cells: int) -> None:
    assert cells_for(vectors) == cells


def test_vectors_are_made_anew_alike_and_queries_are_others() -> None:
    shop = Shop(items=120, width=8, seed=3)
    with mock.patch.object(module, "BLOCK", 50):
        blocks = list(shop.blocks(0, 120))
        (again,) = shop.blocks(50, 100)
    assert [len(block) for block in blocks] == [50, 50, 20]
    assert (blocks[1] == again).all()
    assert not np.isin(shop.queries(50)[:, 0], np.concatenate(blocks)[:, 0]).any()
    np.testing.assert_allclose(np.linalg.norm(blocks[0], axis=1), 1, rtol=1e-5)


def test_true_lists_are_those_of_one_search(tmp_path: Path) -> None:
    shop = Shop(items=120, width=8, seed=0)
    query_QD = shop.queries(7)
    with mock.patch.object(module, "BLOCK", 40):
        items_ND = np.concatenate(list(shop.blocks(0, 120)))
        part, whole = module._true_lists(shop, query_QD, [40, 120])
    for found, among in ((part, 40), (whole, 120)):
        score_QN = (query_QD.astype(np.float64) @ items_ND[:among].T.astype(np.float64)).astype(np.float32)
        assert (found.index_QK == np.argsort(-score_QN, axis=1, kind="stable")[:, :10]).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="--items at least 19,968"):
        bench_index(items=500)
    with pytest.raises(UsageError, match="--items is an option of `bench index` alone"):
        bench_command(["search", "--items", "5"])


@pytest.mark.slow
def test_more_cells_and_rescoring_find_more() -> None:
    with mock.patch.object(module, "BLOCK", 10_000), mock.patch.object(module, "PROBED", (1, 16)):
        rows = bench_index(items=25_000, width=64, queries=100)
    recall = {row["what"]: row["figure"] for row in rows if row["what"].startswith("recall")}
    assert recall["recall@10, 1 cells, 100 rescored"] < recall["recall@10, 16 cells, 100 rescored"] <= 1
    assert recall["recall@10, 16 cells"] < recall["recall@10, 16 cells, 100 rescored"]
    figures = {row["what"]: row["figure"] for row in rows}
    assert figures["code on disk"] == 72
    assert figures["vector on disk"] == 256
