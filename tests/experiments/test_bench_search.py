"""The search bench runs, and its rows hold what `make bench` prints."""

from __future__ import annotations

from experiments.bench_search import bench_search


def test_rows_compare_both_backends_with_bare_faiss():
    rows = bench_search(num_queries=40, num_items=600, width=16, k=10, repeats=1)
    assert [row["name"] for row in rows] == ["FAISS IndexFlatIP, bare", "rank, torch", "rank, faiss"]
    assert rows[0]["ratio"] == 1.0
    assert all(row["seconds"] > 0 for row in rows)
    assert [row["same_order"] for row in rows[1:]] == [1.0, 1.0]
