"""The score of a pair: one kernel whose value depends on the two vectors alone.

A matrix product rounds its last digits by block shape and position, so the same pair would score differently in
another batch, in another gallery part or in FAISS, and equal items would not tie. Here torch takes the pairs one by
one, in float64, and rounds once to float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

QUERY_BLOCK, GALLERY_BLOCK = 16384, 2048  # float64 copies of 128 and 16 MB at width 1024
FP64_UNIT = 2.0**-53  # relative rounding error
FEW = 0.01  # of a block's pairs; to score more of them one by one costs more than a second product


def pair_scores(query_QD: Tensor, gallery_ND: Tensor, row_P: np.ndarray, index_P: np.ndarray) -> np.ndarray:
    """Inner product of each (query row, gallery row) pair, rounded once to float32.

    Always on the CPU, so that lists from different devices and ranks can be merged.

    Args:
        row_P, index_P: row of query_QD (ascending) and of gallery_ND for each pair.

    Returns: float32 P.
    """
    import torch

    out_P = np.empty(len(row_P), np.float32)
    bounds = np.searchsorted(row_P, np.arange(0, len(query_QD) + QUERY_BLOCK, QUERY_BLOCK))
    for block, (low, high) in enumerate(pairwise(bounds)):
        first = block * QUERY_BLOCK
        block_BD = query_QD[first : first + QUERY_BLOCK].cpu().double()
        row, index = row_P[low:high] - first, index_P[low:high]
        for start in range(0, len(gallery_ND), GALLERY_BLOCK):
            part_MD = gallery_ND[start : start + GALLERY_BLOCK]
            chosen = np.flatnonzero((index >= start) & (index < start + len(part_MD)))
            if chosen.size:
                dots_P = _dots(block_BD, part_MD.cpu().double(), row[chosen], index[chosen] - start)
                out_P[low + chosen] = dots_P.to(torch.float32).numpy()
    return out_P


def all_pair_scores(query_BD: Tensor, gallery_ND: Tensor) -> np.ndarray:
    """`pair_scores` of every pair, to the bit, for about the price of a float64 product.

    The product sums in an order of its own, which moves the 16th digit. Where that could show after rounding to
    float32, the pair is scored by itself.

    Returns: float32 B x N.
    """
    import torch

    block_BD = query_BD.cpu().double()
    norm_B1 = block_BD.norm(dim=1, keepdim=True)
    score_BN = np.empty((len(query_BD), len(gallery_ND)), np.float32)
    for start in range(0, len(gallery_ND), GALLERY_BLOCK):
        part_MD = gallery_ND[start : start + GALLERY_BLOCK].cpu().double()
        product_BM = block_BD @ part_MD.T
        unsure_BM = _may_round_otherwise(product_BM, norm_B1 * part_MD.norm(dim=1), block_BD.shape[1])
        if unsure_BM.count_nonzero() > FEW * unsure_BM.numel():  # vectors with few or no axes in common, mostly
            unsure_BM = _may_round_otherwise(product_BM, block_BD.abs() @ part_MD.abs().T, block_BD.shape[1])
        score_BM = score_BN[:, start : start + GALLERY_BLOCK]
        score_BM[:] = product_BM.to(torch.float32).numpy()
        row_P, index_P = np.nonzero(unsure_BM.numpy())
        score_BM[row_P, index_P] = _dots(block_BD, part_MD, row_P, index_P).to(torch.float32).numpy()
    return score_BN


def _may_round_otherwise(product_BM: Tensor, absolute_BM: Tensor, width: int) -> Tensor:
    """Whether another order of summation could end in another float32.

    Two sums of D exact products differ by at most 2·D·u·Σ|q·g| (Higham, 2002, §3.1), and by Cauchy-Schwarz the sum of
    absolute products, `absolute_BM`, is no more than |q|·|g|.
    """
    import torch

    slack_BM = 2.02 * (width + 2) * FP64_UNIT * absolute_BM
    return (product_BM - slack_BM).to(torch.float32) != (product_BM + slack_BM).to(torch.float32)


def _dots(query_BD: Tensor, part_MD: Tensor, row_P: np.ndarray, index_P: np.ndarray) -> Tensor:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse CSR.*")  # "beta state"
        pattern = torch.sparse_csr_tensor(
            torch.from_numpy(np.searchsorted(row_P, np.arange(len(query_BD) + 1))),
            torch.from_numpy(index_P),
            torch.zeros(len(row_P), dtype=torch.float64),
            size=(len(query_BD), len(part_MD)),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(pattern, query_BD, part_MD.T, beta=0.0).values()


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in true float32: TF32 or bfloat16, set for training, would change lists; the setting is put back."""
    import torch

    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    new_style = all(hasattr(switch, "fp32_precision") for switch in switches)  # torch >= 2.9; not to be mixed with old
    before = [switch.fp32_precision for switch in switches] if new_style else [torch.get_float32_matmul_precision()]
    try:
        if new_style:
            for switch in switches:
                switch.fp32_precision = "ieee"
        else:
            torch.set_float32_matmul_precision("highest")
        with torch.inference_mode(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        if new_style:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value
        else:
            torch.set_float32_matmul_precision(before[0])
