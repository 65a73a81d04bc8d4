"""Audits of an energy: does U(y, Σ) behave as the −log p(y given Σ) of one density of clean images?

Each audit is one identity of a true energy, measured on held-out images, with its standard error and what the figure has to be.
Calibration against posterior samples is in :mod:`anem.likelihood.audits_ranks`, the choice of covariances in
:mod:`anem.likelihood.audits_suite`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.likelihood.chunks import chunks, energies
from anem.likelihood.flow import flow_log_prob
from anem.likelihood.partition import log_partition
from anem.operators import Observation
from anem.random import normal
from anem.sample import Sampler, as_schedule

__all__ = ["Check", "audit_flow", "audit_gradient", "audit_partition", "audit_paths", "audit_strangers", "audit_variance", "path_integral"]

PRECISION = 0.3
"""Share of the limit that a standard error may have for the figure to be decided."""

ONE_CALL = "one call/error − 1"
"""The one-call variance over the squared error."""

EFFECTIVE = 4.0
"""Effective populations of weighted paths below which log Z is undecided, whatever its standard error."""


@dataclass(frozen=True)
class Check:
    """One figure of an audit.

    Arguments:
        audit: which identity. where: at which covariance. what: the figure, with its unit.
        value: 0 for a true energy, unless ``criterion`` says otherwise.
        standard_error: of ``value``; NaN where one image or population cannot tell.
        criterion: what the value has to be; None for a figure that is only shown.
        holds: whether it is; None if that is not asked, or if the standard error is too large to tell.
    """

    audit: str
    where: str
    what: str
    value: float
    standard_error: float
    criterion: str | None = None
    holds: bool | None = None

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"FAIL"``, ``"undecided"``, or nothing where there is no criterion."""
        if self.criterion is None:
            return ""
        return "undecided" if self.holds is None else "pass" if self.holds else "FAIL"

    @classmethod
    def near_zero(
        cls, audit: str, where: str, what: str, value: float, standard_error: float, limit: float, errors: float = math.inf
    ) -> Check:
        """|value| ≤ ``limit`` with a standard error (s.e.) ≤ 0.3 · ``limit``, and |value| ≤ ``errors`` standard errors.

        Undecided if the standard error is larger and the value is not beyond the limit by more than 3 of them.
        """
        criterion = f"±{limit:g} (s.e. {PRECISION * limit:g}" + (f", {errors:g} s.e.)" if errors < math.inf else ")")
        holds: bool | None = abs(value) <= min(limit, errors * standard_error if errors < math.inf else limit)
        if not standard_error <= PRECISION * limit and not abs(value) - 3 * standard_error > limit and not math.isnan(value):
            holds = None
        return cls(audit, where, what, value, standard_error, criterion, holds)

    @classmethod
    def mean_near_zero(cls, audit: str, where: str, what: str, values: Tensor, limit: float, errors: float = math.inf) -> Check:
        """As :meth:`near_zero` for the mean of independent values (N,)."""
        error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
        return cls.near_zero(audit, where, what, float(values.mean()), error, limit, errors)


def audit_flow(
    model: EnergyModel,
    images: Tensor,
    cov: Covariance,
    *,
    where: str = "",
    steps: int = 100,
    probes: int | None = 1,
    limit: float = 0.02,
    generator: torch.Generator | None = None,
) -> Check:
    """(a) The probability-flow likelihood of the score against the energy, for the same y = x + n: mean difference in bits/dim.

    Arguments:
        images: x, (N, C, H, W), dequantised. cov: Σ, (1, C, H, W). where: its name.
        steps, probes: of :func:`flow_log_prob`.
        limit: on the mean difference, bits/dim.
        generator: source of the noise and of the probes.
    """

    def gap(x: Tensor, own: Covariance) -> Tensor:
        y = x + own.sample(generator)
        flow = flow_log_prob(model, y, own, steps=steps, probes=probes, generators=generator).log_prob
        return (flow - model.log_prob(y, own)) / (x[0].numel() * math.log(2))

    return Check.mean_near_zero("flow", where, "flow − energy (bits/dim)", _each(gap, images, cov), limit)


def audit_partition(
    model: EnergyModel,
    targets: Mapping[str, Covariance],
    *,
    steps: int = 250,
    chains: int = 128,
    population: int = 16,
    limit: float = 0.01,
    generator: torch.Generator | None = None,
) -> list[Check]:
    """(b) log Z(Σ)/d at every target, in nats; undecided with fewer than 4 effective populations, whose number is then said.

    Arguments:
        targets: Σ (1, C, H, W) by name, each nowhere above the one before, in one basis.
        steps, chains, population, generator: of :func:`log_partition`.
    """
    result = log_partition(model, list(targets.values()), steps=steps, chains=chains, population=population, generator=generator)
    d = next(iter(targets.values())).values[0].numel()
    checks = []
    for name, *row in zip(targets, *(v.tolist() for v in (result.log_z / d, result.standard_error / d, result.effective)), strict=True):
        value, error, effective = row
        check = Check.near_zero("log Z", name, "log Z/d (nats)", value, error, limit)
        # Where few populations carry the weight the estimate is too low, by as much as it scatters, and its error bar says little: what is
        # still too high is too high.
        if effective < EFFECTIVE and not value - 3 * error > limit:
            check = replace(check, holds=None, criterion=f"{check.criterion}, {EFFECTIVE:g} populations, got {effective:.1f}")
        checks.append(check)
    return checks


@torch.no_grad()
def audit_strangers(
    model: EnergyModel,
    strangers: Mapping[str, Tensor],
    cov: Covariance,
    *,
    where: str = "",
    draws: int = 8,
    limit: float = 0.01,
    generator: torch.Generator | None = None,
) -> Check:
    """(b) from below: log Z(Σ) ≥ ½ Σ_k log 2πeλ_k − E_q[U(y, Σ)] for q = N(x, Σ) and any image x whatever (Jensen's inequality).

    Held-out images and weighted paths never come near images that are nothing like them, to which a learned energy may yet give all of
    ∫ e^{−U} dy. For an exact energy the bound is log Z = 0 less the divergence of q from p(y given Σ). The figure is the highest of all
    these bounds, over d; undecided where it is above the limit by at most 4 standard errors.

    Arguments:
        strangers: images by kind, (N, C, H, W) each, such as :func:`anem.likelihood.audits_suite.strange_images`.
        cov: Σ, (1, C, H, W). where: its name.
        draws: y for every image.
        limit: on the bound, nats/dim.
        generator: source of the noise.
    """
    best, density = None, -0.5 * float((2 * math.pi * cov.values.double()).log().mean())  # log N(0; 0, Σ)/d
    for kind, images in strangers.items():
        x = images.double().repeat_interleave(draws, 0)
        own = cov.expand(len(x))
        noise = normal(x.shape, generator, x)
        # ½‖ε‖² in place of its mean d/2: it varies as U does.
        bounds = (0.5 * noise.square().flatten(1).sum(1) - energies(model, x + own.color(noise), own)) / x[0].numel() - density
        bounds = bounds.unflatten(0, (-1, draws))
        highest = int(bounds.mean(1).nan_to_num(math.inf).argmax())
        value, error = float(bounds[highest].mean()), float(bounds[highest].std()) / draws**0.5
        if best is None or not (math.isnan(best[0]) or value <= best[0]):
            best = value, error, kind
    if best is None:
        raise ValueError("strangers: wanted some images, got none")
    value, error, kind = best
    holds = True if value <= limit else None if value - 4 * error <= limit else False
    return Check("strangers", where, f"log Z/d at least, by {kind} (nats)", value, error, f"≤ {limit:g}", holds)


def audit_gradient(
    model: EnergyModel,
    images: Tensor,
    cov: Covariance,
    *,
    where: str = "",
    limit: float = 0.01,
    errors: float = 3.0,
    generator: torch.Generator | None = None,
) -> Check:
    """(c) E_y[∂U/∂ℓ_k] = 0, ℓ = log λ: the mean over images and coordinates, in nats/dim.

    Arguments:
        images: x, (N, C, H, W), dequantised. cov: Σ, (1, C, H, W). where: its name.
        limit, errors: the mean is at most ``limit``, and at most so many standard errors.
        generator: source of the noise.
    """

    def slope(x: Tensor, own: Covariance) -> Tensor:
        return model(x + own.sample(generator), own).grad_logvar.flatten(1).mean(1)

    return Check.mean_near_zero("gradient", where, "mean ∂U/∂ℓ (nats/dim)", _each(slope, images, cov), limit, errors)


def audit_paths(
    model: EnergyModel,
    images: Tensor,
    first: Sequence[Covariance],
    second: Sequence[Covariance],
    *,
    where: str = "",
    nodes: int = 24,
    limit: float = 0.01,
    generator: torch.Generator | None = None,
) -> Check:
    """(d) The energy difference between two covariances along two paths, from both gradients: mean |difference of the two| in nats/dim.

    Both gradients of a network are those of one scalar, so that two paths in one basis agree for any energy of this package up to the
    quadrature; paths in different bases also compare the energies of their ends.

    Arguments:
        images: x, (N, C, H, W), dequantised.
        first, second: waypoints (1, C, H, W), straight in log λ between them; both paths have the same ends, and each has one basis.
        nodes: of Gauss's quadrature, for every piece.
        generator: source of the noise.

    Raises:
        ValueError: paths with different ends.
    """
    for a, b in ((first[0], second[0]), (first[-1], second[-1])):
        if not torch.allclose(a.values, b.values, rtol=1e-6) or not (a.basis == b.basis or a.is_white()):
            raise ValueError("paths: wanted two with the same ends, white if the bases differ")
    gaps = []
    for rows in chunks(len(images), images.shape[1:]):
        x = images[rows].double()
        z = normal(x.shape, generator, x)
        gaps.append((path_integral(model, x, z, second, nodes) - path_integral(model, x, z, first, nodes)).abs() / x[0].numel())
    return Check.mean_near_zero("paths", where, "|difference| (nats/dim)", torch.cat(gaps), limit)


@torch.no_grad()
def path_integral(model: EnergyModel, x: Tensor, z: Tensor, waypoints: Sequence[Covariance], nodes: int = 24) -> Tensor:
    """U(x + Σ_b^{1/2} z, Σ_b) − U(x + Σ_a^{1/2} z, Σ_a) = ∫ Σ_k [∂U/∂ℓ_k + ½ √λ_k (Bz)_k (B∇U)_k] dℓ_k from Σ_a to Σ_b, (N,), nats.

    The image's noise grows along the path, so that y stays where p(y given Σ) is.

    Arguments:
        x, z: images and white noise, (N, C, H, W).
        waypoints: Σ_a, …, Σ_b, each (1, C, H, W), in one basis.
        nodes: of Gauss's quadrature, for every piece.
    """
    at, weights = (0.5 * v for v in np.polynomial.legendre.leggauss(nodes))
    basis, total = waypoints[0].basis, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    noise = basis.forward(z.double())
    for a, b in pairwise(waypoints):
        rate = (b.values.double() / a.values.double()).log()
        for tau, weight in zip(0.5 + at, weights, strict=True):
            cov = a.replace(a.values.double() * (float(tau) * rate).exp()).expand(len(x))
            shift = cov.values.sqrt() * noise
            now = model(x.double() + basis.inverse(shift), cov)
            total += float(weight) * (rate * (now.grad_logvar + 0.5 * shift * basis.forward(now.grad_y))).flatten(1).sum(1)
    return total


@torch.no_grad()
def audit_variance(
    model: EnergyModel,
    images: Tensor,
    cov: Covariance,
    *,
    where: str = "",
    samples: int = 16,
    sampler: Sampler | None = None,
    limit: float = 0.1,
    generator: torch.Generator | None = None,
) -> list[Check]:
    """(f) Posterior variance from one call against the squared error of the denoised image and the variance of posterior samples.

    Two relative errors of the mean over images and over the coordinates with λ ≤ c. If there are none, all coordinates count and
    nothing is asked: there the variance is a small difference of large numbers.

    Arguments:
        images: x, (N, C, H, W), dequantised. cov: Σ, (1, C, H, W). where: its name.
        samples: S ≥ 2, draws for each image.
        sampler: of p(x given y); 50 steps of "sde-2m" if None. It must end "noisy", and its own error counts.
        limit: on the relative errors.
        generator: source of the noise, and of the samples' seeds.
    """
    sampler = sampler or Sampler("sde-2m", final="noisy")
    if samples < 2 or sampler.final != "noisy":
        raise ValueError(f"samples: wanted at least 2 and a sampler that ends 'noisy', got {samples} and {sampler.final!r}")
    prior = model.statistics.variance_of(cov)
    small = cov.values <= prior
    judged = bool(small.any())
    used = small if judged else torch.ones_like(small)
    x = images.double()
    own = Covariance(cov.values.double(), cov.basis).expand(len(x))
    y = x + own.sample(generator)
    at = evaluate(model, y, own)
    seeds = torch.randint(2**40, (len(x),), generator=generator, device=x.device).tolist()
    drawn = sampler.sample(model, lambda generators: Observation.of(y, own), y.shape, samples, seeds, y).samples
    spread = torch.stack([own.basis.power(s - drawn.mean(0)) for s in drawn]).sum(0) / (samples - 1)
    # The samples are x_0 = x + n_0 at the end Σ_0: given y, n_0 is R (y − x) and a remainder of variance (1 − R) λ_0, R = λ_0/λ.
    end = as_schedule(sampler.schedule).end(own).values
    kept = 1 - end / own.values
    within = (spread - kept * end) / kept.square()
    sums = [(used * v).flatten(1).sum(1) for v in (at.posterior_variance, own.basis.power(x - at.denoised), within)]
    checks = []
    for what, other in ((ONE_CALL, sums[1]), ("one call/samples − 1", sums[2])):
        value, error = ratio_minus_one(sums[0], other)
        check = Check.near_zero("variance", where, what, value, error, limit)
        checks.append(check if judged else Check("variance", where, check.what, value, error))
    return checks


def ratio_minus_one(numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
    """Mean of paired values (N,) over mean of others, minus 1, and its standard error by the delta method."""
    ratio = numerator.mean() / denominator.mean()
    spread = (numerator - ratio * denominator).std() if len(numerator) > 1 else torch.tensor(math.nan)
    return float(ratio - 1), float(spread / (denominator.mean().abs() * len(numerator) ** 0.5))


def evaluate(model: EnergyModel, y: Tensor, cov: Covariance) -> Evaluation:
    """The model at many y, in pieces of a size that memory allows."""
    parts = [model(y[rows], cov[rows]) for rows in chunks(len(y), y.shape[1:])]
    ratios = [p.variance_ratio for p in parts if p.variance_ratio is not None]
    columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("energy", "grad_y", "grad_logvar"))
    return Evaluation(y, cov, *columns, torch.cat(ratios) if ratios else None)


def _each(function: Callable[[Tensor, Covariance], Tensor], images: Tensor, cov: Covariance) -> Tensor:
    """``function`` of float64 images and their Σ, in pieces, (N,)."""
    cov = cov.replace(cov.values.double())
    parts = []
    for rows in chunks(len(images), images.shape[1:]):
        x = images[rows].double()
        parts.append(function(x, cov.expand(len(x))))
    return torch.cat(parts)
