"""The score of a pair is the same alone, in a matrix and in any order of rows and axes' blocks."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch

from retrieval import pair_scores as module
from retrieval.pair_scores import all_pair_scores, pair_scores


def near_a_rounding_edge(number: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A query and items whose products lie halfway between two float32, as near as float64 can say."""
    generator = np.random.default_rng(seed)
    query_D = generator.standard_normal(width).astype(np.float32)
    query_D[-3:] = 1, 2.0**-24, 2.0**-48  # by these axes the sum is brought to its place
    items_ND = generator.standard_normal((number, width)).astype(np.float32) / width
    for item_D in items_ND:
        item_D[-3:] = 0
        edge = 0.5 + (2 * int(generator.integers(0, 2**22)) + 1) * 2.0**-25
        for axis in (-3, -2, -1):
            products = query_D.astype(np.float64) * item_D.astype(np.float64)
            item_D[axis] = np.float32((edge - math.fsum(products)) / float(query_D[axis]))
    return torch.from_numpy(query_D[None]), torch.from_numpy(items_ND)


def each_alone(query_QD: torch.Tensor, gallery_ND: torch.Tensor) -> np.ndarray:
    row_P, index_P = (x.ravel() for x in np.indices((len(query_QD), len(gallery_ND))))
    return pair_scores(query_QD, gallery_ND, row_P, index_P).reshape(len(query_QD), len(gallery_ND))


def test_where_the_order_of_summation_decides_it_is_that_of_a_pair_alone() -> None:
    query_QD, gallery_ND = near_a_rounding_edge(400, 67, 0)
    alone_QN = each_alone(query_QD, gallery_ND)
    backwards = (query_QD.double().flip(1) @ gallery_ND.double().flip(1).T).float().numpy()
    assert (backwards != alone_QN).any(), "another order of summation shows in these pairs"
    assert (all_pair_scores(query_QD, gallery_ND) == alone_QN).all()
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    assert (all_pair_scores(query_QD, gallery_ND[order]) == alone_QN[:, order.numpy()]).all()


@pytest.mark.parametrize("kind", ["any", "collapsed", "few axes", "zero"])
def test_all_pairs_are_scored_as_each_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query_QD, gallery_ND = torch.randn(6, 33, generator=generator), torch.randn(70, 33, generator=generator)
    if kind == "collapsed":
        query_QD, gallery_ND = 1 + query_QD * 1e-6, 1 + gallery_ND * 1e-6
    if kind == "few axes":
        gallery_ND *= torch.eye(33)[torch.arange(70) % 33]
    if kind == "zero":
        query_QD[::2] = 0
    with mock.patch.object(module, "GALLERY_BLOCK", 16):
        assert (all_pair_scores(query_QD, gallery_ND) == each_alone(query_QD, gallery_ND)).all()


def test_pairs_of_few_axes_are_not_scored_one_by_one() -> None:
    """Most of their products are 0 exactly, in any order of summation."""
    gallery_ND = torch.eye(40).repeat(50, 1) / 3
    with mock.patch.object(module, "_dots", wraps=module._dots) as singly:
        all_pair_scores(torch.eye(40) / 3, gallery_ND)
    assert sum(len(call.args[2]) for call in singly.call_args_list) < 40 * 2000 / 10
