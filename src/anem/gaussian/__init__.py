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

from anem.gaussian.energies import Gaussian, GaussianMixture
from anem.gaussian.pixels import IndependentPixels
from anem.gaussian.posterior import MAX_DENSE, GaussianPosterior, MixturePosterior, basis_matrix
from anem.gaussian.priors import make_mixture, make_power_law_gaussian, make_skewed, power_law_spectrum

__all__ = [
    "MAX_DENSE",
    "Gaussian",
    "GaussianMixture",
    "GaussianPosterior",
    "IndependentPixels",
    "MixturePosterior",
    "basis_matrix",
    "make_mixture",
    "make_power_law_gaussian",
    "make_skewed",
    "power_law_spectrum",
]
