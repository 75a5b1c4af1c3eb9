"""The search over ranks: for any number of them and any share of each, the lists of one big sort."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batch import ProductBatch
from lightning_modules import ModelError, split_search
from lightning_modules.embedding_store import EmbeddingStore, InstanceStore
from lightning_modules.instance_levels import InstanceSearch
from lightning_modules.split_search import SplitSearch
from retrieval import NO_ITEM, Ranking, merge_instances, official_metrics
from tests.distributed.gloo import run_on_ranks
from tests.distributed.turns import in_turns

WIDTHS = {"product": 3, "image": 5}
MOST_INSTANCES = 4  # of a query; as in a DataModule, the rows of instances have gaps
CPU = torch.device("cpu")


class Case(NamedTuple):
    """Embeddings of a split and a gallery, and which rank embeds which rows; a row may come to several."""

    world: int
    vectors: dict[str, dict[str, np.ndarray]]  # "query", "instance", "gallery" -> feature -> N×D
    instance_rows: np.ndarray
    ids: dict[str, np.ndarray]
    shares: dict[str, list[list[int]]]  # "query", "gallery" -> of each rank, its rows as they come
    depth: int


def drawn(seed: int, world: int, num_queries: int, num_items: int, depth: int, exact: bool) -> Case:
    """`exact`: few values, whose products have no rounding and tie often; else rounding noise around one direction."""
    generator = np.random.default_rng(seed)

    def vectors(number: int) -> dict[str, np.ndarray]:
        if exact:
            return {
                name: generator.integers(-1, 2, (number, width)).astype(np.float32) / 4
                for name, width in WIDTHS.items()
            }
        return {
            name: (np.float32(1 / 3) + np.float32(1e-7) * generator.standard_normal((number, width))).astype(np.float32)
            for name, width in WIDTHS.items()
        }

    def share(number: int) -> list[list[int]]:
        """Some ranks get little or nothing; some rows come twice, to one rank or to two."""
        inclined = generator.random(world) ** 3
        of_rank = generator.choice(world, number, p=inclined / inclined.sum())
        again = generator.integers(0, number, generator.integers(0, 3))
        rows = np.concatenate([np.arange(number), again])
        ranks = np.concatenate([of_rank, generator.integers(0, world, len(again))])
        order = generator.permutation(len(rows))
        return [rows[order][ranks[order] == rank].tolist() for rank in range(world)]

    of_query = generator.integers(1, MOST_INSTANCES + 1, num_queries)
    instance_rows = np.concatenate([query * MOST_INSTANCES + np.arange(num) for query, num in enumerate(of_query)])
    return Case(
        world,
        {"query": vectors(num_queries), "instance": vectors(len(instance_rows)), "gallery": vectors(num_items)},
        instance_rows,
        {
            "query": np.array([f"q{number}" for number in generator.permutation(num_queries)]),
            "gallery": np.array([f"g{number}" for number in generator.permutation(num_items)]),
        },
        {"query": share(num_queries), "gallery": share(num_items)},
        depth,
    )


def batch_of(rows: np.ndarray, owners: np.ndarray | None = None) -> ProductBatch:
    tokens = torch.ones(len(rows), 1, dtype=torch.int64)
    batch = ProductBatch(torch.from_numpy(rows), tokens, tokens.bool())
    if owners is None:
        return batch
    boxes_B5 = torch.from_numpy(rows)[:, None].expand(-1, 5) / 1000
    return batch._replace(
        owner_B=torch.from_numpy(owners), instance_box_B5=boxes_B5, instance_score_B=boxes_B5[:, 0] + 0.5
    )


def stored(store: EmbeddingStore, vectors: dict[str, np.ndarray], rows: list[int]) -> EmbeddingStore:
    for start in range(0, len(rows), 2):
        some = np.array(rows[start : start + 2])
        store.update(batch_of(some), {name: torch.from_numpy(x[some]) for name, x in vectors.items()})
    return store


def stored_instances(case: Case, queries: list[int]) -> InstanceStore:
    store = InstanceStore()
    for query in queries:
        places = np.flatnonzero(case.instance_rows // MOST_INSTANCES == query)
        vectors = {name: torch.from_numpy(x[places]) for name, x in case.vectors["instance"].items()}
        store.update(batch_of(case.instance_rows[places], np.full(len(places), query)), vectors)
    return store


def searched(case: Case, rank: int) -> dict[str, Any]:
    """What one rank finds."""
    gallery = stored(EmbeddingStore(), case.vectors["gallery"], case.shares["gallery"][rank])
    queries = stored(EmbeddingStore(), case.vectors["query"], case.shares["query"][rank])
    instances = stored_instances(case, case.shares["query"][rank])
    for store, kind in ((gallery, "gallery"), (queries, "query"), (instances, "query")):
        store.check_complete(case.ids[kind], kind, CPU)

    def search(store: EmbeddingStore) -> SplitSearch:
        return SplitSearch(store, gallery, case.ids["query"], case.ids["gallery"], CPU, case.depth, "torch")

    whole, by_instance = search(queries), InstanceSearch(search(instances), "round_robin")
    among = np.arange(0, len(case.ids["gallery"]), 2)
    return {
        **{f"whole {name}": whole(name, name) for name in WIDTHS},
        **{f"instances {name}": by_instance(name, name) for name in WIDTHS},
        "each instance": by_instance.lists("product").ranking,
        "among": whole.among_gallery("product", among, case.depth),
        "zero": whole.zero_vectors("product"),
        "about": (by_instance.owner_I, by_instance.boxes_I4, by_instance.scores_I),
    }


def sorted_all(queries_QD: np.ndarray, items_ND: np.ndarray, ids: np.ndarray, own: np.ndarray | None = None) -> Any:
    """All items by (-score, id) for each query, (index, score); the query's own left out, at the end of the list."""
    score_QN = (queries_QD.astype(np.float64) @ items_ND.astype(np.float64).T).astype(np.float32)
    if own is not None:
        score_QN[np.arange(len(own)), own] = -np.inf
    index_QN = np.lexsort((np.broadcast_to(np.argsort(np.argsort(ids)), score_QN.shape), -score_QN), axis=1)
    score_QN = np.take_along_axis(score_QN, index_QN, 1)
    return np.where(np.isinf(score_QN), NO_ITEM, index_QN), score_QN


def expected(case: Case) -> dict[str, Any]:
    """The same by one sort of everything; for vectors whose products are exact."""
    query, instance, gallery = (case.vectors[kind] for kind in ("query", "instance", "gallery"))
    ids, k = case.ids["gallery"], min(case.depth, len(case.ids["gallery"]))
    owners = case.instance_rows // MOST_INSTANCES

    def lists(names: np.ndarray, *arrays: Any) -> Ranking:
        index, score = sorted_all(*arrays)
        return Ranking(names, ids, index[:, :k], score[:, :k])

    numbers = case.instance_rows % MOST_INSTANCES
    names = np.array([f"{case.ids['query'][owner]}.{n}" for owner, n in zip(owners, numbers, strict=True)])
    each = {name: lists(names, instance[name], gallery[name], ids) for name in WIDTHS}
    among = np.arange(0, len(ids), 2)
    boxes_I = torch.from_numpy(case.instance_rows) / 1000
    return {
        **{f"whole {name}": lists(case.ids["query"], query[name], gallery[name], ids) for name in WIDTHS},
        **{f"instances {name}": merge_instances(each[name], owners, case.ids["query"], case.depth) for name in WIDTHS},
        "each instance": each["product"],
        "among": lists(ids[among], gallery["product"][among], gallery["product"], ids, among),
        "zero": sum(int((vectors["product"] == 0).all(1).sum()) for vectors in (query, gallery)),
        "about": (owners, boxes_I[:, None].expand(-1, 4).numpy(), (boxes_I + 0.5).numpy()),
    }


def assert_same(found: dict[str, Any], wanted: dict[str, Any], case: Case) -> None:
    """Equal in every bit: lists, scores, and what is computed of them."""
    labels = [[(str(row % 3),) for row in range(len(case.ids[kind]))] for kind in ("query", "gallery")]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        for one, other in zip(found[key], value, strict=True) if isinstance(value, tuple) else [(found[key], value)]:
            assert np.array_equal(one, other), key
        if key.startswith(("whole", "instances")):
            assert official_metrics(found[key], *labels, ks=(1, 3)) == official_metrics(value, *labels, ks=(1, 3)), key


CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "num_queries": st.integers(1, 12),
    "num_items": st.integers(1, 30),
    "depth": st.integers(1, 35),
}


@given(world=st.integers(1, 4), block=st.integers(1, 9), **CASES)
@settings(max_examples=30)
def test_any_share_of_any_number_of_ranks_gives_the_lists_of_one_sort(world: int, block: int, **drawing: int) -> None:
    case = drawn(world=world, exact=True, **drawing)
    wanted = expected(case)
    with mock.patch.object(split_search, "QUERY_BLOCK", block):
        for found in in_turns(world, lambda rank: searched(case, rank)):
            assert_same(found, wanted, case)


@given(world=st.integers(2, 4), **CASES)
@settings(max_examples=20)
def test_rounding_noise_orders_alike_on_one_rank_and_on_several(world: int, **drawing: int) -> None:
    """Scores closer than a matrix product is exact; what one process finds is the measure."""
    case = drawn(world=world, exact=False, **drawing)
    together = {kind: [[row for rows in shares for row in rows]] for kind, shares in case.shares.items()}
    (wanted,) = in_turns(1, lambda rank: searched(case._replace(world=1, shares=together), rank))
    for found in in_turns(world, lambda rank: searched(case, rank)):
        assert_same(found, wanted, case)


def test_no_rank_is_handed_more_than_its_part_and_a_block() -> None:
    """Also where gallery items are the queries: of their vectors a rank sees a block at a time."""
    case = drawn(0, world=4, num_queries=12, num_items=200, depth=5, exact=True)
    dealt = {kind: [list(range(len(case.ids[kind])))[rank::4] for rank in range(4)] for kind in case.shares}
    handed: list[int] = []

    def watched(query_BD: torch.Tensor, gallery_ND: torch.Tensor, *more: Any) -> Ranking:
        handed.extend((len(query_BD), len(gallery_ND)))
        return searching(query_BD, gallery_ND, *more)

    searching = split_search.rank
    with mock.patch.object(split_search, "QUERY_BLOCK", 20), mock.patch.object(split_search, "rank", watched):
        in_turns(4, lambda rank: searched(case._replace(shares=dealt), rank))
    assert max(handed) == 50


def test_an_item_that_no_rank_has_is_missed_on_all_of_them() -> None:
    case = drawn(0, world=3, num_queries=4, num_items=9, depth=5, exact=True)
    case.shares["gallery"][:] = [[0, 1], [], [2, 3, 4, 5, 7, 8]]

    def complain(rank: int) -> str:
        with pytest.raises(ModelError) as caught:
            searched(case, rank)
        return str(caught.value)

    messages = in_turns(3, complain)
    assert len(set(messages)) == 1
    assert f"1 of 9 items of split 'gallery' were not embedded (first: {case.ids['gallery'][6]})" in messages[0]


def _on_gloo(case: Case) -> dict[str, list[torch.Tensor]]:
    """What this process finds, as tensors."""
    rank = torch.distributed.get_rank()
    found = searched(case, rank)
    return {
        key: [torch.from_numpy(value.index_QK), torch.from_numpy(value.score_QK)]
        for key, value in found.items()
        if isinstance(value, Ranking)
    }


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_find_what_threads_find(world: int, tmp_path: Path) -> None:
    case = drawn(7, world=world, num_queries=30, num_items=50, depth=20, exact=True)
    case.shares["gallery"][0] += case.shares["gallery"].pop()  # the last rank has nothing
    case.shares["gallery"].append([])
    wanted = expected(case)
    for found in run_on_ranks(world, tmp_path, _on_gloo, case):
        for key, (index_QK, score_QK) in found.items():
            assert np.array_equal(index_QK, wanted[key].index_QK), key
            assert np.array_equal(score_QK, wanted[key].score_QK), key
