"""Calibration: the rank of the held-out truth among posterior samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Pixel
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.likelihood.audits import Check
from anem.likelihood.chunks import chunks
from anem.operators import LinearOperator
from anem.random import generators_for, normal, uniform
from anem.sample import Sampler, as_schedule

__all__ = ["Ranks", "audit_ranks", "binomial_interval", "ks_limit", "truth_ranks"]

LEVEL = 0.99
"""Of the bands and intervals: a calibrated model leaves each with probability 1 %."""

COVERED = (0.5, 0.9)
"""Central intervals of the samples whose coverage is counted."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Relative ranks of N truths among their samples, (N,), uniform on [0, 1) for a calibrated model.

    The truth's rank r among S + 1 values becomes (r + v)/(S + 1), v uniform, which also breaks ties at random.
    """

    values: Tensor

    @classmethod
    def of(cls, truth: Tensor, samples: Tensor, generator: torch.Generator | None = None) -> Ranks:
        """From a number of each truth, (N,), and of its samples, (S, N)."""
        below, ties = (samples < truth).sum(0), (samples == truth).sum(0)
        v = uniform(truth.shape, generator, truth)
        return cls((below + v * (1 + ties)) / (len(samples) + 1))

    @property
    def distance(self) -> float:
        """Kolmogorov's distance of their distribution from the uniform one."""
        u, n = self.values.sort().values, len(self.values)
        steps = torch.arange(n + 1, dtype=u.dtype, device=u.device) / n
        return float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())

    def coverage(self, mass: float) -> float:
        """Share of truths inside the samples' central interval of this mass."""
        return float(((self.values - 0.5).abs() <= mass / 2).double().mean())

    def checks(self, where: str, what: str) -> list[Check]:
        """The band of the ranks, and the coverage of 50 % and 90 % intervals."""
        n = len(self.values)
        limit, distance = ks_limit(n), self.distance
        rank = f"≤ {limit:.3f} (99 % band)"
        found = [Check("ranks", where, f"{what}: distance of ranks", distance, 0.26 / n**0.5, rank, distance <= limit)]
        for mass in COVERED:
            low, high = (k / n for k in binomial_interval(n, mass, LEVEL))
            value, error = self.coverage(mass), (mass * (1 - mass) / n) ** 0.5
            name = f"{what}: {100 * mass:g} % coverage"
            found.append(Check("ranks", where, name, value, error, f"{low:.3f} to {high:.3f}", low <= value <= high))
        return found


def ks_limit(n: int) -> float:
    """The 99 % point of Kolmogorov's distance for n independent values (Stephens 1970)."""
    return 1.628 / (n**0.5 + 0.12 + 0.11 / n**0.5)


def binomial_interval(n: int, p: float, level: float) -> tuple[int, int]:
    """The central interval of Binomial(n, p): at most (1 − level)/2 of the probability on each side of it."""
    k = torch.arange(n + 1, dtype=torch.float64)
    log_choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    cdf = (log_choose + k * math.log(p) + (n - k) * math.log1p(-p)).exp().cumsum(0)
    tail = (1 - level) / 2
    return int((cdf <= tail).sum()), int((cdf < 1 - tail).sum())


def audit_ranks(
    model: EnergyModel,
    images: Tensor,
    operator: LinearOperator,
    sigma: float,
    *,
    where: str = "",
    samples: int = 19,
    sampler: Sampler | None = None,
    seed: int = 0,
) -> list[Check]:
    """(e) Simulation-based calibration under a degradation: :func:`truth_ranks`, each with its band and the coverage of intervals.

    Source: Talts et al. 2018, arXiv 1804.06788, with Kolmogorov's band for the ranks, which are independent between truths.
    """
    ranks = truth_ranks(model, images, operator, sigma, samples=samples, sampler=sampler, seed=seed)
    return [check for what, own in ranks.items() for check in own.checks(where, what)]


def truth_ranks(
    model: EnergyModel,
    images: Tensor,
    operator: LinearOperator,
    sigma: float,
    *,
    samples: int = 19,
    sampler: Sampler | None = None,
    seed: int = 0,
) -> dict[str, Ranks]:
    """Ranks of held-out images among posterior samples, for one missing pixel an image, the mean over the missing region and the energy.

    Samples are x_0 at the end Σ_0 of the path, and so is the truth: x + n_0, n_0 ~ N(0, Σ_0) given the measurement's own noise. The pixel
    is drawn at random among those not observed, or among all if the operator is not diagonal in pixels; the mean is over the same.

    Arguments:
        images: x, (N, C, H, W), dequantised. operator, sigma: H and the standard deviation of the noise.
        samples: S, draws for each image.
        sampler: 50 steps of "sde-2m" if None. It must end "noisy", and its own error counts.
        seed: of image b, seed + b.

    Raises:
        ValueError: a sampler that ends otherwise.
    """
    sampler = sampler or Sampler("sde-2m", final="noisy")
    if sampler.final != "noisy":
        raise ValueError(f"sampler: wanted one that ends 'noisy', got {sampler.final!r}")
    x, seeds = images.double(), range(seed, seed + len(images))
    sources = generators_for(seeds, x.device)
    measurement = operator.measure(x, sigma, sources)
    drawn = sampler.posterior(model, measurement, operator, sigma, samples, seeds)
    seen = operator.observe(measurement, sigma, model.statistics, sources)
    end = as_schedule(sampler.schedule).end(seen.cov)
    truth = noisy_truth(x, seen.y, seen.cov, end, seen.observed, sources)
    missing = ~seen.observed if seen.cov.basis == Pixel() else torch.ones_like(seen.observed)
    missing = torch.where(missing.flatten(1).any(1)[:, None, None, None], missing, True)
    chosen = torch.stack([torch.multinomial(m.flatten().double(), 1, generator=g) for m, g in zip(missing, sources, strict=True)])
    generator = torch.Generator(x.device).manual_seed(seed)

    def numbers(at: Tensor) -> tuple[Tensor, Tensor]:
        flat, inside = at.flatten(1), missing.flatten(1)
        return flat.gather(1, chosen)[:, 0], (flat * inside).sum(1) / inside.sum(1)

    pairs = list(zip(numbers(truth), *(numbers(s) for s in drawn.samples), strict=True))
    energy = torch.cat([-model.log_prob(truth[rows], end[rows]) for rows in chunks(len(x), x.shape[1:])])
    ranks = {what: Ranks.of(own[0], torch.stack(own[1:]), generator) for what, own in zip(("pixel", "mean"), pairs, strict=True)}
    return ranks | {"energy": Ranks.of(energy.double(), drawn.energy.double(), generator)}


def noisy_truth(x: Tensor, y: Tensor, cov: Covariance, end: Covariance, observed: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """x_0 = x + n_0 of which y = x_0 + (Σ_T − Σ_0 noise) is an observation: n_0 given n = y − x where observed, fresh elsewhere."""
    basis = cov.basis
    share = end.values / cov.values
    noise = normal(x.shape, list(generators), x)
    kept = torch.where(observed, share, 0.0)
    return x + basis.inverse(kept * basis.forward(y - x) + (end.values * (1 - kept)).sqrt() * noise)
