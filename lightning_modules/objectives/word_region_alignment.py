"""WRA: move the words of a caption onto the regions of its picture at the least cost."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@torch.no_grad()
def optimal_transport(
    cost_BTR: Tensor, token_mask_BT: Tensor, region_mask_BR: Tensor, beta: float = 0.5, iterations: int = 50
) -> Tensor:
    """A plan that moves equal weights of the real tokens onto equal weights of the real regions: plan_BTR, sums 1.

    IPOT, algorithm 1 of Xie et al. (arXiv 1802.04307), with one inner iteration: each outer one is a step of Sinkhorn
    on exp(−cost / β) times the plan before, so that the plan tends to the exact one whatever β. Token weights hold
    exactly, region weights once it has converged. Without gradient, in fp32.

    Args:
        cost_BTR: Of moving a token onto a region.
        token_mask_BT, region_mask_BR: True = real. Under them the plan is 0, and where a sample has no real ones.
        beta: Step size; smaller steps go further, and underflow where costs differ by more than about 80 β.
        iterations: Outer ones. UNITER's released code takes β 0.5 and 50.
    """
    with torch.autocast(cost_BTR.device.type, enabled=False):
        tokens_BT, regions_BR = token_mask_BT.float(), region_mask_BR.float()
        weight_BT = tokens_BT / tokens_BT.sum(1, keepdim=True).clamp(min=1)
        weight_BR = regions_BR / regions_BR.sum(1, keepdim=True).clamp(min=1)
        real_BTR = token_mask_BT.unsqueeze(2) & region_mask_BR.unsqueeze(1)
        kernel_BTR = torch.exp(-cost_BTR.float() / beta).masked_fill(~real_BTR, 0.0)
        tiny = torch.finfo(torch.float32).tiny  # a sum of 0 has weight 0: 0 / tiny
        plan_BTR, token_scale_BT = real_BTR.float(), weight_BT
        for _ in range(iterations):
            kernel_plan_BTR = kernel_BTR * plan_BTR
            region_scale_BR = weight_BR / torch.einsum("btr,bt->br", kernel_plan_BTR, token_scale_BT).clamp(min=tiny)
            token_scale_BT = weight_BT / torch.einsum("btr,br->bt", kernel_plan_BTR, region_scale_BR).clamp(min=tiny)
            plan_BTR = token_scale_BT.unsqueeze(2) * kernel_plan_BTR * region_scale_BR.unsqueeze(1)
        return plan_BTR


class WordRegionAlignment(nn.Module):
    """The transport distance of matched pairs is to be small, of unmatched ones large; goes with image-text matching.

    Cost = 1 − cosine of fused outputs. The gradient passes through the cost, the plan is a constant.
    Source: UNITER (arXiv 1909.11740) §3.2, WRA, and its released code: the distances of matched pairs minus those of
    unmatched ones, per pair, weighted with 0.1. It has no parameters.

    Args:
        weight: Of this loss beside that of image-text matching.
        beta, iterations: See `optimal_transport`.
    """

    def __init__(self, weight: float = 0.1, beta: float = 0.5, iterations: int = 50) -> None:
        super().__init__()
        self.weight = weight
        self.beta = beta
        self.iterations = iterations

    def forward(
        self, text_BTD: Tensor, token_mask_BT: Tensor, image_BRD: Tensor, region_mask_BR: Tensor, matched_B: Tensor
    ) -> Tensor:
        """Loss averaged over this rank's pairs, whose number is the same on every rank; distances in fp32."""
        with torch.autocast(text_BTD.device.type, enabled=False):
            text_BTD, image_BRD = F.normalize(text_BTD.float(), dim=-1), F.normalize(image_BRD.float(), dim=-1)
            cost_BTR = 1 - text_BTD @ image_BRD.mT
            plan_BTR = optimal_transport(cost_BTR, token_mask_BT, region_mask_BR, self.beta, self.iterations)
            distance_B = (plan_BTR * cost_BTR).sum((1, 2))
            return self.weight * torch.where(matched_B, distance_B, -distance_B).mean()
