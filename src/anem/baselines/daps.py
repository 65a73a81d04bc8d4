"""DAPS: a path of noise levels along which only the marginals are kept, each visited afresh from a draw given the measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.baselines.isotropic import check_even, denoise, each_sample, polynomial_levels
from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators, normal

__all__ = ["DAPS"]


@dataclass(frozen=True)
class DAPS:
    """At each level σ_i: x̂₀(x_i) by the probability flow, Langevin for N(x; x̂₀, σ_i²) N(m; Hx, τ²), then x_{i+1} = x + σ_{i+1} z.

    Langevin: x ← x + η s + √(2η) z, s = Hᵀ(m − Hx)/τ² + (x̂₀ − x)/σ_i², from x̂₀; η_i = lr [1 − 0.99 i/N]. All numbers are those for
    images in [−1, 1]; s is the gradient of the log-density, half the gradient of ‖Hx − m‖²/τ². η is at most τ²/max |h|² of an image, above
    which Langevin diverges.

    Arguments:
        model: the prior, used in white noise alone.
        levels, ode: N, and Euler steps of each flow: N · ode network calls for a sample.
        langevin: steps at each level, without network calls.
        learning_rate: lr; 1e-4 (super-resolution, blur) or 5e-5 (box).
        tau: τ, a setting of the authors'; None for the measurement's own σ.
        highest, lowest: σ of the first and the last level.
        samples: S.

    References: Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al. 2025), arXiv 2407.01521,
    algorithm 1 and its table of settings.
    """

    model: EnergyModel
    levels: int = 200
    ode: int = 5
    langevin: int = 100
    learning_rate: float = 1e-4
    tau: float | None = 0.01
    highest: float = 100.0
    lowest: float = 0.1
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("levels", "ode", "langevin"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "tau", "highest", "lowest"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: wanted a number > 0, got {value}")
        if self.lowest > self.highest:
            raise ValueError(f"lowest: wanted at most highest, {self.highest}, got {self.lowest}")

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`. σ is used only if τ is None."""
        if self.tau is not None:
            check_even(sigma, "DAPS with τ of its own")
        std = torch.as_tensor(sigma if self.tau is None else 0.5 * self.tau, dtype=measurement.dtype, device=measurement.device)
        precision = (std.reshape(-1, 1, 1, 1) if std.ndim < 2 else std).pow(-2)
        if not bool(torch.isfinite(precision).all()):
            raise ValueError("sigma: wanted standard deviations > 0")

        def draw(noise: Generators) -> Tensor:
            return self._sample(measurement, operator, precision, noise)

        return each_sample(draw, self.samples, generators, measurement, operator, sigma)

    @torch.no_grad()
    def _sample(self, measurement: Tensor, operator: LinearOperator, precision: Tensor, generators: Generators) -> Tensor:
        # In x = (u + 1)/2 standard deviations are half, step sizes a quarter of the authors'.
        sigmas = [0.5 * s for s in polynomial_levels(self.highest, self.lowest, self.levels)]
        x = torch.full(operator.image_shape(measurement.shape), 0.5).to(measurement)
        gain = operator.response(x.shape, x).abs().square().expand_as(x).flatten(1).amax(1)
        stable = 1 / (gain * precision.expand_as(measurement).flatten(1).amax(1)).reshape(-1, 1, 1, 1)
        for i, sigma in enumerate(sigmas):
            mean = self._flow(x + sigma * normal(x.shape, generators, x), sigma)
            step = 0.25 * self.learning_rate * (1 - 0.99 * i / self.levels)
            eta = stable.clamp(max=step)
            x = mean
            for _ in range(self.langevin):
                score = operator.adjoint((measurement - operator(x)) * precision) + (mean - x) / sigma**2
                x = x + eta * score + (2 * eta) ** 0.5 * normal(x.shape, generators, x)
        return x

    def _flow(self, x: Tensor, sigma: float) -> Tensor:
        """The probability flow from noise σ to none, by Euler steps dx = (x − D)/σ dσ."""
        levels = [*polynomial_levels(sigma, min(sigma, 0.005), self.ode), 0.0]
        for now, then in zip(levels[:-1], levels[1:], strict=True):
            x = x + (then / now - 1) * (x - denoise(self.model, x, now))
        return x
