"""U(y, Σ) of Gaussians and mixtures in closed form; see :mod:`anem.gaussian` for the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Basis, BlockDCT, Fourier, Mixed, Pixel
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.gaussian.posterior import MAX_DENSE, GaussianPosterior, MixturePosterior, basis_matrix
from anem.statistics import VARIANCE_FLOOR, DataStatistics

__all__ = ["Gaussian", "GaussianMixture"]


@dataclass(frozen=True, eq=False)
class _Components:
    """A mixture seen at (y, Σ), in the coordinates of the basis: everything energy, gradients and posterior share."""

    matrix: Tensor  # B, (1 or B, d, d)
    means: Tensor  # B m_k, (1 or B, K, d)
    priors: Tensor  # B C_k Bᵀ, (1 or B, K, d, d)
    factors: Tensor  # Cholesky factors of A_k, (1 or B, K, d, d)
    solved: Tensor  # A_k⁻¹ B (y − m_k), (B, K, d)
    log_joint: Tensor  # log w_k N(y; m_k, A_k), (B, K)


class GaussianMixture(EnergyModel):
    """−log Σ_k w_k N(y; m_k, C_k + Σ) for dense covariances and noise in any basis, :class:`Mixed` included.

    Arguments:
        weights: (K,), positive, summing to 1.
        means: (K, C, H, W).
        covariances: (K, d, d) in image space, d = C·H·W ≤ :data:`MAX_DENSE`, symmetric positive semi-definite.
        statistics: data statistics; the exact ones are computed if None.

    Raises:
        ValueError: shapes that do not agree, weights that are not a distribution, a covariance that is none.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor, statistics: DataStatistics | None = None) -> None:
        super().__init__()
        k, d = len(means), means[0].numel()
        if weights.shape != (k,) or covariances.shape != (k, d, d):
            raise ValueError(f"weights, covariances: wanted {(k,)} and {(k, d, d)}, got {tuple(weights.shape)}, {tuple(covariances.shape)}")
        if not bool((weights > 0).all()) or abs(float(weights.sum()) - 1) > 1e-6:
            raise ValueError(f"weights: wanted positive numbers summing to 1, got {weights.tolist()}")
        covariances = covariances.double()
        scale = covariances.abs().amax((1, 2), keepdim=True)
        symmetric = bool(((covariances - covariances.mT).abs() <= 1e-6 * scale).all())
        if not symmetric or not bool((torch.linalg.eigvalsh(covariances) >= -1e-6 * scale[..., 0]).all()):
            raise ValueError("covariances: wanted symmetric positive semi-definite matrices")
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("means", means.double())
        self.register_buffer("covariances", 0.5 * (covariances + covariances.mT))
        self._projected: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.statistics = statistics if statistics is not None else self._exact_statistics()

    def _exact_statistics(self) -> DataStatistics:
        shape = self.means.shape[1:]
        prior = MixturePosterior(self.weights[None], self.means[None], self.covariances[None], Pixel())
        mean, covariance = prior.mean[0], prior.covariance[0]
        offset = (mean - mean.mean((1, 2), keepdim=True)).flatten()
        largest = float(torch.linalg.eigvalsh(covariance + torch.outer(offset, offset))[-1])

        def variance_in(basis: Basis) -> Tensor:
            matrix = basis_matrix(basis, shape)[0]
            return (matrix @ covariance * matrix).sum(-1).reshape(shape)

        return _exact_statistics(mean, variance_in, largest)

    def _in_basis(self, basis: Basis) -> tuple[Tensor, Tensor, Tensor]:
        """(B, B m_k, B C_k Bᵀ) with a leading dimension 1, or B for a :class:`Mixed` basis."""
        if isinstance(basis, Mixed):
            parts = zip(*(self._in_basis(b) for b in basis.bases), strict=True)
            matrix, means, priors = (torch.cat(p)[basis.index.to(self.means.device)] for p in parts)
            return matrix, means, priors
        if basis.name not in self._projected:
            matrix = basis_matrix(basis, self.means.shape[1:]).to(self.means.device)
            means = torch.einsum("ij,kj->ki", matrix[0], self.means.double().flatten(1))
            self._projected[basis.name] = matrix, means[None], (matrix @ self.covariances.double() @ matrix.mT)[None]
        return self._projected[basis.name]

    def _apply(self, fn, recurse: bool = True):
        self._projected.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._projected.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _components(self, y: Tensor, cov: Covariance, shared: bool = False) -> _Components:
        """``shared`` factorises once if every image has the same Σ; the factors then carry no gradient to the other rows."""
        matrix, means, priors = self._in_basis(cov.basis)
        values = cov.basis.symmetrise(cov.values.double()).flatten(1)
        if shared and len(matrix) == 1 and bool((values == values[:1]).all()):
            values = values[:1]
        factors = torch.linalg.cholesky(priors + torch.diag_embed(values)[:, None])
        residual = cov.basis.forward(y.double()).flatten(1)[:, None] - means
        if len(factors) == 1:
            solved = torch.cholesky_solve(residual.permute(1, 2, 0), factors[0]).permute(2, 0, 1)
        else:
            solved = torch.cholesky_solve(residual[..., None], factors)[..., 0]
        logdet = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        quadratic = (residual * solved).sum(-1)
        constant = residual.shape[-1] * math.log(2 * math.pi)
        return _Components(matrix, means, priors, factors, solved, self.weights.double().log() - 0.5 * (quadratic + logdet + constant))

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), for y (B, C, H, W); computed in float64, returned in the dtype of ``y``."""
        return -self._components(y, cov).log_joint.logsumexp(1).to(y.dtype)

    @torch.no_grad()
    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        """Energy and both gradients in closed form; equal to what automatic differentiation of :meth:`energy` gives."""
        at = self._components(y, cov, shared=True)
        weights = at.log_joint.softmax(1)[..., None]
        grad = (weights * at.solved).sum(1)
        precisions = torch.cholesky_inverse(at.factors).diagonal(dim1=-2, dim2=-1)
        grad_var = 0.5 * (weights * (precisions - at.solved.square())).sum(1)
        grad_y = cov.basis.inverse(grad.reshape(y.shape))
        grad_logvar = cov.values * cov.basis.symmetrise(grad_var.reshape(y.shape))
        return Evaluation(y.detach(), cov, -at.log_joint.logsumexp(1).to(y.dtype), grad_y.to(y.dtype), grad_logvar.to(y.dtype))

    @torch.no_grad()
    def posterior(self, y: Tensor, cov: Covariance) -> MixturePosterior:
        """The exact p(x given y, Σ), (B, C, H, W) images."""
        at = self._components(y, cov, shared=True)
        values = cov.basis.symmetrise(cov.values.double()).flatten(1)[: len(at.factors), None, :, None]
        # C − C A⁻¹ C written as a sum of two positive terms, G Σ Gᵀ + (I − G) C (I − G)ᵀ with I − G = Σ A⁻¹: no cancellation.
        precision = torch.cholesky_inverse(at.factors)
        gain, rest = at.priors @ precision, values * precision
        covariances = gain @ (values * gain.mT) + rest @ at.priors @ rest.mT
        means = at.means + torch.einsum("bkij,bkj->bki", at.priors.expand(len(y), -1, -1, -1), at.solved)
        matrix = at.matrix[:, None]
        images = (matrix.mT @ means[..., None])[..., 0].reshape(*means.shape[:2], *y.shape[1:])
        return MixturePosterior(at.log_joint.softmax(1), images, matrix.mT @ covariances @ matrix, cov.basis)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n clean images, (n, C, H, W), float64."""
        prior = MixturePosterior(self.weights[None], self.means[None], self.covariances[None], Pixel())
        return prior.sample(n, generator)[:, 0]


class Gaussian(EnergyModel):
    """−log N(y; m, C + Σ) for C diagonal in a basis: any size for noise in that basis, small images for noise in the others.

    Arguments:
        mean: mean image m, (C, H, W).
        cov: C, (1, C, H, W), in any one basis. If it is constant in each channel, it is diagonal in all of them.
        statistics: data statistics; the exact ones are computed if None, at a cost of (H·W)².

    Raises:
        ValueError: (from the methods) noise in another basis and C·H·W > :data:`MAX_DENSE`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, mean: Tensor, cov: Covariance, statistics: DataStatistics | None = None) -> None:
        super().__init__()
        if cov.shape != (1, *mean.shape):
            raise ValueError(f"cov: wanted shape {(1, *mean.shape)}, got {tuple(cov.shape)}")
        self.register_buffer("mean", mean.double())
        self.register_buffer("variance", cov.values.double())
        self.basis = cov.basis
        flat = self.variance.flatten(2)
        self._white = bool((flat == flat[..., :1]).all())
        self.statistics = statistics if statistics is not None else self._exact_statistics()
        self.dense: GaussianMixture | None = None
        if mean.numel() <= MAX_DENSE:
            covariance = GaussianPosterior(self.mean[None], self.variance, self.basis).covariance
            self.dense = GaussianMixture(torch.ones(1), self.mean[None], covariance, self.statistics)

    def _exact_statistics(self) -> DataStatistics:
        c, h, w = self.mean.shape
        offset = self.mean - self.mean.mean((1, 2), keepdim=True)

        def variance_in(basis: Basis) -> Tensor:
            rows = basis.inverse(torch.eye(h * w, dtype=torch.float64).reshape(-1, 1, h, w))
            change = self.basis.forward(rows).square().reshape(h * w, h * w)
            return (self.variance[0].flatten(1) @ change.T).reshape(c, h, w)

        return _exact_statistics(self.mean, variance_in, float(self.variance.max() + offset.square().sum()))

    def _dense_for(self, basis: Basis) -> GaussianMixture | None:
        """The dense route for noise in ``basis``, or None where C is diagonal in it too."""
        if self._white or basis == self.basis:
            return None
        if self.dense is None:
            raise ValueError(
                f"cov: a Gaussian diagonal in {self.basis.name!r} takes noise in {basis.name!r} only up to {MAX_DENSE} coordinates, "
                f"got {self.mean.numel()}"
            )
        return self.dense

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), for y (B, C, H, W); computed in float64, returned in the dtype of ``y``."""
        dense = self._dense_for(cov.basis)
        if dense is not None:
            return dense.energy(y, cov)
        total = self.variance + cov.basis.symmetrise(cov.values.double())
        residual = cov.basis.forward(y.double() - self.mean)
        return 0.5 * (residual.square() / total + (2 * math.pi * total).log()).flatten(1).sum(1).to(y.dtype)

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        dense = self._dense_for(cov.basis)
        return super().forward(y, cov) if dense is None else dense(y, cov)

    @torch.no_grad()
    def posterior(self, y: Tensor, cov: Covariance) -> GaussianPosterior | MixturePosterior:
        """The exact p(x given y, Σ), (B, C, H, W) images."""
        dense = self._dense_for(cov.basis)
        if dense is not None:
            return dense.posterior(y, cov)
        values = cov.basis.symmetrise(cov.values.double())
        gain = self.variance / (self.variance + values)
        mean = self.mean + cov.basis.inverse(gain * cov.basis.forward(y.double() - self.mean))
        return GaussianPosterior(mean, gain * values, cov.basis)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n clean images, (n, C, H, W), float64."""
        return GaussianPosterior(self.mean[None], self.variance, self.basis).sample(n, generator)[:, 0]


def _exact_statistics(mean: Tensor, variance_in: Callable[[Basis], Tensor], largest: float) -> DataStatistics:
    """The statistics :meth:`DataStatistics.fit` would converge to, from a mean image (C, H, W) and variances in every basis."""
    c, h, w = mean.shape
    stats = DataStatistics(c, h, w).double()
    stats.mean.copy_(mean.mean((1, 2)))
    offset = mean - mean.mean((1, 2), keepdim=True)

    def power(basis: Basis) -> Tensor:
        return (basis.symmetrise(variance_in(basis)[None]) + basis.power(offset[None]))[0].clamp_min(VARIANCE_FLOOR)

    stats.spectrum.copy_(power(Fourier()))
    stats.variance.copy_(power(Pixel()).mean((1, 2)))
    for f in stats.dct:
        stats.get_buffer(f"dct{f}").copy_(power(BlockDCT(f)).reshape(c, h // f, f, w // f, f).mean((1, 3)))
    stats.largest_eigenvalue.fill_(largest)
    return stats
