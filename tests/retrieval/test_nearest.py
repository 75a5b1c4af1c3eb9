"""Nearest rows: exact against a dense sort, the index against the exact search, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retrieval import RetrievalError, nearest_rows
from retrieval.nearest import NO_ROW


def _clustered(num: int, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num // 20, width, generator=generator)
    rows = centres[torch.randint(len(centres), (num,), generator=generator)]
    return rows + 0.4 * torch.randn(num, width, generator=generator) + 10.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_lists_are_those_of_a_dense_sort(dtype: torch.dtype) -> None:
    rows = _clustered(300).to(dtype)
    squared_NN = (rows.double()[:, None] - rows.double()).square().sum(-1)
    squared_NN.fill_diagonal_(torch.inf)
    expected = squared_NN.sort(1)
    found = nearest_rows(rows, 7)
    assert found.squared_NK.dtype == rows.numpy().dtype
    assert (found.index_NK == expected.indices[:, :7].numpy()).all()
    np.testing.assert_allclose(found.squared_NK, expected.values[:, :7], rtol=1e-5 if dtype == torch.float32 else 1e-12)


def test_the_index_finds_what_the_exact_search_finds() -> None:
    rows = _clustered(6000)
    exact, found = nearest_rows(rows, 10), nearest_rows(rows, 10, exact_below=1000)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.index_NK.tolist(), found.index_NK.tolist(), strict=True)]
    assert np.mean(hits) > 9.6
    assert (np.diff(found.squared_NK, axis=1) >= 0).all()
    assert not (found.index_NK == np.arange(6000)[:, None]).any()
    again = nearest_rows(rows, 10, exact_below=1000)
    assert (again.index_NK == found.index_NK).all()
    assert (again.squared_NK == found.squared_NK).all()


def test_structureless_rows_are_searched_until_the_recall_is_there() -> None:
    rows = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    exact, found = nearest_rows(rows, 4), nearest_rows(rows, 4, exact_below=1000)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.index_NK.tolist(), found.index_NK.tolist(), strict=True)]
    assert np.mean(hits) > 3.8


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_too_few_rows_end_in_no_row(num: int) -> None:
    found = nearest_rows(torch.randn(num, 3, generator=torch.Generator().manual_seed(0)), 8)
    assert found.index_NK.shape == (num, 8)
    listed = max(0, num - 1)
    assert (found.index_NK[:, listed:] == NO_ROW).all()
    assert np.isinf(found.squared_NK[:, listed:]).all()
    assert (found.index_NK[:, :listed] >= 0).all()


@pytest.mark.parametrize("exact_below", [10_000, 100])
def test_many_identical_rows(exact_below: int) -> None:
    rows = _clustered(800)
    rows[100:400] = rows[100]
    found = nearest_rows(rows, 6, exact_below=exact_below)
    assert (found.squared_NK[100:400] == 0).all()
    assert ((found.index_NK[100:400] >= 100) & (found.index_NK[100:400] < 400)).all()
    assert not (found.index_NK == np.arange(800)[:, None]).any()
    assert all(len(set(row)) == 6 for row in found.index_NK.tolist())


def test_bad_input_is_named() -> None:
    rows = torch.zeros(20, 3)
    with pytest.raises(RetrievalError, match="k must be at least 1"):
        nearest_rows(rows, 0)
    rows[4, 1] = torch.nan
    with pytest.raises(RetrievalError, match="vector 4 holds nan or inf"):
        nearest_rows(rows, 2)
