"""Priors with known answers: a power-law Gaussian, a mixture of different means and spectra, a skewed one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anem.bases import Fourier
from anem.covariance import Covariance
from anem.gaussian.energies import Gaussian, GaussianMixture
from anem.gaussian.posterior import GaussianPosterior

__all__ = ["make_mixture", "make_power_law_gaussian", "make_skewed", "power_law_spectrum"]


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
