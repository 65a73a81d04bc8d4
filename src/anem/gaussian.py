"""Exact energies: Gaussians and mixtures of Gaussians, the oracles that every learned or sampled quantity is checked against.

With a prior Σ_k w_k N(m_k, C_k) and noise Σ = Bᵀ diag(λ) B, y is a mixture of N(m_k, A_k), A_k = C_k + Σ, so that

    U(y, Σ) = −log Σ_k w_k N(y; m_k, A_k),   ∇_yU = Σ_k r_k A_k⁻¹(y − m_k),   ∂U/∂Σ = ½ Σ_k r_k (A_k⁻¹ − A_k⁻¹(y − m_k)(y − m_k)ᵀA_k⁻¹)

with responsibilities r_k, and the posterior p(x given y) is a mixture again. All of it is computed in float64 and in the coordinates of
the noise's basis, where a Cholesky factorisation does not mind variances that differ by many powers of ten.

A user's own energy is a subclass of :class:`~anem.energy.EnergyModel` with two things, ``energy(y, cov)``, differentiable in ``y`` and
``cov.values``, and ``statistics``. Sampling, likelihoods and estimation then work with it as they do with a learned model:

>>> import torch
>>> from anem.covariance import Covariance
>>> from anem.energy import EnergyModel
>>> from anem.statistics import DataStatistics
>>> class WhiteGaussian(EnergyModel):
...     def __init__(self):
...         super().__init__()
...         self.statistics = DataStatistics(channels=1, height=4, width=4)  # mean 0, variance 1 in every basis
...
...     def energy(self, y, cov):
...         total = 1 + cov.values
...         return 0.5 * (cov.basis.forward(y).square() / total + (2 * torch.pi * total).log()).sum((1, 2, 3))
>>> cov = Covariance.white(1.0, (1, 1, 4, 4), "fourier")
>>> WhiteGaussian()(torch.ones(1, 1, 4, 4), cov).denoised.unique()
tensor([0.5000])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Basis, BlockDCT, Covariance, Fourier, Mixed, Pixel
from anem.energy import EnergyModel, Evaluation
from anem.statistics import VARIANCE_FLOOR, DataStatistics

__all__ = [
    "MAX_DENSE",
    "Gaussian",
    "GaussianMixture",
    "GaussianPosterior",
    "MixturePosterior",
    "basis_matrix",
    "make_mixture",
    "make_power_law_gaussian",
    "make_skewed",
    "power_law_spectrum",
]

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


def power_law_spectrum(
    height: int, width: int, exponent: float = 2.0, variance: float = 0.06, angle: float = 0.0, stretch: float = 1.0
) -> Tensor:
    """A power spectrum ∝ (f₀ + |f|)^{−exponent}, f₀ one cycle an image, (H, W) on the FFT grid, float64.

    Arguments:
        exponent: 2 is close to natural images.
        variance: pixel variance, the mean of the spectrum.
        angle, stretch: frequencies along ``angle`` (radians) count ``stretch`` times, which orients the texture.
    """
    fy, fx = Fourier().frequencies(height, width).double()
    along, across = math.cos(angle) * fx + math.sin(angle) * fy, math.cos(angle) * fy - math.sin(angle) * fx
    radius = ((stretch * along).square() + across.square()).sqrt()
    spectrum = Fourier().symmetrise((1 / min(height, width) + radius).pow(-exponent)[None])[0]
    return variance * spectrum / spectrum.mean()


def make_power_law_gaussian(channels: int = 1, height: int = 8, width: int = 8, exponent: float = 2.0, variance: float = 0.06) -> Gaussian:
    """A stationary Gaussian with a power-law spectrum and mean ½; ``variance`` is that of a pixel."""
    spectrum = power_law_spectrum(height, width, exponent, variance).expand(1, channels, -1, -1)
    return Gaussian(torch.full((channels, height, width), 0.5, dtype=torch.float64), Covariance(spectrum, "fourier"))


def make_mixture(components: int = 8, channels: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> GaussianMixture:
    """A mixture of Gaussians with different weights, smooth mean images and oriented power-law spectra of different exponents."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    weights = uniform(0.5, 1.5, components)
    smooth = Covariance(power_law_spectrum(height, width, 3.0, 0.05).expand(components, channels, -1, -1), "fourier")
    means = 0.5 + smooth.color(torch.randn(smooth.shape, generator=generator, dtype=torch.float64))
    exponents, variances = uniform(1.0, 3.0, components), uniform(0.005, 0.03, components)
    angles, stretches = uniform(0, math.pi, components), uniform(1.0, 3.0, components)
    parameters = zip(exponents.tolist(), variances.tolist(), angles.tolist(), stretches.tolist(), strict=True)
    spectra = torch.stack([power_law_spectrum(height, width, *p) for p in parameters])[:, None].expand(-1, channels, -1, -1)
    covariances = GaussianPosterior(means, spectra, Fourier()).covariance
    return GaussianMixture(weights / weights.sum(), means, covariances)


def make_skewed(channels: int = 1, height: int = 8, width: int = 8) -> GaussianMixture:
    """A skewed prior: a narrow Gaussian of weight 0.7 and a wide one of weight 0.3 with a brighter mean.

    Third moments are far from zero, so that a sign error in a drift shows; a symmetric target hides it.
    """
    means = torch.tensor([0.4, 0.7], dtype=torch.float64)[:, None, None, None].expand(-1, channels, height, width)
    spectra = torch.stack([power_law_spectrum(height, width, 2.0, 0.004), power_law_spectrum(height, width, 1.5, 0.04)])
    covariances = GaussianPosterior(means, spectra[:, None].expand(-1, channels, -1, -1), Fourier()).covariance
    return GaussianMixture(torch.tensor([0.7, 0.3]), means, covariances)
