"""What the baselines share: a prior seen through white noise, the authors' noise levels, and one random stream a sample.

The authors work with images u = 2x − 1 in [−1, 1] and with their variance-preserving x_t = √ᾱ u + √(1 − ᾱ) ε. Here both become the one
variable y = (x_t/√ᾱ + 1)/2 = x + s ε, with s = ½ √((1 − ᾱ)/ᾱ): an observation in white noise, which every energy knows. Their settings
keep their numbers, and are converted where they are used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators, generators_for
from anem.restorer import seeds_from
from anem.sample.posterior import chain_seed

__all__ = ["alpha_bars", "check_even", "denoise", "denoise_differentiably", "each_sample", "polynomial_levels"]


def denoise(model: EnergyModel, y: Tensor, sigma: float) -> Tensor:
    """E[x given y] for y = x + σ ε, (B, C, H, W); one network call, no graph."""
    return model.denoise(y, Covariance.white(sigma**2, y.shape, like=y))


def denoise_differentiably(model: EnergyModel, y: Tensor, sigma: float) -> Tensor:
    """The same with a graph back to ``y``, a leaf that requires its gradient."""
    energy = model.energy(y, Covariance.white(sigma**2, y.shape, like=y))
    (grad,) = torch.autograd.grad(energy.sum(), y, create_graph=True)
    return y - sigma**2 * grad


def alpha_bars(steps: int, trained: int = 1000, first: float = 1e-4, last: float = 0.02) -> list[float]:
    """ᾱ of ``steps`` of the ``trained`` steps of the linear β schedule, from the noisiest to the cleanest, then 1 for the clean image.

    Source: Ho et al. 2020, arXiv 2006.11239, sec. 4; evenly spaced steps as in Nichol & Dhariwal 2021, arXiv 2102.09672, sec. 4.
    """
    if not 1 <= steps <= trained:
        raise ValueError(f"steps: wanted 1 to {trained}, got {steps}")
    bars = (1 - torch.linspace(first, last, trained, dtype=torch.float64)).cumprod(0)
    return [*bars[torch.linspace(trained - 1, 0, steps).round().long()].tolist(), 1.0]


def check_even(sigma: float | Tensor, method: str) -> None:
    """Raise ValueError for a map of σ that differs between pixels, which a method that does not use σ cannot mind."""
    if isinstance(sigma, Tensor) and sigma.ndim > 1 and not bool((sigma == sigma[..., :1, :1]).all()):
        raise ValueError(f"sigma: wanted one number an image, {method} does not tell noisy pixels from others")


def polynomial_levels(high: float, low: float, count: int, power: float = 7.0) -> list[float]:
    """``count`` standard deviations from ``high`` to ``low``, even in σ^{1/power} (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    roots = torch.linspace(high ** (1 / power), low ** (1 / power), count, dtype=torch.float64)
    return roots.pow(power).tolist()


def each_sample(
    draw: Callable[[Generators], Tensor],
    samples: int,
    generators: Generators,
    measurement: Tensor,
    operator: LinearOperator,
    sigma: float | Tensor = 0.0,
) -> Tensor:
    """``samples`` runs of ``draw`` (B, C, H, W), stacked; every image of every run has random numbers of its own.

    Raises:
        ValueError: samples < 1, a measurement that is not finite or not of the operator's shape, σ that is no standard deviation.
    """
    if samples < 1:
        raise ValueError(f"samples: wanted at least 1, got {samples}")
    operator.check_measurement(measurement, sigma)
    if not bool(measurement.isfinite().all()):
        raise ValueError("measurement: wanted finite values, got NaN or infinity")
    seeds = seeds_from(generators, len(measurement))
    return torch.stack([draw(generators_for([chain_seed(seed, s) for seed in seeds], measurement.device)) for s in range(samples)])
