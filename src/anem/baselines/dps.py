"""Diffusion posterior sampling: unconditional sampling, pushed towards the measurement through the denoiser's Jacobian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.baselines.isotropic import alpha_bars, check_even, denoise_differentiably, each_sample
from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators, normal

__all__ = ["DPS"]


@dataclass(frozen=True)
class DPS:
    """x_{t−1} = DDPM(x_t) − ζ ∇_{x_t} ‖m − H x̂₀(x_t)‖, the norm of each image by itself.

    Arguments:
        model: the prior, used in white noise alone.
        scale: ζ; the authors' 0.3 for ×4 super-resolution and blur, 0.5 for inpainting, at 1000 steps of 256 × 256 images.
        steps: network calls for a sample, up to 1000.
        clip: x̂₀ is clamped to the range of images, as the authors do; the gradient is then 0 where the clamp acts.
        samples: S.

    References: Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al. 2023), arXiv 2209.14687, algorithm 1.
    """

    model: EnergyModel
    scale: float = 0.3
    steps: int = 1000
    clip: bool = True
    samples: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale: wanted a number >= 0, got {self.scale}")

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`. σ is not used: ζ stands for it."""
        check_even(sigma, "DPS")

        def draw(noise: Generators) -> Tensor:
            return self._sample(measurement, operator, noise)

        return each_sample(draw, self.samples, generators, measurement, operator, sigma)

    def _sample(self, measurement: Tensor, operator: LinearOperator, generators: Generators) -> Tensor:
        shape = operator.image_shape(measurement.shape)
        bars = alpha_bars(self.steps)
        y = 0.5 + 0.5 / bars[0] ** 0.5 * normal(shape, generators, measurement)
        for now, then in zip(bars[:-1], bars[1:], strict=True):
            before, after = (1 - now) / now / 4, (1 - then) / then / 4  # variances s² of y
            x, grad = self._guided(y, before**0.5, measurement, operator)
            ratio = after / before
            y = x + ratio * (y - x) - self.scale / (2 * (now * then) ** 0.5) * grad
            if after > 0:
                y = y + (after * (1 - ratio)) ** 0.5 * normal(shape, generators, measurement)
        return y

    def _guided(self, y: Tensor, sigma: float, measurement: Tensor, operator: LinearOperator) -> tuple[Tensor, Tensor]:
        """x̂₀(y) and ∇_y ‖m − H x̂₀‖, (B, C, H, W) each."""
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            x = denoise_differentiably(self.model, leaf, sigma)
            x = x.clamp(0, 1) if self.clip else x
            distance = (measurement - operator(x)).flatten(1).norm(dim=1)
            (grad,) = torch.autograd.grad(distance.sum(), leaf)
        return x.detach(), grad
