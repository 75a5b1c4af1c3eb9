"""Which true boxes a list of proposals finds. Shape legend: R proposals, best first; N true boxes."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou


def found_at(boxes_R4: Tensor, true_N4: Tensor, iou: float) -> np.ndarray:
    """For each true box the rank (from 0) of the proposal that finds it, int64 N; R where none does.

    Proposals take their turn by score; each finds the free true box it overlaps most, if by at least `iou`. So no
    proposal counts twice, and the first k ranks are those of a list of k. Source: COCO's matching rule.
    """
    num_proposals, num_true = len(boxes_R4), len(true_N4)
    rank_N = np.full(num_true, num_proposals, np.int64)
    if not num_proposals or not num_true:
        return rank_N
    overlap_RN = box_iou(boxes_R4, true_N4).cpu().numpy()
    for rank in range(num_proposals):
        free_N = np.where(rank_N == num_proposals, overlap_RN[rank], -1.0)
        best = int(free_N.argmax())
        if free_N[best] >= iou:
            rank_N[best] = rank
    return rank_N
