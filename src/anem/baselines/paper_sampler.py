"""The sampler of Zilberstein et al. as their released code has it: Euler predictor, corrector scaled by a signal-to-noise ratio.

Against :mod:`anem.sample` it lacks the likelihood of the observed part of y in the corrector's target, and its corrector's step depends on
where the chain is, so that no law is left invariant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.operators import LinearOperator
from anem.random import Generators
from anem.restorer import seeds_from
from anem.sample import Corrector, Euler, Geometric, Kernel, Noise, Sampler, Target
from anem.sample.correctors import Corrected
from anem.sample.kernels import Model

__all__ = ["PaperSampler", "SNRCorrector", "TemperedEuler"]


class _Tempered(Noise):
    """Random numbers times a temperature."""

    def __init__(self, noise: Noise, temperature: float) -> None:
        super().__init__(noise.generators)
        self.temperature = temperature

    def normal(self, like: Tensor) -> Tensor:
        return self.temperature * super().normal(like)


@dataclass(frozen=True)
class TemperedEuler(Kernel):
    """x − δΣ ∇U + T δΣ^{1/2} z, every step of the path, the last one too.

    Arguments:
        temperature: T.
    """

    temperature: float = 1.0
    name = "paper"
    order = 1
    calls = 1

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        return Euler().step(model, now, target, _Tempered(noise, self.temperature), before)


@dataclass(frozen=True)
class SNRCorrector(Corrector):
    """x − ε Σ∇U + T √(2ε) Σ^{1/2} z with ε = 2 (snr ‖z‖/‖Σ^{1/2}∇U‖)², norms of each image by itself; all coordinates move.

    Arguments:
        snr: the ratio of the step along the gradient to its noise.
        temperature: T.

    Source: the step size of Song et al. 2021, arXiv 2011.13456, algorithm 4, in the coordinates whitened by Σ.
    """

    snr: float = 0.1
    temperature: float = 1.0

    def correct(self, model: Model, now: Evaluation, target: Target, step_size: Tensor, noise: Noise) -> Corrected:
        for _ in range(self.steps):
            root, basis = now.cov.values.sqrt(), now.cov.basis
            grad, z = root * basis.forward(now.grad_y), noise.normal(now.y)
            ratio = z.flatten(1).norm(dim=1) / grad.flatten(1).norm(dim=1)
            epsilon = 2 * (self.snr * ratio).square().reshape(-1, 1, 1, 1)
            move = root * (self.temperature * (2 * epsilon).sqrt() * z - epsilon * grad)
            now = model(now.y + basis.inverse(move), now.cov)
        return Corrected(now, step_size, torch.ones_like(step_size))


@dataclass(frozen=True)
class PaperSampler:
    """Predictor and corrector along a geometric path, then one denoising; 1 + levels · (1 + corrections) network calls a sample.

    Arguments:
        model: the anisotropic energy.
        levels: of the path.
        corrections: corrector steps a level; 0 for none.
        snr: see :class:`SNRCorrector`.
        temperature: factor of all noise added; below 1 the samples are less diverse than the posterior.
        regularised: ε of the inverse h*/(|h|² + ε) by which y is made; see :meth:`LinearOperator.observe`.
        samples: S.

    References: Learning Normalized Energy Models for Linear Inverse Problems (Zilberstein et al. 2026), arXiv 2605.15487.
    """

    model: EnergyModel
    levels: int = 125
    corrections: int = 1
    snr: float = 0.1
    temperature: float = 1.0
    regularised: float = 1e-6
    samples: int = 1

    def __post_init__(self) -> None:
        if self.levels < 1 or self.corrections < 0:
            raise ValueError(f"wanted levels >= 1 and corrections >= 0, got {self.levels} and {self.corrections}")
        if not 0 < self.snr < math.inf or not 0 <= self.temperature < math.inf:
            raise ValueError(f"wanted snr > 0 and temperature >= 0, got {self.snr} and {self.temperature}")

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`."""
        corrector = SNRCorrector(self.corrections, snr=self.snr, temperature=self.temperature) if self.corrections else None
        sampler = Sampler(TemperedEuler(self.temperature), corrector, Geometric(self.levels))
        seeds = seeds_from(generators, len(measurement))
        return sampler.posterior(self.model, measurement, operator, sigma, self.samples, seeds, self.regularised).samples
