"""Whitening of embeddings: directions that all items share count less, rare ones more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_modules.distributed import all_sum


class Whitening(nn.Module):
    """Subtract the mean and divide by the standard deviation along every principal direction. The identity until `fit`.

    Means over positions are dominated by what every caption (or picture) has: one common vector, and frequent words.
    Whitening does to them what inverse document frequency does to word counts. It needs no labels.
    Source: Jégou & Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening",
    ECCV 2012; for sentences Su et al., arXiv 2103.15316.
    Differs: the symmetric form (ZCA). Its result does not depend on signs and order of the eigenvectors, so it is the
    same on every machine and number of processes.

    Args:
        width: D of the vectors.
        shrinkage: Added to every eigenvalue of the covariance, as a share of the largest: directions with less variance
            than that are mostly noise and are not blown up.
    """

    mean_D: Tensor
    projection_DD: Tensor
    fitted: Tensor

    def __init__(self, width: int, shrinkage: float = 0.01) -> None:
        super().__init__()
        self.shrinkage = shrinkage
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("projection_DD", torch.eye(width))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, vectors_ND: Tensor) -> None:
        """Take mean and covariance from this rank's rows together with those of all other ranks."""
        x_ND = vectors_ND.double()
        count = all_sum(torch.tensor(float(len(x_ND)), dtype=torch.float64, device=x_ND.device))
        mean_D = all_sum(x_ND.sum(0)) / count
        centred_ND = x_ND - mean_D
        covariance_DD = all_sum(centred_ND.T @ centred_ND) / count
        variance_D, direction_DD = torch.linalg.eigh(covariance_DD)
        variance_D = variance_D.clamp(min=0)
        scale_D = (variance_D + self.shrinkage * variance_D[-1] + 1e-12).rsqrt()
        self.mean_D.copy_(mean_D)
        self.projection_DD.copy_((direction_DD * scale_D) @ direction_DD.T)
        self.fitted.fill_(True)

    @torch.no_grad()
    def forget(self) -> None:
        """The identity again: what is whitened has changed."""
        self.mean_D.zero_()
        self.projection_DD.copy_(torch.eye(len(self.mean_D)))
        self.fitted.fill_(False)

    def forward(self, vectors_BD: Tensor) -> Tensor:
        return (vectors_BD - self.mean_D) @ self.projection_DD
