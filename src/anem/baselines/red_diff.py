"""RED-Diff: one image per measurement, found by descending the data misfit with denoising at falling noise as regulariser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.baselines.isotropic import alpha_bars, check_even, denoise, each_sample
from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators, normal

__all__ = ["REDDiff"]


@dataclass(frozen=True)
class REDDiff:
    """Adam on ½ mean (m − Hμ)² + λ w_t mean (sg(ε̂ − ε)·μ), w_t = √((1 − ᾱ)/ᾱ), μ from H⁺m, t descending.

    The means are those of each image by itself, over the numbers that were measured.

    Arguments:
        model: the prior, used in white noise alone.
        weight: λ.
        learning_rate: of Adam, for images in [−1, 1]; the authors' 0.1 (0.25 to 0.5 in their scripts).
        steps: network calls, 100 to 1000.
        betas: of Adam.
        regularised: ε of the inverse h*/(|h|² + ε) that μ starts from; the authors' operators cut singular values off below 0.03.
        bars: ᾱ of every step, in place of ``steps`` of the linear β schedule.
        samples: S; they differ by the noise that the optimisation sees, and are no posterior draws.

    References: A Variational Perspective on Solving Inverse Problems with Diffusion Models (Mardani et al. 2024), arXiv 2305.04391,
    algorithm 1.
    """

    model: EnergyModel
    weight: float = 0.25
    learning_rate: float = 0.1
    steps: int = 1000
    betas: tuple[float, float] = (0.9, 0.99)
    regularised: float = 1e-3
    bars: Sequence[float] | None = None
    samples: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 < self.learning_rate < math.inf:
            raise ValueError(f"wanted weight >= 0 and learning_rate > 0, got {self.weight} and {self.learning_rate}")

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`. σ is not used: λ stands for it."""
        check_even(sigma, "RED-Diff")

        def draw(noise: Generators) -> Tensor:
            return self._optimise(measurement, operator, noise)

        return each_sample(draw, self.samples, generators, measurement, operator, sigma)

    @torch.no_grad()
    def _optimise(self, measurement: Tensor, operator: LinearOperator, generators: Generators) -> Tensor:
        grey = torch.full(operator.image_shape(measurement.shape), 0.5).to(measurement)
        # In u = 2x − 1: m_u = 2m − H1, so that what was not measured starts at mid-grey.
        target = 2 * (measurement - operator(grey))
        mu = operator.pseudo_inverse(target, self.regularised)
        adam = torch.optim.Adam([mu], lr=self.learning_rate, betas=self.betas)
        for bar in alpha_bars(self.steps)[:-1] if self.bars is None else self.bars:
            mu.grad = self._gradient(mu, target, operator, bar, normal(mu.shape, generators, mu))
            adam.step()
        return 0.5 * (mu + 1)

    def _gradient(self, mu: Tensor, target: Tensor, operator: LinearOperator, bar: float, noise: Tensor) -> Tensor:
        """Of the loss of each image, in u = 2x − 1."""
        level = ((1 - bar) / bar) ** 0.5
        x_t = mu + level * noise
        predicted = (x_t - (2 * denoise(self.model, 0.5 * (x_t + 1), 0.5 * level) - 1)) / level
        measured = operator.measured(mu.shape, mu).expand(len(mu), *mu.shape[1:]).flatten(1).sum(1)
        misfit = operator.adjoint(operator(mu) - target) / measured.clamp(min=1).reshape(-1, 1, 1, 1)
        return misfit + self.weight * level * (predicted - noise) / mu[0].numel()
