"""Composition: the isotropic energy plus the likelihood as one energy, sampled by annealed MALA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from anem.baselines.isotropic import each_sample
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.operators import LinearOperator, Observation
from anem.random import Generators
from anem.sample import MALA, Corrector, Noise, State, Target
from anem.statistics import VARIANCE_FLOOR

__all__ = ["Composition"]


class _Composed(Target):
    """log π(x) = −U(x, σ²I) − ½ Σ_observed |y_k − x_k|²/(λ_k + a σ²), at every σ.

    With a = 1 the likelihood of a noisy x is that of a flat prior; at σ = 0 it is the true one for any a. P = ε e keeps P times the
    Hessian below ε, see :meth:`spread`.
    """

    def __init__(self, observation: Observation, added: float = 1.0) -> None:
        super().__init__(observation)
        self.basis, self.added = observation.cov.basis, added

    def state(self, evaluation: Evaluation) -> State:
        precision = torch.where(self.observed, 1 / (self.values + self.added * evaluation.cov.values[:, :, :1, :1]), 0.0)
        residual = self.coordinates - self.basis.forward(evaluation.y)
        log_density = -evaluation.energy - 0.5 * (precision * residual.square()).flatten(1).sum(1)
        return State(evaluation, log_density, self.basis.inverse(precision * residual) - evaluation.grad_y)

    def spread(self, variance: float | Tensor) -> Tensor:
        """e = 1/(1/σ² + 1/(λ + a σ²)) of every coordinate, (B, C, H, W): the law's variance where the prior leaves nothing open."""
        precision = torch.where(self.observed, 1 / (self.values + self.added * variance), 0.0)
        return variance / (1 + variance * precision)

    def reverse(self, now: Evaluation, before: float, after: float, noise: Noise) -> Tensor:
        """x at σ′² = ``after`` from x at σ² = ``before``: x + (e − e′) ∇log π + √(e′(1 − e′/e)) z, coordinate by coordinate.

        Both terms of the gradient pull, so that (σ² − σ′²) ∇log π would go past the mode by up to as much as it came from: −∇²log π is up
        to 1/e, for a = 1 2/σ² above the noise of m. For a prior N(μ, c) distances between chains shrink by a factor in [e′/e, 1], and for
        c → 0 the variance at σ′ is the law's.
        """
        start, end = self.spread(before), self.spread(after)
        move = (start - end) * self.basis.forward(self.state(now).gradient)
        return now.y + self.basis.inverse(move + (end * (1 - end / start)).sqrt() * noise.normal(move))

    def preconditioner(self, cov: Covariance, step_size: Tensor) -> Tensor:
        return step_size.reshape(-1, 1, 1, 1) * self.spread(cov.values[:, :, :1, :1])


@dataclass(frozen=True)
class Composition:
    """MALA on U(x, σ²I) + ½ ‖Hx − m‖² at falling σ, whose noise adds to that of m; a reverse step between levels, then one denoising.

    Network calls: levels · (1 + corrector.steps).

    Arguments:
        model: the prior, used in white noise alone.
        levels: geometric, from ``highest`` to ``lowest``.
        corrector: the chain at each level.
        highest: σ of the first level; None for √λ_max, where nothing is known of x but the measurement. What was not observed
            starts from the prior with its noise.
        lowest: σ of the last level, by default that of 8-bit rounding.
        added: a, the share of the level's variance that is added to that of m; 1 is that of a flat prior, with which the prior alone
            decides what the measurement could tell late in the chain.
        samples: S.

    References: Reduce, Reuse, Recycle: Compositional Generation with Energy-Based Diffusion Models and MCMC (Du et al. 2023),
    arXiv 2302.11552; Controlled Generation with Distilled Diffusion Energy Models (Thornton et al. 2025), arXiv 2502.12786; noise of the
    level in the likelihood as in Jalal et al. 2021, arXiv 2108.01368, eq. 4.
    """

    model: EnergyModel
    levels: int = 50
    corrector: Corrector = field(default_factory=lambda: MALA(steps=4))
    highest: float | None = None
    lowest: float = VARIANCE_FLOOR**0.5
    samples: int = 1
    added: float = 1.0

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`."""
        observe = partial(operator.observe, measurement.double(), sigma, self.model.statistics)

        def draw(noise: Generators) -> Tensor:
            return self._sample(observe(noise), Noise(noise)).to(measurement.dtype)

        return each_sample(draw, self.samples, generators, measurement, operator, sigma)

    @torch.no_grad()
    def _sample(self, observation: Observation, noise: Noise) -> Tensor:
        target, sigmas = _Composed(observation, self.added), self._sigmas()
        x = self._start(observation, sigmas[0])
        step_size = self.corrector.initial_step_size(x)
        now = self.model(x, Covariance.white(sigmas[0] ** 2, x.shape, like=x))
        for sigma, then in zip(sigmas, [*sigmas[1:], None], strict=True):
            corrected = self.corrector.correct(self.model, now, target, step_size, noise)
            now, step_size = corrected.evaluation, corrected.step_size
            if then is not None:
                x = target.reverse(now, sigma**2, then**2, noise)
                now = self.model(x, Covariance.white(then**2, x.shape, like=x))
        return now.denoised

    def _start(self, observation: Observation, sigma: float) -> Tensor:
        """y, its unobserved coordinates drawn from N(μ, c + λ) brought to the spread c + σ² of the first level."""
        basis, values = observation.cov.basis, observation.cov.values
        mean = self.model.statistics.mean_image(observation.y)
        prior = self.model.statistics.variance_of(observation.cov)
        z = basis.forward(observation.y - mean)
        return mean + basis.inverse(torch.where(observation.observed, z, z * ((prior + sigma**2) / (prior + values)).sqrt()))

    def _sigmas(self) -> Sequence[float]:
        high = self.model.statistics.lambda_max**0.5 if self.highest is None else self.highest
        if not 0 <= self.added < math.inf:
            raise ValueError(f"added: wanted a number >= 0, got {self.added}")
        if self.levels < 2 or not high > self.lowest > 0:
            raise ValueError(f"wanted levels >= 2 and highest > lowest > 0, got {self.levels}, {high} and {self.lowest}")
        return [high * (self.lowest / high) ** (i / (self.levels - 1)) for i in range(self.levels)]
