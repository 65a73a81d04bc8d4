"""Estimation of degradation parameters from one measurement, and the choice between families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from anem.blind.bounded import searchable
from anem.blind.evidence import Evidence
from anem.blind.families import Family, as_family
from anem.blind.posterior import Posterior, Summit, explore, first_cells, touching
from anem.energy import EnergyModel
from anem.images import to_tensor
from anem.operators import LinearOperator

__all__ = ["Choice", "Estimate", "choose", "estimate"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """argmax_θ log p(m given θ), and how sure it is.

    Arguments:
        family: what θ means.
        theta: θ̂, (D,), in the order of ``family.parameters``.
        standard_error: of θ̂, (D,), from the curvature of the log evidence and, for a learned energy, the covariance of its gradient; NaN
            for integers, at an end of the range, and where neither is of any use.
        log_evidence: log p(m given θ̂), in nats.
        posterior: the whole posterior under a flat prior.
        cells: the log evidence as it was computed; the posterior is the same unless a bias was taken off, which moves and widens it.
        at_edge: whether θ̂ is at an end of its range, bool (D,).
        bias: of the maximum of a learned log evidence, taken off, (D,): the maximum is at θ̂ + bias (or is where a search for one ended); 0
            where nothing was taken off.
        calls: energies computed, one an image.
    """

    family: Family
    theta: Tensor
    standard_error: Tensor
    log_evidence: float
    posterior: Posterior
    cells: Posterior
    at_edge: Tensor
    bias: Tensor
    calls: int

    def degradation(self) -> tuple[LinearOperator, Tensor]:
        """The estimated operator and standard deviation of the noise, for a sampler."""
        return self.family.degradation(self.theta[None])

    @property
    def highest(self) -> float:
        """The highest log evidence that was found, in nats: a bias that was taken off is in it, and cells may be too coarse to have it."""
        return max(self.log_evidence, float(self.cells.log_evidence.max()))

    def named(self) -> dict[str, float]:
        """θ̂ by name."""
        return dict(zip(self.family.parameters, self.theta.tolist(), strict=True))


def estimate(
    model: EnergyModel,
    measurement: Any,
    family: Family | str,
    *,
    draws: int = 4,
    seed: int = 0,
    budget: int = 5000,
    refine: bool = True,
    correct: bool = True,
) -> Estimate:
    """Degradation parameters that make a measurement most probable: coarse to fine on cells, then Newton steps where θ is continuous.

    Where the cells stay too coarse, the maximum is climbed to from the best of them, and a second search cuts the first cells about it.

    Arguments:
        model: an energy, learned or exact, with its data statistics. A learned one is bounded, see :mod:`anem.blind.bounded`, for which
            32 images are drawn from its prior the first time.
        measurement: m: one PIL image, array or tensor, as of :func:`anem.sample_posterior`; a tensor (1, C, H, W), for one.
        family: by name ("white", "box", "box-anywhere", "band", "blur", "motion", "super-resolution"), or such as
            ``FAMILIES["blur"]((28, 28)).change({"sigma": 0.05})`` of :mod:`anem.blind`, for the size (…, H, W) of m.
        draws: K, draws of what was not observed, over which the evidence is averaged (log-mean-exp).
        seed: of their random numbers, the same for every θ.
        budget: most possible cells of one search.
        refine: whether to take the Newton steps and, where cells stay too coarse, to climb and search again; without, θ̂ is the centre of
            the best cell and has no standard error.
        correct: whether to take off the bias that a learned energy shows on measurements of its own samples, and to widen the posterior
            accordingly (docs/mathematics.md §6); for continuous parameters that are refined.

    Raises:
        ValueError: more than one measurement, or one the family or the model cannot describe.

    Source: Zilberstein et al., arXiv 2605.15487, section on blind estimation, which omits the Jacobian and the unobserved terms.
    """
    m = to_tensor(measurement, len(model.statistics.mean), bounded=False)[0].to(model.statistics.mean.device)
    family = as_family(family, m.shape)
    judged, samples = searchable(model, m.shape[1:])
    evidence = Evidence(judged, m, family, draws=draws, seed=seed)
    first = first_cells(evidence)
    cells = explore(evidence, budget, first)
    best = cells.best
    u, value = cells.centres[best], float(cells.log_evidence[best])
    free = torch.tensor([p.continuous for p in family.parameters.values()])
    if refine and not cells.resolved:  # the best of cells that coarse need not be where the maximum is
        summit = _ascend(evidence, cells, free)
        cells = explore(evidence, budget, first, summit)
        best = cells.best
        u, value = cells.centres[best], float(cells.log_evidence[best])
        if summit.log_evidence > value:
            u, value = summit.u, summit.log_evidence
    posterior, error, bias = cells, torch.full_like(u, math.nan), torch.zeros_like(u)
    if refine and bool(free.any()):
        peak = _climb(evidence, u, free, cells.widths[best])
        unbiased = None if samples is None or not correct else _unbiased(evidence, peak, cells, samples)
        if unbiased is None:
            u, value, error = peak.u, peak.value, peak.errors(peak.covariance)
        else:
            u, error, stretch = unbiased
            value, posterior = float(evidence.grid(u[None])[0]), cells.moved(peak.u, u, stretch)
            bias = (family.values(u + family.offsets(peak.u[None], u)) - family.values(u[None]))[0]
    low, high = _bounds(family)
    margin = torch.where(free, 1e-9 * (high - low), 0.5 + 1e-9)
    at_edge = ~_periodic(family) & ((u <= low + margin) | (u >= high - margin))
    slope = torch.tensor([float(p.value(x)) if p.scale == "log" else 1.0 for p, x in zip(family.parameters.values(), u, strict=True)])
    return Estimate(family, family.values(u[None])[0], slope * error, value, posterior, cells, at_edge, bias, evidence.calls)


def _bounds(family: Family) -> tuple[Tensor, Tensor]:
    low, high = zip(*(p.bounds() for p in family.parameters.values()), strict=True)
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def _periodic(family: Family) -> Tensor:
    return torch.tensor([p.periodic for p in family.parameters.values()])


def _inside(family: Family, u: Tensor) -> Tensor:
    """Coordinates (P, D) or (D,) brought into the range: the nearest end, or round and round."""
    low, high = _bounds(family)
    return torch.where(_periodic(family), low + (u - low) % (high - low), torch.minimum(torch.maximum(u, low), high))


@dataclass(frozen=True, eq=False)
class _Peak:
    """A maximum: u, log evidence, gradient (D,), which coordinates are inside the range, bool (D,), and minus the inverse Hessian in these.

    The last is None if the log evidence is not concave there.
    """

    u: Tensor
    value: float
    gradient: Tensor
    interior: Tensor
    covariance: Tensor | None

    def errors(self, covariance: Tensor | None) -> Tensor:
        """Standard errors of u by a covariance of the interior coordinates, (D,); NaN elsewhere."""
        errors = torch.full_like(self.u, math.nan)
        return errors if covariance is None else errors.index_put((self.interior,), covariance.diagonal().sqrt())


def _climb(evidence: Evidence, u: Tensor, free: Tensor, width: Tensor, slope: Tensor | None = None, steps: int = 12) -> _Peak:
    """Newton's method with halved steps from the best cell, inside the range, for log evidence − ⟨slope, u⟩ in the ``free`` coordinates.

    A direction in which the log evidence is not concave is climbed as if its curvature had the other sign. A coordinate at an end of
    its range that wants to leave it stays there. Stops when a step would gain less than 1e-9 nats, or gains nothing at all.
    """
    low, high = _bounds(evidence.family)
    periodic = _periodic(evidence.family)
    slope = torch.zeros_like(u) if slope is None else slope
    for _ in range(steps):
        value, gradient, hessian = evidence.derivatives(u, free)
        value, gradient = value - float(slope @ u), gradient - slope[free]
        if not bool(gradient.isfinite().all() and hessian.isfinite().all()):
            break
        whole = torch.zeros_like(u).index_put((free,), gradient)
        held = ~periodic & (((u <= low) & (whole < 0)) | ((u >= high) & (whole > 0)))
        moving = ~held[free]
        direction = torch.zeros_like(u)
        direction[free & ~held] = _newton(gradient[moving], hessian[moving][:, moving])
        scale = float((direction.abs() / (2 * width)).max().clamp_min(1.0))
        direction = direction / scale
        if float(whole @ direction) < 1e-9:
            break
        trials = _inside(evidence.family, torch.stack([u + direction * 0.5**k for k in range(6)]))
        gains = (evidence.grid(trials) - trials @ slope > value).nonzero()[:, 0]
        if not len(gains):
            break
        u = trials[gains[0]]
    value, gradient, hessian = evidence.derivatives(u, free)
    interior = free & (periodic | ((u > low) & (u < high)))
    precision = -hessian[interior[free]][:, interior[free]]
    concave = len(precision) > 0 and bool(precision.isfinite().all()) and bool((torch.linalg.eigvalsh(precision) > 0).all())
    whole = torch.zeros_like(u).index_put((free,), gradient)
    return _Peak(u, value, whole, interior, torch.linalg.inv(precision) if concave else None)


def _ascend(evidence: Evidence, cells: Posterior, free: Tensor, starts: int = 10, rounds: int = 40) -> Summit:
    """Uphill from the best cells: Newton steps where θ is continuous and integers to the best of their neighbours, in turn.

    Starts differ in their integers, or do not touch if there are none. Neighbours are all combinations of integers two away, and once
    none of these is better, of those next to it. A way that comes to integers where an earlier one was ends there.
    """
    found, left, seen = list[Summit](), cells.log_evidence.clone(), set[tuple[float, ...]]()
    low, high = _bounds(evidence.family)
    moves = (torch.zeros(1) if f else torch.arange(-1.0, 2.0) for f in free.tolist())
    near = torch.cartesian_prod(*moves).reshape(-1, len(free)).double()
    near = near[(near != 0).any(1)]
    for _ in range(starts):
        at = int(left.argmax())
        if not float(left[at]) > -math.inf:
            break
        u, value, step, spread = cells.centres[at], float(cells.log_evidence[at]), 2, torch.full_like(low, math.nan)
        same = (cells.centres == u)[:, ~free].all(1) if len(near) else touching(cells, torch.tensor([at]), corners=True)[:, 0]
        left[same] = -math.inf
        way = set[tuple[float, ...]]()
        for _ in range(rounds):
            place = tuple(u[~free].tolist())
            if place in seen:
                break
            if len(near):
                way.add(place)
            if bool(free.any()):
                peak = _climb(evidence, u, free, cells.widths[at], steps=3)
                u, value = peak.u, peak.value
                spread = peak.errors(None if peak.covariance is None else _conditional(peak.covariance))
            trials = u + step * near
            trials = trials[((trials >= low) & (trials <= high)).all(1)]
            values = evidence.grid(trials) if len(trials) else torch.full((1,), -math.inf)
            if float(values.max()) > value + 1e-3:
                u, value = trials[values.argmax()], float(values.max())
            elif step == 1 or not len(near):
                break
            else:
                step = 1
        seen |= way
        found.append(Summit(u, value, spread))
    return max(found, key=attrgetter("log_evidence"))


def _conditional(covariance: Tensor) -> Tensor:
    """Covariances given all the others, a diagonal matrix."""
    return torch.diag(1 / torch.linalg.inv(covariance).diagonal())


def _unbiased(evidence: Evidence, peak: _Peak, posterior: Posterior, samples: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """θ̂ without the bias, its standard errors, and by how much the posterior is too narrow, all in u and (D,); None if samples do not tell.

    By the corrected maximum, or by matched scores where there is none inside the range.
    """
    if not bool(peak.interior.any()):
        return None
    width = posterior.widths[posterior.best]
    corrected = _corrected(evidence, peak, width, samples)
    if corrected is not None:
        top, covariance = corrected
        u, error, narrow = top.u, top.errors(covariance), top.errors(top.covariance)
    else:
        matched = _matched(evidence, peak, width, samples)
        if matched is None:
            return None
        u, error = matched
        narrow = torch.maximum(posterior.spread, width / 12**0.5)  # nor is it known to be narrower than a cell
    return u, error, (error / narrow).nan_to_num(1.0).clamp_min(1.0)


def _corrected(evidence: Evidence, peak: _Peak, width: Tensor, samples: Tensor) -> tuple[_Peak, Tensor] | None:
    """The maximum of log p(m given θ) − log Z(θ), Z = ∫ p(m given θ) dm, and the covariance of its interior u; None where there is none.

    By the first derivative of log Z where the maximum is, the mean of the scores of samples measured there, which is looked up again where
    the maximum has gone. The covariance is H⁻¹ J (1 + 1/N) H⁻¹, J that of the scores (Godambe 1960), 1/N for the mean of N.
    """
    top, inverse = peak, peak.covariance
    if inverse is None:
        return None
    for _ in range(2):
        scores = evidence.scores(top.u, peak.interior, samples)
        slope = torch.zeros_like(peak.u).index_put((peak.interior,), scores.mean(0))
        if not bool(slope.isfinite().all()):
            return None
        top = _climb(evidence, top.u, peak.interior, width, slope)
        inverse = top.covariance
        if inverse is None or not bool((top.interior == peak.interior).all()):
            return None
    return top, inverse @ torch.cov(scores.T).reshape(inverse.shape) @ inverse * (1 + 1 / len(samples))


def _matched(evidence: Evidence, peak: _Peak, width: Tensor, samples: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor] | None:
    """θ for which samples, measured, have on average the score at the peak that m has there, and its standard errors, in u and (D,).

    Nothing is asked of the energy but that its scores tell one θ from another: not that it is normalised, nor that the log evidence is
    smooth or has a maximum there. By Newton's method with C, the derivative of the mean score by θ at the peak, from differences over
    ``width`` with the same noise. The covariance is C⁻¹ J C⁻ᵀ (1 + 1/N), J that of the scores at the peak, 1/N for the mean of N. What is
    not inside the range stays where it is.

    None where the scores are not finite, do not tell θ apart (C is not positive definite), or are still a fifth of a standard error and a
    third of the way off after ``rounds`` steps, or if a step leaves the range.

    Source: Gallant and Tauchen, Which moments to match?, Econometric Theory 12 (1996), where the energy is called the auxiliary model.
    """
    u, free, family = peak.u, peak.interior, evidence.family
    index, columns = free.nonzero()[:, 0], []
    low, high = _bounds(family)
    width = torch.where(_periodic(family), torch.minimum(width, (high - low) / 5), width)
    for a in index:
        aside = torch.zeros_like(u).index_put((a,), width[a])
        ends = [_inside(family, u + sign * aside) for sign in (1, -1)]
        above, below = (evidence.scores(u, free, samples, end).mean(0) for end in ends)
        columns.append((above - below) / family.offsets(ends[0], ends[1])[a])
    response = torch.stack(columns, 1)
    if not bool(response.isfinite().all() and (torch.linalg.eigvalsh(response + response.T) > 0).all()):
        return None
    inverse, theta, distances, seen = torch.linalg.inv(response), u, list[float](), list[Tensor]()
    for step in range(rounds + 1):
        seen.append(evidence.scores(u, free, samples, theta))
        off = peak.gradient[index] - seen[-1].mean(0)
        distances.append(float(off @ inverse @ off))  # about the square of that in standard errors
        if step == rounds or not distances[-1] > 0.04:
            break
        moved = theta.index_put((index,), theta[index] + inverse @ off)
        theta = _inside(family, moved)
        if bool((~_periodic(family) & (theta != moved)).any()):
            return None
    if not distances[-1] <= max(0.04, distances[0] / 9):  # nor finite
        return None
    covariance = inverse @ torch.cov(seen[0].T).reshape(inverse.shape) @ inverse.T * (1 + 1 / len(samples))
    return theta, torch.full_like(u, math.nan).index_put((index,), covariance.diagonal().sqrt())


def _newton(gradient: Tensor, hessian: Tensor) -> Tensor:
    curvature, vectors = torch.linalg.eigh(hessian)
    return vectors @ (vectors.T @ gradient / curvature.abs().clamp_min(1e-12))


@dataclass(frozen=True, eq=False)
class Choice:
    """Families compared by log p(m given family), each marginalised over its parameters with its prior.

    Arguments:
        estimates: one a family, in the order given.
        log_marginal: in nats, (F,).
        probabilities: of the families, a priori equally likely, (F,).
    """

    estimates: tuple[Estimate, ...]
    log_marginal: Tensor
    probabilities: Tensor

    @property
    def order(self) -> list[int]:
        """Indices of the families, the most probable first."""
        return self.log_marginal.argsort(descending=True).tolist()

    @property
    def best(self) -> Estimate:
        return self.estimates[self.order[0]]

    @property
    def resolved(self) -> bool:
        """Whether the cells of every family are as fine as its posterior asks for; if not, its log marginal is that of coarser ones."""
        return all(e.posterior.resolved for e in self.estimates)


def choose(
    model: EnergyModel,
    measurement: Any,
    families: Sequence[Family | str],
    *,
    draws: int = 4,
    seed: int = 0,
    budget: int = 5000,
    refine: bool = True,
    correct: bool = True,
) -> Choice:
    """The family that a measurement comes from, with the estimate in every one; arguments as of :func:`estimate`.

    Every family has to leave the same entries measured; those of this package leave all.

    Raises:
        ValueError: no family, or as :func:`estimate`.
    """
    if not families:
        raise ValueError("families: wanted at least one, got none")
    settings: dict[str, Any] = {"draws": draws, "seed": seed, "budget": budget, "refine": refine, "correct": correct}
    estimates = tuple(estimate(model, measurement, family, **settings) for family in families)
    log_marginal = torch.tensor([e.posterior.log_marginal for e in estimates], dtype=torch.float64)
    return Choice(estimates, log_marginal, log_marginal.softmax(0))
