"""Quality of samples against network calls where the posterior is known: a Gaussian in closed form, a mixture by draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from anem.bases import Pixel
from anem.bench.harness import Context
from anem.bench.sampling_curves import CALLS, FEW, MANY, MOST, WITHIN, Curve, curves_of, measure, ratio, report_changes
from anem.bench.sampling_law import drawn_law, exact_law
from anem.covariance import Covariance
from anem.gaussian import GaussianMixture, MixturePosterior, make_mixture
from anem.metrics import Statistic, mean_statistic, psnr
from anem.operators import Observation
from anem.sample import SCHEDULES, Noise, Schedule, as_kernel, run_chain

__all__ = ["SIGMA", "Oracle", "exact_figures", "gaussian", "hidden_box", "mixture"]

SIGMA = 0.05
"""Standard deviation of the noise in what is observed."""

SIDE = 4
"""Side of the images of the oracles; their middle quarter is hidden."""

DISTANCE = "distance to the posterior over its standard deviation"
"""√(E W₂²/tr Cov(x given y)): 0 for exact draws."""


def hidden_box(prior: GaussianMixture, sigma: float = SIGMA) -> Covariance:
    """Σ of one image whose middle quarter is hidden, with noise of σ around it."""
    shape = prior.means.shape[1:]
    values = torch.full((1, *shape), sigma**2, dtype=torch.float64)
    rows, columns = (slice(n // 4, n - n // 4) for n in shape[1:])
    values[..., rows, columns] = prior.statistics.lambda_max
    return Covariance(values)


# --- a Gaussian, without Monte Carlo error ---


def exact_figures(prior: GaussianMixture, cov: Covariance, curve: Curve, schedule: Schedule) -> dict[str, float]:
    """Figures of the law of what a chain draws, averaged over all x and y of a prior of one component."""
    drawn, exact = drawn_law(prior, cov, schedule, as_kernel(curve.kernel)), exact_law(prior, cov)
    variance, bias = float(exact.covariance.trace()), drawn.squared_error(exact)
    return {
        "PSNR of the mean (dB)": -10 * math.log10((variance + bias) / len(exact.mean)),
        "squared error over posterior variance": (bias + float(drawn.covariance.trace())) / variance,
        DISTANCE: (drawn.wasserstein(exact) / variance) ** 0.5,
    }


def gaussian(context: Context) -> list[Curve]:
    """Curves in closed form; the one nearest to the posterior at 32 calls is the choice that other priors judge."""
    parts = make_mixture(8, 1, SIDE, SIDE)
    whole = MixturePosterior(parts.weights[None], parts.means[None], parts.covariances[None], Pixel())
    prior = GaussianMixture(torch.ones(1), whole.mean, whole.covariance)
    cov = hidden_box(prior)
    budget = (5, 10, FEW, MANY) if context.quick else CALLS
    curves = []
    # |∂U/∂ℓ| depends on where the chain is: along that path a chain is not affine.
    for curve in (c for c in curves_of(schedules=("geometric", "water-filling", "variance")) if c.stochastic):
        for calls in budget:
            schedule = curve.path(calls)
            if schedule is not None:
                curve.figures[calls] = _kept(context, f"gaussian/{curve.name}, {calls} calls", prior, cov, curve, schedule)
        for many in (n for n in (MANY, MOST) if n in budget):
            _change(context, curve, many)
        curves.append(curve)
    chosen = min(curves, key=lambda c: c.figures[FEW][DISTANCE])
    context.figure("gaussian/choice", chosen.name)
    for many in (n for n in (MANY, MOST) if n in budget):
        worst = max(_changes(chosen, many).values())
        context.figure(f"gaussian/choice: largest change from {FEW} to {many} calls", worst, aim=f"≤ {WITHIN}")
        few, last = chosen.figures[FEW][DISTANCE], chosen.figures[many][DISTANCE]
        context.figure(f"gaussian/choice: distance to the posterior at {FEW} over that at {many} calls, minus 1", few / last - 1)
    return curves


def _kept(context: Context, key: str, prior: GaussianMixture, cov: Covariance, curve: Curve, schedule: Schedule) -> dict[str, float]:
    """Exact figures, those of an interrupted run read back."""
    names = ("PSNR of the mean (dB)", "squared error over posterior variance", DISTANCE)
    if not context.done(*(f"{key}/{name}" for name in names)):
        for name, value in exact_figures(prior, cov, curve, schedule).items():
            context.figure(f"{key}/{name}", value)
    return {name: float(context.report.figures[f"{key}/{name}"].value or 0.0) for name in names}


def _changes(curve: Curve, many: int) -> dict[str, float]:
    """|value at 32 calls over value at ``many`` − 1|; of the distance, whose limit is 0 and unit the posterior's spread, the difference."""
    few, last = curve.figures[FEW], curve.figures[many]
    return {name: abs(few[name] - value) if name == DISTANCE else abs(few[name] / value - 1) for name, value in last.items()}


def _change(context: Context, curve: Curve, many: int) -> None:
    key = f"gaussian/{curve.name}: largest change from {FEW} to {many} calls"
    if not context.done(key):
        context.figure(key, max(_changes(curve, many).values()))


# --- a mixture, by draws ---


@dataclass(frozen=True, eq=False)
class Oracle:
    """Observations of a mixture of Gaussians under one covariance, and the exact posterior of every one.

    Arguments:
        prior: the mixture. x: clean images (B, C, H, W). y: observations. cov: Σ, (1, C, H, W). posterior: p(x given y).
    """

    prior: GaussianMixture
    x: Tensor
    y: Tensor
    cov: Covariance
    posterior: MixturePosterior

    @classmethod
    def hidden_box(cls, images: int, generator: torch.Generator) -> Oracle:
        """Images with the middle quarter hidden."""
        prior = make_mixture(8, 1, SIDE, SIDE)
        cov = hidden_box(prior)
        x = prior.sample(images, generator)
        y = x + cov.expand(images).sample(generator)
        return cls(prior, x, y, cov, prior.posterior(y, cov.expand(images)))

    def draw(self, kernel: str, samples: int, seed: int, schedule: Schedule) -> Tensor:
        """Samples of a kernel along a schedule, (S, B, C, H, W)."""
        y = self.y.repeat(samples, 1, 1, 1)
        observation = Observation(y, self.cov.expand(len(y)), self.cov.values.expand_as(y) < 1, torch.zeros(len(y), dtype=y.dtype))
        noise = Noise(torch.Generator().manual_seed(seed))
        x = run_chain(self.prior, observation, schedule, as_kernel(kernel), noise=noise).x
        return x.unflatten(0, (samples, -1))

    needs = ("psnr", "centre", "variance", "score")
    scales: ClassVar[Mapping[str, float]] = MappingProxyType({})

    @property
    def images(self) -> int:
        """B."""
        return len(self.x)

    def scores(self, samples: Tensor) -> dict[str, Tensor]:
        """What the figures are made of, (B,) each, of samples (S, B, C, H, W), S ≥ 2.

        The energy score of an image is E‖s − x‖ − ½ E‖s − s′‖, on average least for exact draws.
        """
        s, count = samples.flatten(2), len(samples)
        between = torch.cdist(s.transpose(0, 1), s.transpose(0, 1)).sum((1, 2)) / (count * (count - 1))
        return {
            "psnr": psnr(samples.mean(0), self.x),
            "centre": (samples - self.posterior.mean).square().flatten(2).sum(2).mean(0),
            "variance": self.posterior.covariance.diagonal(dim1=-2, dim2=-1).sum(-1),
            "score": (s - self.x.flatten(1)).norm(dim=2).mean(0) - 0.5 * between,
        }

    def statistics(self, scores: Mapping[str, Tensor]) -> dict[str, Statistic]:
        """PSNR of the mean, squared error about the exact mean over the exact variance (1 for exact draws), energy score."""
        return {
            "PSNR of the mean (dB)": mean_statistic(scores["psnr"]),
            "squared error over posterior variance": ratio(scores["centre"], scores["variance"]),
            "energy score": mean_statistic(scores["score"]),
        }


def mixture(context: Context, choice: str) -> list[Curve]:
    """Curves on the mixture; ``choice`` names the one that is judged."""
    images, samples = (16, 4) if context.quick else (64, 128)
    setting = Oracle.hidden_box(images, context.generator("oracle"))
    exact = Curve("exact", "draws")
    exact.add(0, setting.statistics(setting.scores(setting.posterior.sample(samples, context.generator("exact")))), images)
    for name, value in exact.figures[0].items():
        context.figure(f"mixture/exact draws/{name}", value)
    curves = []
    for curve in curves_of(schedules=("water-filling",) if context.quick else tuple(SCHEDULES)):
        # A path of its own for every chain needs as many factorisations: fewer chains there, and no 1000 calls.
        adaptive = SCHEDULES[curve.schedule](1).adaptive
        budget = (5, 10, FEW) if context.quick else tuple(n for n in CALLS if n <= (MANY if adaptive else MOST))
        draw = partial(setting.draw, curve.kernel, samples // 4 if adaptive else samples, context.generator("chains").initial_seed())
        for calls in budget:
            measure(context, "mixture", curve, calls, setting, draw)
        for many in (n for n in (MANY, MOST) if n in budget and curve.stochastic):
            report_changes(context, "mixture", curve, many, images, setting.scales, judged=curve.name == choice)
        curves.append(curve)
    return curves
