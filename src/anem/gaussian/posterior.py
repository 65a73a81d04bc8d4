"""Exact posteriors p(x given y) of Gaussians and mixtures, with dense matrices for small images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Basis, Mixed
from anem.covariance import Covariance

__all__ = ["MAX_DENSE", "GaussianPosterior", "MixturePosterior", "basis_matrix"]

MAX_DENSE = 1024
"""Largest number of coordinates C·H·W for which d × d matrices are formed."""


def basis_matrix(basis: Basis, shape: tuple[int, int, int] | torch.Size) -> Tensor:
    """B as dense orthogonal matrices, (1, d, d), or (B, d, d) for a :class:`Mixed` basis, for images (C, H, W); float64, d = C·H·W.

    Raises:
        ValueError: d > :data:`MAX_DENSE`.
    """
    d = math.prod(shape)
    if d > MAX_DENSE:
        raise ValueError(f"shape: a dense matrix needs C·H·W ≤ {MAX_DENSE}, got {tuple(shape)}, that is {d}")
    if isinstance(basis, Mixed):
        return torch.cat([basis_matrix(b, shape) for b in basis.bases])[basis.index]
    return basis.inverse(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(1, d, d)  # row k is Bᵀ e_k


def _square_root(matrix: Tensor) -> Tensor:
    """A factor F with F Fᵀ = matrix, (…, d, d), for a positive semi-definite matrix of any rank."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt().unsqueeze(-2)  # rounding leaves eigenvalues of about −1e-16


@dataclass(frozen=True, eq=False)
class MixturePosterior:
    """p(x given y) under a mixture prior: a mixture per image, in float64.

    Arguments:
        weights: responsibilities, (B, K).
        means: component means, (B, K, C, H, W).
        covariances: component covariances in image space, (B or 1, K, d, d).
        basis: the basis in which :attr:`variance` is given.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    basis: Basis

    @property
    def mean(self) -> Tensor:
        """E[x given y], (B, C, H, W)."""
        return torch.einsum("bk,bk...->b...", self.weights, self.means)

    @property
    def covariance(self) -> Tensor:
        """Cov(x given y) in image space, (B, d, d)."""
        spread = (self.means - self.mean[:, None]).flatten(2)
        within = (self.weights[..., None, None] * self.covariances).sum(1)
        return within + torch.einsum("bk,bki,bkj->bij", self.weights, spread, spread)

    @property
    def variance(self) -> Tensor:
        """Var(x_k given y) of every coordinate of the basis (averaged over k and −k in Fourier), (B, C, H, W)."""
        matrix = basis_matrix(self.basis, self.means.shape[2:]).to(self.means)
        variance = (matrix @ self.covariance * matrix).sum(-1)
        return self.basis.symmetrise(variance.reshape(-1, *self.means.shape[2:]))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws for each image, (n, B, C, H, W)."""
        b, k, *shape = self.means.shape
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator).T[..., None]  # (n, B, 1)
        flat, factors = self.means.flatten(2), _square_root(self.covariances)
        noise = torch.randn(n, b, flat.shape[-1], generator=generator, dtype=flat.dtype, device=flat.device)
        x = torch.zeros_like(noise)
        for j in range(k):  # every component for every draw: cheaper in memory than a factor per draw
            draw = flat[:, j] + (factors[:, j] @ noise[..., None])[..., 0]
            x = torch.where(chosen == j, draw, x)
        return x.reshape(n, b, *shape)


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """p(x given y) = N(mean, Bᵀ diag(variance) B) for a Gaussian prior and noise diagonal in one basis.

    Arguments:
        mean: (B, C, H, W).
        variance: per coordinate of ``basis``, (B, C, H, W).
        basis: their common basis.
    """

    mean: Tensor
    variance: Tensor
    basis: Basis

    @property
    def covariance(self) -> Tensor:
        """Cov(x given y) in image space, (B, d, d); ValueError above :data:`MAX_DENSE` coordinates."""
        matrix = basis_matrix(self.basis, self.mean.shape[1:]).to(self.mean)
        return matrix.mT @ (self.variance.flatten(1)[..., None] * matrix)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws for each image, (n, B, C, H, W)."""
        noise = torch.randn(n, *self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        cov = Covariance(self.variance, self.basis, check=False)
        return torch.stack([self.mean + cov.color(z) for z in noise])
