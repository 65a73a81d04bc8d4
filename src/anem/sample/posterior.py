"""Posterior samples p(x given a measurement), and samples of the prior, with their means, spreads and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from anem.bases import Basis, Pixel, as_basis
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.operators import LinearOperator, Observation
from anem.random import generators_for, seeds_for
from anem.sample.chain import Callback, run_chain
from anem.sample.correctors import Corrector
from anem.sample.guided import as_schedule
from anem.sample.kernels import Kernel, Noise, as_kernel
from anem.sample.schedules import Schedule, WaterFilling

__all__ = ["Restoration", "Sampler", "Samples", "chain_seed", "out_of_memory", "sample_posterior", "sample_prior", "steps_within"]


@dataclass(frozen=True, eq=False)
class Samples:
    """S restorations of B images, by whatever method.

    Arguments:
        samples: (S, B, C, H, W).
    """

    samples: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the samples, (B, C, H, W)."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor | None:
        """Standard deviation over the samples (with S − 1), (B, C, H, W); None if there is only one."""
        return self.samples.std(0) if len(self.samples) > 1 else None


@dataclass(frozen=True, eq=False)
class Restoration(Samples):
    """Posterior samples of B images, and what made them.

    Arguments:
        samples: (S, B, C, H, W).
        denoised: E[x given y, Σ_T] by the first network call, averaged over the S draws of what was not observed, (B, C, H, W).
        variance: Var(x given y, Σ_T) of every pixel by the same call, raw (negative values included), (B, C, H, W); None unless Σ_T is
            diagonal in pixels. Where λ is far above the data variance it is a small difference of large numbers, not to be used.
        energy: U(x_0, Σ_0) of every sample before its last denoising, in nats, (S, B).
        acceptance: of the corrector at every level, (n, S, B), or None.
        calls: network calls for each sample.
        sampler: what was run; ``sampler.final`` says whether the samples are denoised.
    """

    denoised: Tensor
    variance: Tensor | None
    energy: Tensor
    acceptance: Tensor | None
    calls: int
    sampler: Sampler


Observe = Callable[[list[torch.Generator]], Observation]
"""The observations of all B images in float64, for one generator an image."""


@dataclass(frozen=True)
class Sampler:
    """How to sample: all but the model and the observation.

    Arguments:
        kernel: a kernel or its name.
        corrector: Langevin steps at every level, such as ``MALA(steps=2)``.
        schedule: the path, or its name with 50 steps; a sample costs 1 + schedule.steps · (kernel.calls + corrector.steps) network calls.
        final: ``"denoise"``: samples are E[x given x_0, Σ_0]; ``"noisy"``: samples are x_0 and hold noise of covariance Σ_0.
        chunk: most chains run at once; 2¹⁸ numbers if None (334 chains of MNIST), halved by itself where the device runs out of memory.
        callback: called after every step of every chunk; see :data:`~anem.sample.chain.Callback`.
    """

    kernel: Kernel | str = "ancestral"
    corrector: Corrector | None = None
    schedule: Schedule | str = field(default_factory=WaterFilling)
    final: str = "denoise"
    chunk: int | None = None
    callback: Callback | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", as_kernel(self.kernel))
        object.__setattr__(self, "schedule", as_schedule(self.schedule))
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk: wanted at least 1, got {self.chunk}")

    def posterior(
        self,
        model: EnergyModel,
        measurement: Tensor,
        operator: LinearOperator,
        sigma: float | Tensor,
        samples: int = 1,
        seed: int | Sequence[int] = 0,
        regularised: float = 0.0,
    ) -> Restoration:
        """Draw from p(x given m); the arguments are those of :func:`sample_posterior`."""
        if not measurement.is_floating_point():
            raise ValueError(f"measurement: wanted a tensor of floats, got {measurement.dtype}")
        observe = partial(operator.observe, measurement.double(), sigma, model.statistics, regularised=regularised)
        return self.sample(model, observe, operator.image_shape(measurement.shape), samples, seed, measurement)

    def sample(
        self,
        model: EnergyModel,
        observe: Observe,
        shape: Sequence[int],
        samples: int = 1,
        seed: int | Sequence[int] = 0,
        like: Tensor | None = None,
    ) -> Restoration:
        """S chains for each of B observations, in chunks. Each chain has its own generator, so that chunks and batch mates change nothing.

        Arguments:
            model: the energy.
            observe: see :data:`Observe`.
            shape: of the images, (B, C, H, W).
            samples: S.
            seed: of image b, seed + b, or one an image.
            like: dtype and device of the result; float32 on the CPU if None.
        """
        like = torch.zeros(()) if like is None else like
        batch = shape[0]
        if samples < 1 or batch < 1:
            raise ValueError(f"wanted samples >= 1 and images >= 1, got {samples} and {batch}")
        seeds = seeds_for(seed, batch)

        def run(chains: range) -> _Part:
            observation, generators = _start(observe, seeds, chains, like.device)
            schedule = as_schedule(self.schedule).rows(torch.tensor([r % batch for r in chains]))
            chain = run_chain(
                model,
                observation,
                schedule,
                as_kernel(self.kernel),
                self.corrector,
                Noise(generators),
                final=self.final,
                callback=self.callback,
                chains=chains,
                total=samples * batch,
                images=batch,
            )
            variance = chain.first.posterior_variance.to(like.dtype) if observation.cov.basis == Pixel() else None
            denoised, energy = chain.first.denoised.to(like.dtype), chain.last.energy.to(like.dtype)
            return _Part(chain.x.to(like.dtype), denoised, variance, energy, chain.acceptance, chain.calls)

        parts = _in_chunks(run, samples * batch, self.chunk or max(1, 2**18 // math.prod(shape[1:])))

        def fold(pieces: list[Tensor], dim: int = 0) -> Tensor:
            return torch.cat(pieces, dim).unflatten(dim, (samples, batch))

        variances = [p.variance for p in parts if p.variance is not None]
        acceptances = [p.acceptance for p in parts if p.acceptance is not None]
        return Restoration(
            samples=fold([p.x for p in parts]),
            denoised=fold([p.denoised for p in parts]).mean(0),
            variance=fold(variances).mean(0) if variances else None,
            energy=fold([p.energy for p in parts]),
            acceptance=fold(acceptances, dim=1) if acceptances else None,
            calls=parts[0].calls,
            sampler=self,
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """What is kept of a chunk of chains."""

    x: Tensor
    denoised: Tensor
    variance: Tensor | None
    energy: Tensor
    acceptance: Tensor | None
    calls: int


def _start(observe: Observe, seeds: Sequence[int], chains: range, device: torch.device) -> tuple[Observation, list[torch.Generator]]:
    """Observations and generators of some chains; chain s·B + b is sample s of image b."""
    batch, pieces, generators = len(seeds), [], []
    for s in range(chains.start // batch, (chains.stop - 1) // batch + 1):
        own = generators_for([chain_seed(seed, s) for seed in seeds], device)
        rows = slice(max(chains.start - s * batch, 0), min(chains.stop - s * batch, batch))
        observation = observe(own)
        if len(observation.y) != batch:
            raise ValueError(f"measurement: wanted one for each of the operator's {len(observation.y)} settings, got {batch}; expand it")
        pieces.append(observation[rows])
        generators += own[rows]
    cov = Covariance(torch.cat([p.cov.values for p in pieces]), pieces[0].cov.basis, check=False)
    y, observed, terms = (torch.cat([getattr(p, name) for p in pieces]) for name in ("y", "observed", "log_evidence_terms"))
    return Observation(y, cov, observed, terms), generators


def _in_chunks(run: Callable[[range], _Part], total: int, chunk: int) -> list[_Part]:
    """``run`` over chains 0 … total − 1, with smaller chunks after running out of memory."""
    parts, start = [], 0
    while start < total:
        chains = range(start, min(start + chunk, total))
        try:
            parts.append(run(chains))
        except RuntimeError as error:
            if len(chains) == 1 or not out_of_memory(error):
                raise
            chunk = len(chains) // 2
            continue
        start = chains.stop
    return parts


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch says so in an error of its own on a GPU, in a plain RuntimeError on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def chain_seed(seed: int, sample: int) -> int:
    """Seed of sample ``sample`` of the image seeded by ``seed``: independent streams, whatever runs beside them."""
    return int(np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def steps_within(calls: int, kernel: Kernel | str = "ancestral", corrector: Corrector | None = None) -> int:
    """The most steps that ``calls`` network calls a sample allow.

    Raises:
        ValueError: not even one step.
    """
    each = as_kernel(kernel).calls + (corrector.steps if corrector else 0)
    if calls < 1 + each:
        raise ValueError(f"calls: wanted at least {1 + each} for one step, got {calls}")
    return (calls - 1) // each


def sample_posterior(
    model: EnergyModel,
    measurement: Tensor,
    operator: LinearOperator,
    sigma: float | Tensor,
    *,
    samples: int = 1,
    steps: int | None = None,
    kernel: Kernel | str = "ancestral",
    corrector: Corrector | None = None,
    schedule: Schedule | str | None = None,
    final: str = "denoise",
    seed: int | Sequence[int] = 0,
    chunk: int | None = None,
    callback: Callback | None = None,
    regularised: float = 0.0,
) -> Restoration:
    """Draw from p(x given m) for m = H x + σ v.

    The chain starts at y, whose noise of covariance Σ_T stands for the measurement, and is led to Σ_0. Each sample has its own random
    numbers, the unobserved coordinates of y included, and does not depend on what is drawn beside it.

    Arguments:
        model: the energy; its statistics say what an unobserved coordinate looks like.
        measurement: m, (B, C, h, w), in the pixel range [0, 1] of the data.
        operator: H.
        sigma: standard deviation of the noise in m: a number, (B,), or a map where the operator allows it.
        samples: S, draws for each image.
        steps: of the path, 50 if None; not beside a schedule that is an object.
        schedule: another path than water-filling, by name ("geometric", "energy", "variance") or as an object.
        seed: of image b, seed + b, or one an image.
        regularised: see :meth:`LinearOperator.observe`.
        kernel, corrector, final, chunk, callback: see :class:`Sampler`.

    Raises:
        ValueError: unusable arguments, see :meth:`LinearOperator.observe` and :func:`~anem.sample.chain.run_chain`.

    Source: Zilberstein et al., arXiv 2605.15487; kernels and correctors as documented in :mod:`anem.sample`.
    """
    sampler = Sampler(kernel, corrector, as_schedule(schedule, steps), final, chunk, callback)
    return sampler.posterior(model, measurement, operator, sigma, samples, seed, regularised)


def sample_prior(
    model: EnergyModel,
    shape: Sequence[int],
    *,
    steps: int | None = None,
    kernel: Kernel | str = "ancestral",
    corrector: Corrector | None = None,
    schedule: Schedule | str | None = None,
    final: str = "denoise",
    seed: int | Sequence[int] = 0,
    chunk: int | None = None,
    callback: Callback | None = None,
    basis: Basis | str = "pixel",
    like: Tensor | None = None,
) -> Restoration:
    """Draw B images of ``shape`` (B, C, H, W) from the prior p(x): the posterior when nothing was observed, ``samples`` (1, B, C, H, W).

    The chain starts at the anchor, y ~ N(μ, c + λ_max), with white noise of variance λ_max described in ``basis``.

    Arguments:
        basis: pixel, or any other: the noise is white in all of them.
        like: dtype and device of the samples; float32 on the CPU if None.

    The others as in :func:`sample_posterior`.

    Raises:
        ValueError: another shape, or unusable settings.
    """
    if len(shape) != 4 or not all(isinstance(side, int) and side >= 1 for side in shape):
        raise ValueError(f"shape: wanted (B, C, H, W) of whole numbers >= 1, got {tuple(shape)}")
    if shape[1] != len(model.statistics.mean):
        raise ValueError(f"shape: wanted (B, {len(model.statistics.mean)}, H, W), the model's channels, got {tuple(shape)}")
    like = torch.zeros(()) if like is None else like
    double, statistics = like.double(), model.statistics

    def anchor(generators: list[torch.Generator]) -> Observation:
        cov = Covariance.white(statistics.lambda_max, shape, as_basis(basis), double)
        spread = cov.replace(cov.values + statistics.variance_of(cov))
        y = statistics.mean_image(double) + spread.sample(generators)
        return Observation.of(y, cov, observed=False)

    sampler = Sampler(kernel, corrector, as_schedule(schedule, steps), final, chunk, callback)
    return sampler.sample(model, anchor, shape, 1, seed, like)
