"""The posterior of degradation parameters on cells that are finest where it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from anem.blind.evidence import Evidence
from anem.blind.families import Family

__all__ = ["Posterior", "Summit", "explore", "first_cells", "touching"]

_NEGLIGIBLE = 7.0
"""Nats below the best at which a cell no longer matters: e⁻⁷ = 0.001."""

_SPACING = 1.5
"""Width of a cell over the standard deviation given all other coordinates: the midpoint rule is exact to 2e^{−2π²/1.5²} = 3e-4 for a
Gaussian."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """p(θ given m) ∝ p(m given θ) under the family's flat prior, by the midpoint rule on N cells that tile the prior's range.

    Arguments:
        family: what θ means.
        centres, widths: the cells in the coordinates u, (N, D).
        log_evidence: log p(m given θ) at the centres, in nats, (N,); −∞ where θ is impossible.
        resolved: whether the cells are as fine as the posterior asks for. If not, it is narrower than a cell somewhere: moments, entropy
            and intervals are then those of the cells.
    """

    family: Family
    centres: Tensor
    widths: Tensor
    log_evidence: Tensor
    resolved: bool = True

    @cached_property
    def theta(self) -> Tensor:
        """The centres as θ, (N, D)."""
        return self.family.values(self.centres)

    @cached_property
    def log_volume(self) -> Tensor:
        """Log volume of the cells in u, (N,); an integer counts 1, the impossible 0."""
        return self.widths.log().sum(1).where(self.log_evidence > -math.inf, -math.inf)

    @cached_property
    def log_marginal(self) -> float:
        """log p(m given family) = log ∫ p(m given θ) p(θ) dθ, in nats: what families are compared by."""
        return float((self.log_evidence + self.log_volume).logsumexp(0) - self.log_volume.logsumexp(0))

    @cached_property
    def probabilities(self) -> Tensor:
        """Probability of every cell, (N,)."""
        return (self.log_evidence + self.log_volume).softmax(0)

    @property
    def possible(self) -> int:
        """How many cells have a possible θ at their centre."""
        return int((self.log_evidence > -math.inf).sum())

    @property
    def best(self) -> int:
        """Index of the cell with the highest evidence."""
        return int(self.log_evidence.argmax())

    @cached_property
    def mean(self) -> Tensor:
        """Posterior mean of θ, (D,); a periodic θ is averaged about the best one."""
        return self.probabilities @ self._unwrapped

    @cached_property
    def std(self) -> Tensor:
        """Posterior standard deviation of θ, (D,)."""
        return (self.probabilities @ (self._unwrapped - self.mean).square()).sqrt()

    @property
    def _unwrapped(self) -> Tensor:
        """θ of the cells, (N, D): of a periodic one the value next to the best cell's; of what was moved out of the range its end."""
        best = self.centres[self.best]
        u = best + self.family.offsets(self.centres, best)
        bounds = [p.bounds() if not p.periodic else (-math.inf, math.inf) for p in self.family.parameters.values()]
        low, high = torch.tensor(bounds, dtype=u.dtype).T
        return self.family.values(torch.minimum(torch.maximum(u, low), high))

    @cached_property
    def spread(self) -> Tensor:
        """Posterior standard deviation of the coordinates u, (D,)."""
        offsets = self.family.offsets(self.centres, self.centres[self.best])
        return (self.probabilities @ (offsets - self.probabilities @ offsets).square()).sqrt()

    @cached_property
    def entropy(self) -> float:
        """−∫ p(u) log p(u) du in nats, differential where θ is continuous; log volume of the range if the measurement says nothing."""
        p = self.probabilities
        return float(-(torch.xlogy(p, p) - p * self.log_volume.nan_to_num(neginf=0.0)).sum())

    def interval(self, mass: float = 0.9) -> Tensor:
        """Equal-tailed interval of θ, one a parameter, (D, 2).

        An integer's interval has at least this mass. The density of a continuous parameter is linear between equal cells, whose widening by
        a variance of width²/6 is taken back (as by Sheppard's correction).

        Raises:
            ValueError: a mass outside (0, 1).
        """
        if not 0 < mass < 1:
            raise ValueError(f"mass: wanted a number between 0 and 1, got {mass}")
        best = self.centres[self.best]
        offsets, p = self.family.offsets(self.centres, best), self.probabilities
        tails = torch.tensor([0.5 - mass / 2, 0.5 + mass / 2], dtype=torch.float64)
        rows = []
        for a, parameter in enumerate(self.family.parameters.values()):
            x, width = offsets[:, a], self.widths[:, a]
            ends = _quantiles(_triangular if parameter.continuous else _uniform, x, width, p, tails)
            if parameter.continuous:
                centre, extra = (p * x).sum(), (p * width.square()).sum() / 6
                variance = (p * (x - centre).square()).sum()
                ends = centre + (ends - centre) * (variance / (variance + extra)).sqrt()
            else:
                ends = (best[a] + ends).round() - best[a]
            ends = best[a] + ends
            rows.append(parameter.value(ends if parameter.periodic else ends.clamp(*parameter.bounds())))
        return torch.stack(rows)

    def moved(self, start: Tensor, end: Tensor, stretch: Tensor) -> Posterior:
        """The posterior of end + stretch (u − start), all (D,): another place and width, and the same shape; cells may leave the range."""
        centres = end + stretch * self.family.offsets(self.centres, start)
        return replace(self, centres=centres, widths=stretch * self.widths)

    def runner_up(self) -> int | None:
        """Index of the best cell that is another answer, None if there is none.

        That is one of other integers, or where there are none another local maximum, from which every way to a higher place goes down
        by a nat or more.
        """
        integers = [a for a, p in enumerate(self.family.parameters.values()) if not p.continuous]
        if integers:
            others = (self.centres != self.centres[self.best])[:, integers].any(1)
            candidates = self.log_evidence.where(others, -math.inf)
            return int(candidates.argmax()) if bool((candidates > -math.inf).any()) else None
        touch = touching(self, torch.arange(len(self.centres)), corners=True)
        higher = self.log_evidence[None, :] > self.log_evidence[:, None]
        tops = ~(higher & touch).any(1) & (self.log_evidence > -math.inf)
        for index in self.log_evidence.argsort(descending=True).tolist():
            if tops[index] and index != self.best and not self._shoulder(index, touch):
                return index
        return None

    def _shoulder(self, index: int, touch: Tensor, depth: float = 1.0) -> bool:
        """Whether a higher cell is reached from this one through cells less than ``depth`` nats below it."""
        above = self.log_evidence > self.log_evidence[index] - depth
        reached = torch.zeros_like(above)
        reached[index] = True
        while True:
            further = touch[:, reached].any(1) & above
            if bool((self.log_evidence[further] > self.log_evidence[index]).any()):
                return True
            if bool((further == reached).all()):
                return False
            reached = further


def _quantiles(distribution: Callable[[Tensor], Tensor], x: Tensor, width: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Quantiles (Q,) of a density of pieces of one shape, of centres x, widths and probabilities p, all (N,); by bisection."""
    low, high = (x - width).min().expand_as(q), (x + width).max().expand_as(q)
    for _ in range(60):
        middle = (low + high) / 2
        below = (p * distribution((middle[:, None] - x) / width)).sum(1) < q
        low, high = middle.where(below, low), high.where(below, middle)
    return (low + high) / 2


def _uniform(z: Tensor) -> Tensor:
    """Distribution function of a density that is constant in (−½, ½)."""
    return (z + 0.5).clamp(0, 1)


def _triangular(z: Tensor) -> Tensor:
    """Distribution function of the density 1 − |z| in (−1, 1), of variance 1/6; side by side these make what is linear between centres."""
    z = z.clamp(-1, 1)
    return 0.5 + z - 0.5 * z * z.abs()


def touching(cells: Posterior, of: Tensor, corners: bool = False) -> Tensor:
    """Whether a cell shares a face (or a corner) with the cells ``of``, or is one of them: bool (N, len(of))."""
    apart = torch.zeros(len(cells.centres), len(of), dtype=torch.int64)
    touch = torch.ones_like(apart, dtype=torch.bool)
    for a, parameter in enumerate(cells.family.parameters.values()):
        distance = parameter.offset(cells.centres[:, None, a], cells.centres[of, a]).abs()
        reach = (cells.widths[:, None, a] + cells.widths[of, a]) / 2
        apart += distance > (1 - 1e-6) * reach
        touch &= distance < (1 + 1e-6) * reach
    return touch if corners else touch & (apart <= 1)


@dataclass(frozen=True, eq=False)
class Summit:
    """A high log evidence that is known.

    Arguments:
        u: where, (D,). log_evidence: in nats.
        spread: standard deviation of u given all other coordinates, (D,); NaN if unknown, and of no meaning for integers.
    """

    u: Tensor
    log_evidence: float
    spread: Tensor


def first_cells(evidence: Evidence) -> Posterior:
    """The coarsest cells of a family.

    Raises:
        ValueError: the family has no possible θ.
    """
    family = evidence.family
    columns = zip(*(p.partition() for p in family.parameters.values()), strict=True)
    centres, widths = (torch.cartesian_prod(*column).reshape(-1, len(column)) for column in columns)
    cells = Posterior(family, centres, widths, evidence.grid(centres), resolved=False)
    if not bool((cells.log_evidence > -math.inf).any()):
        raise ValueError(f"{family.name}: wanted a family with some possible parameters, got none")
    return cells


def explore(evidence: Evidence, budget: int = 5000, cells: Posterior | None = None, summit: Summit | None = None) -> Posterior:
    """Coarse to fine: cells that matter are cut in three along the least resolved coordinate, until all are finer than the posterior.

    A cell matters if it is within 7 nats of the best, holds the summit, or shares a face with one that does either.

    Arguments:
        evidence: of one measurement.
        budget: after how many possible cells to stop, ``resolved`` or not; the first ones are always computed.
        cells: to start from; those of :func:`first_cells` if None.
        summit: if known; of cells whose centres are far below it only its own, and those it touches, matter.

    Raises:
        ValueError: the family has no possible θ.
    """
    cells = first_cells(evidence) if cells is None else cells
    family, least = evidence.family, cells.possible
    free = torch.tensor([p.continuous for p in family.parameters.values()])
    while True:
        top, seeds, spacing = float(cells.log_evidence.max()), torch.zeros(len(cells.centres), dtype=torch.bool), _spacing(cells)
        if summit is not None:
            seeds[int((family.offsets(cells.centres, summit.u).abs() / cells.widths).amax(1).argmin())] = True
            if summit.log_evidence >= top:
                known = torch.where(free, _SPACING * summit.spread, 1.0)
                top, spacing = summit.log_evidence, known.where(known.isfinite(), spacing)
        seeds |= cells.log_evidence > top - _NEGLIGIBLE
        ratio = cells.widths / spacing
        relevant = touching(cells, seeds.nonzero()[:, 0]).any(1)
        coarse = relevant[:, None] & (ratio > 1 + 1e-6)
        if not bool(coarse.any()):
            return replace(cells, resolved=True)
        worst = ratio.where(coarse, 0.0).amax(0)
        # A block of integers is best cut before the cells in it are many; which integers those are, only a summit tells.
        axis = int((worst if summit is None else worst.where(free | (worst == 0), math.inf)).argmax())
        chosen = coarse[:, axis]
        if cells.possible + 2 * int(chosen.sum()) > max(budget, least):
            return replace(cells, resolved=False)
        cells = _cut(evidence, cells, chosen, axis)


def _cut(evidence: Evidence, cells: Posterior, chosen: Tensor, axis: int) -> Posterior:
    """The chosen cells in three along an axis; the middle one keeps its evidence."""
    widths = cells.widths.clone()
    widths[chosen, axis] /= 3
    shift = torch.zeros_like(widths[chosen])
    shift[:, axis] = widths[chosen, axis]
    new = torch.cat([cells.centres[chosen] - shift, cells.centres[chosen] + shift])
    widths = torch.cat([widths, widths[chosen], widths[chosen]])
    return Posterior(cells.family, torch.cat([cells.centres, new]), widths, torch.cat([cells.log_evidence, evidence.grid(new)]))


def _spacing(cells: Posterior) -> Tensor:
    """How wide a cell may be along every coordinate, (D,): 1 for integers, else what the standard deviation given all the others allows.

    Only the cells around the best one are looked at, so that a second mode does not make the first look wide.
    """
    best = cells.best
    width = cells.widths[best]
    offsets = cells.family.offsets(cells.centres, cells.centres[best])
    near = (offsets.abs() < 3.7 * width).all(1)
    p = cells.probabilities.where(near, 0.0)
    p = p / p.sum()
    centred = offsets - p @ offsets
    covariance = (p[:, None] * centred).T @ centred + torch.diag((0.1 * width).square())
    conditional = torch.linalg.inv(covariance).diagonal().rsqrt()
    integer = torch.tensor([not q.continuous for q in cells.family.parameters.values()])
    return torch.where(integer, 1.0, _SPACING * conditional)
