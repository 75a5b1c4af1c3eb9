"""The graph bench runs, and its rows hold what `make bench ARGS=graph` prints."""

from __future__ import annotations

import torch

from experiments.bench_graph import bench_graph, entity_features


def test_rows_compare_cosine_with_bare_faiss_and_time_adagae():
    rows = bench_graph(cosine_nodes=2_000, adagae_nodes=(300,), width=32, rounds=2, steps=3, checked=200)
    assert [row["name"] for row in rows] == ["FAISS IVF, bare, 16 cells", "cosine graph", "AdaGAE 2 × 3, full batch"]
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["recall@4"] > 0.99  # exact at this size
    assert all(row["seconds"] > 0 and row["nodes"] > 0 for row in rows)
    assert 0 < rows[2]["positives"] <= 1


def test_features_are_seeded_and_share_a_long_component():
    features, again, other = (entity_features(500, 64, seed) for seed in (0, 0, 1))
    assert torch.equal(features, again)
    assert not torch.equal(features, other)
    unit = torch.nn.functional.normalize(features)
    assert (unit @ unit.T).mean() > 0.4
