"""AdaGAE as its paper and EGE-CMP's settings say it, on dense matrices: slow, short, and shared with nothing.

min_Z Σ_i KL(r_i | p_i): r from distances (eq. 8), p = softmax(−d) (eq. 11), loss with the Laplacian term (eq. 12).
"""

from __future__ import annotations

import torch
from torch import Tensor


def squared_distances(x_ND: Tensor) -> Tensor:
    return (x_ND[:, None] - x_ND[None]).square().sum(-1)


def dense_weights(x_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """r and W."""
    d_NN = squared_distances(x_ND)
    sorted_NN = d_NN.sort(1).values
    d_k = sorted_NN[:, k : k + 1]
    r_NN = (d_k - d_NN).clamp(min=0) / (k * d_k - sorted_NN[:, :k].sum(1, keepdim=True))
    return r_NN, (r_NN + r_NN.T) / 2


def dense_loss(x_ND: Tensor, r_NN: Tensor, w_NN: Tensor, w1: Tensor, w2: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """The loss, and Z."""
    degree = w_NN.sum(1)
    a_NN = degree.rsqrt().diag() @ w_NN @ degree.rsqrt().diag()
    z_NZ = a_NN @ (a_NN @ x_ND @ w1).relu() @ w2
    p_NN = (-squared_distances(z_NZ)).softmax(1)
    divergence = torch.where(r_NN > 0, r_NN * (r_NN.clamp(min=1e-30) / p_NN).log(), 0.0).sum(1).mean()
    return divergence + lam * (z_NZ.T @ (degree.diag() - w_NN) @ z_NZ).trace() / len(x_ND), z_NZ


def dense_adagae(
    x_ND: Tensor, w1: Tensor, w2: Tensor, rounds: int, steps: int, k: int, growth: int, lr: float, lam: float
) -> tuple[Tensor, list[list[float]]]:
    """W after the last round, and the losses before each step."""
    w1, w2 = w1.clone().requires_grad_(), w2.clone().requires_grad_()
    optimizer = torch.optim.Adam([w1, w2], lr=lr)
    r_NN, w_NN = dense_weights(x_ND, k)
    losses = []
    for _ in range(rounds):
        of_round = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss, _ = dense_loss(x_ND, r_NN, w_NN, w1, w2, lam)
            loss.backward()
            optimizer.step()
            of_round.append(loss.item())
        losses.append(of_round)
        if k >= len(x_ND) / 20:
            break
        with torch.no_grad():
            z_NZ = dense_loss(x_ND, r_NN, w_NN, w1, w2, lam)[1]
        r_NN, w_NN = dense_weights(z_NZ, k)
        k += growth
    return w_NN, losses


def dense_similarity(w_NN: Tensor) -> Tensor:
    """Cosine of the rows of W."""
    unit_NN = w_NN / w_NN.norm(dim=1, keepdim=True)
    return unit_NN @ unit_NN.T
