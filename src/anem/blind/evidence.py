"""log p(m given θ): the evidence of one measurement under a batch of degradation parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anem.blind.families import Family
from anem.energy import EnergyModel
from anem.likelihood import average_evidence, draw_observations
from anem.operators import Observation
from anem.random import generator_of

__all__ = ["Evidence"]

_NUMBERS = 2**17


class Evidence:
    """log p(m given θ) = log mean_k exp(−U(y_k, Σ_θ) + terms_k), in nats, a density of the measurement m.

    The terms are the Jacobian and both sums over unobserved coordinates (see :mod:`anem.operators.base`). The draws y_k of what is not
    observed are of the same random numbers for every θ; where everything is observed there is one y and no draw.

    Arguments:
        model: any energy, with its data statistics.
        measurement: m, (1, C, H, W); computed in float64.
        family: what θ means.
        draws: K ≥ 1.
        seed: of the random numbers.

    Raises:
        ValueError: more than one measurement, draws < 1; (from calls) θ under which other entries of m count as measured.
    """

    def __init__(self, model: EnergyModel, measurement: Tensor, family: Family, *, draws: int = 4, seed: int = 0) -> None:
        if measurement.ndim != 4 or len(measurement) != 1:
            raise ValueError(f"measurement: wanted one, of shape (1, C, H, W), got {tuple(measurement.shape)}")
        if draws < 1:
            raise ValueError(f"draws: wanted at least 1, got {draws}")
        self.model, self.measurement, self.family = model, measurement.double(), family
        self.draws, self.seed = draws, seed
        self.calls = 0
        """Energies computed so far, one an image."""

    def __call__(self, u: Tensor) -> Tensor:
        """At coordinates u, (P, D) to (P,); the graph is kept."""
        return self._of(self.measurement, u)

    def _of(self, m: Tensor, u: Tensor) -> Tensor:
        """Of one measurement, or of one a row of u."""
        seen = draw_observations(lambda k: self._observe(m, u, k), self.draws)
        self.calls += sum(len(s.y) for s in seen)
        return average_evidence(self.model.energy, seen).expand(len(u))

    def _observe(self, m: Tensor, u: Tensor, draw: int = 0) -> Observation:
        operator, sigma = self.family.degradation(self.family.values(u.to(m.device)))
        measured = operator.measured(m.shape, m)
        if not bool((measured == measured[:1]).all()):
            raise ValueError(f"{self.family.name}: wanted every theta to leave the same entries measured, got masks that differ")
        # Of every measurement the same draws, as they are those of m.
        generators = [generator_of(self.seed, "unobserved", draw, device=m.device) for _ in m]
        return operator.observe(m, sigma, self.model.statistics, generators)

    @torch.no_grad()
    def grid(self, u: Tensor) -> Tensor:
        """At many coordinates, in pieces of a size that memory allows and without a graph: (P, D) to (P,), −∞ where θ is impossible.

        Pieces are of coordinates for which everything is observed, of which one energy is all there is to compute, or of others.
        """
        out, most = torch.full((len(u),), -math.inf, dtype=torch.float64), max(1, _NUMBERS // self.measurement.numel())
        possible = self.family.possible(self.family.values(u)).nonzero()[:, 0]
        if not len(possible):
            return out
        observed = [self._observe(self.measurement, u[rows]).observed.flatten(1).all(1).expand(len(rows)) for rows in possible.split(most)]
        complete = torch.cat(observed).cpu()
        for rows in (*possible[complete].split(most), *possible[~complete].split(max(1, most // self.draws))):
            if len(rows):
                out[rows] = self(u[rows]).cpu().double()
        return out

    def derivatives(self, u: Tensor, free: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient (F,) and Hessian (F, F) at one point u, (D,), in the F coordinates that are ``free``, bool (D,)."""
        index = free.nonzero()[:, 0]
        with torch.enable_grad():
            leaf = u[index].clone().requires_grad_()
            value = self(u.index_put((index,), leaf)[None])[0]
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            rows = [torch.autograd.grad(g, leaf, retain_graph=True)[0] for g in gradient]
        hessian = torch.stack(rows)
        return float(value.detach()), gradient.detach(), 0.5 * (hessian + hessian.T)

    def scores(self, u: Tensor, free: Tensor, images: Tensor, truth: Tensor | None = None) -> Tensor:
        """∂ log p(m_i given u)/∂u, (N, F), in the ``free`` coordinates, of images x_i, (N, C, H, W), measured at ``truth`` (None: u).

        For images from the prior and measured at u their mean is ∂ log Z/∂u, Z the integral of p(m given u) over m, and so 0 for an exact
        energy, whose Fisher information is then their covariance, and the derivative of their mean by the truth. Noise is of the same
        random numbers for every truth.
        """
        index, found = free.nonzero()[:, 0], []
        # Neither the numbers of the draws of what is not observed, nor those that the images may come from.
        generator = generator_of(self.seed, "scores", device=self.measurement.device)
        for x in images.to(self.measurement).split(max(1, _NUMBERS // (8 * self.draws * self.measurement.numel()))):
            at = (u if truth is None else truth).expand(len(x), -1)
            operator, sigma = self.family.degradation(self.family.values(at.to(x.device)))
            m = operator.measure(x, sigma, generator)
            with torch.enable_grad():
                rows = u.expand(len(x), -1)
                leaf = rows[:, index].clone().requires_grad_()
                value = self._of(m, rows.index_put((torch.arange(len(x))[:, None], index), leaf))
                found.append(torch.autograd.grad(value.sum(), leaf)[0])
        return torch.cat(found)
