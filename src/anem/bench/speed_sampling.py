"""Quality of samples against network calls, for every kernel and schedule: on an exact prior, and on digits."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.harness import Context
from anem.covariance import Covariance
from anem.data import load_dataset, mnist
from anem.gaussian import GaussianMixture, MixturePosterior, make_mixture
from anem.hub import load
from anem.metrics import LPIPS, DigitClassifier, Inception, kernel_distance, psnr
from anem.operators import Observation, make_operator
from anem.random import generators_for
from anem.sample import KERNELS, SCHEDULES, Noise, Schedule, as_kernel, as_schedule, run_chain, sample_posterior, steps_within

__all__ = ["CALLS", "FEW", "MANY", "Curve", "Oracle", "digits", "energy_score", "oracle"]

CALLS = (5, 10, 20, 32, 50, 100, 250, 1000)
"""Network calls a sample, the first one included; a kernel takes as many steps as they allow."""

FEW, MANY = 32, 250
"""Quality at ``FEW`` calls is compared with that at ``MANY``."""

SIGMA = 0.05
"""Standard deviation of the noise in what is observed."""


@dataclass
class Curve:
    """Figures of a kernel and a schedule by network calls.

    Arguments:
        kernel, schedule: their names. stochastic: whether the kernel draws from the posterior at all.
        figures: by name of the figure, then by calls.
    """

    kernel: str
    schedule: str
    stochastic: bool
    figures: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.schedule}"

    def add(self, calls: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.figures.setdefault(name, {})[calls] = value

    def change(self, few: int, many: int) -> float:
        """The largest |value at ``few`` calls over value at ``many`` − 1| of any figure."""
        return max(abs(at[few] / at[many] - 1) for at in self.figures.values())


def pairs(kernels: Sequence[str] | None = None, schedules: Sequence[str] | None = None) -> Iterator[Curve]:
    """An empty curve for every kernel with every schedule."""
    for kernel in kernels or KERNELS:
        for schedule in schedules or SCHEDULES:
            yield Curve(kernel, schedule, as_kernel(kernel).stochastic)


def schedule_within(calls: int, curve: Curve) -> Schedule | None:
    """The curve's schedule with the steps that so many calls allow; None if they allow none."""
    if calls < 1 + as_kernel(curve.kernel).calls:
        return None
    return as_schedule(curve.schedule, steps_within(calls, curve.kernel))


# --- an exact prior ---


def energy_score(samples: Tensor, truth: Tensor) -> float:
    """E‖s − x‖ − ½E‖s − s′‖ averaged over images, least for exact draws: samples (S, B, C, H, W), S ≥ 2, truth (B, C, H, W)."""
    s, count = samples.flatten(2), len(samples)
    to_truth = (s - truth.flatten(1)).norm(dim=2).mean()
    between = torch.cdist(s.transpose(0, 1), s.transpose(0, 1)).sum((1, 2)).mean() / (count * (count - 1))
    return float(to_truth - 0.5 * between)


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
    def hidden_box(cls, images: int, side: int, generator: torch.Generator) -> Oracle:
        """Images of ``side`` × ``side`` with the middle quarter hidden, and noise of :data:`SIGMA` around it."""
        prior = make_mixture(8, 1, side, side)
        values = torch.full((1, 1, side, side), SIGMA**2, dtype=torch.float64)
        inner = slice(side // 4, side - side // 4)
        values[..., inner, inner] = prior.statistics.lambda_max
        cov = Covariance(values)
        x = prior.sample(images, generator)
        y = x + cov.expand(images).sample(generator)
        return cls(prior, x, y, cov, prior.posterior(y, cov.expand(images)))

    def draw(self, curve: Curve, schedule: Schedule, samples: int, generator: torch.Generator) -> Tensor:
        """Samples of a kernel along a schedule, (S, B, C, H, W)."""
        y = self.y.repeat(samples, 1, 1, 1)
        observation = Observation(y, self.cov.expand(len(y)), self.cov.values.expand_as(y) < 1, torch.zeros(len(y), dtype=y.dtype))
        x = run_chain(self.prior, observation, schedule, as_kernel(curve.kernel), noise=Noise(generator)).x
        return x.unflatten(0, (samples, -1))

    def judge(self, samples: Tensor) -> dict[str, float]:
        """PSNR of the mean (dB), squared error about the exact mean over the exact variance (1 for exact draws), energy score."""
        centre = (samples - self.posterior.mean).square().flatten(2).sum(2).mean()
        variance = self.posterior.covariance.diagonal(dim1=-2, dim2=-1).sum(-1).mean()
        quality = float(psnr(samples.mean(0), self.x).mean())
        return {
            "PSNR of the mean (dB)": quality,
            "squared error over posterior variance": float(centre / variance),
            "energy score": energy_score(samples, self.x),
        }


def oracle(context: Context) -> list[Curve]:
    """Curves on the oracle, with figures of what 32 calls miss."""
    images, samples = (16, 4) if context.quick else (64, 32)
    setting = Oracle.hidden_box(images, 4, context.generator("oracle"))
    exact = setting.judge(setting.posterior.sample(samples, context.generator("exact")))
    for name, value in exact.items():
        context.figure(f"sampling/oracle/exact draws/{name}", value)
    curves = []
    for curve in pairs(schedules=("geometric",) if context.quick else None):
        # A path of its own for every chain needs as many factorisations: fewer chains and calls there.
        fixed = not SCHEDULES[curve.schedule](1).adaptive
        for calls in CALLS if fixed and not context.quick else (n for n in CALLS if n <= MANY):
            schedule = schedule_within(calls, curve)
            if schedule is not None:
                chains = samples if fixed else samples // 4
                curve.add(calls, setting.judge(setting.draw(curve, schedule, chains, context.generator("chains"))))
        curves.append(curve)
    _write(context.out / "sampling-oracle.csv", curves)
    _report(context, "sampling/oracle", curves, MANY)
    if not context.quick:
        _report(context, "sampling/oracle", [c for c in curves if c.schedule == "geometric"], max(CALLS))
    return curves


# --- digits ---


def digits(context: Context) -> list[Curve]:
    """Curves of the model on digits with a hidden box."""
    model = load(context.model)
    count, samples = (2, 2) if context.quick else (64, 2)
    budget = (5, 10) if context.quick else tuple(n for n in CALLS if n <= MANY)
    kernels = ("ancestral", "sde-2m") if context.quick else tuple(k for k in KERNELS if as_kernel(k).stochastic)
    data = load_dataset(mnist(context.split, str(context.data / "mnist.npz")))
    x = data.batch(torch.arange(count) % len(data))
    operator = make_operator("inpaint-box", x.shape, box=14)
    seeds = [context.seed + i for i in range(count)]
    measurement = operator.measure(x, SIGMA, generators_for(seeds))
    distance = LPIPS(context.data)
    features = DigitClassifier.load().features if context.quick else Inception(context.data)
    real = features(x)
    curves = []
    for curve in pairs(kernels, ("geometric",) if context.quick else None):
        for calls in budget:
            key = f"sampling/digits/{curve.name}, {calls} calls"
            schedule = schedule_within(calls, curve)
            if schedule is None:
                continue
            names = ("PSNR of the mean (dB)", "LPIPS", "KID")
            if not context.done(*(f"{key}/{name}" for name in names)):
                drawn = sample_posterior(
                    model, measurement, operator, SIGMA, samples=samples, kernel=curve.kernel, schedule=schedule, seed=seeds
                )
                lpips = torch.stack([distance(s, x) for s in drawn.samples]).mean()
                kid = kernel_distance(features(drawn.samples.flatten(0, 1)), real)
                for name, value in zip(names, (psnr(drawn.mean, x).mean(), lpips, kid), strict=True):
                    context.figure(f"{key}/{name}", value)
            curve.add(calls, {name: float(context.report.figures[f"{key}/{name}"].value) for name in names})
        curves.append(curve)
    _write(context.out / "sampling-digits.csv", curves)
    if not context.quick:
        _report(context, "sampling/digits", curves, MANY)
    return curves


def _report(context: Context, key: str, curves: list[Curve], many: int) -> None:
    """What every figure of every curve changes by after 32 calls, and the curve that changes least."""
    changes = {curve.name: curve.change(FEW, many) for curve in curves if curve.stochastic}
    for name, value in changes.items():
        context.figure(f"{key}/{name}: largest change from {FEW} to {many} calls", value)
    best = min(changes, key=lambda name: changes[name])
    context.figure(f"{key}/least change from {FEW} to {many} calls, by", best)
    context.figure(f"{key}/least change from {FEW} to {many} calls", changes[best], aim="≤ 0.03", quick=False)


def _write(file: Path, curves: list[Curve]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("kernel", "schedule", "calls", "figure", "value"))
        for curve in curves:
            for name, at in curve.figures.items():
                writer.writerows((curve.kernel, curve.schedule, calls, name, f"{value:.6g}") for calls, value in at.items())
