"""Markov chains that leave the law of x_t given the observed part of y unchanged: ULA (nearly) and MALA (exactly).

The target at level Σ_t, in basis coordinates, is exact up to a constant:

    log π_t(x) = −U(x, Σ_t) − ½ Σ_{k observed, λ_t,k < λ_T,k} |y_k − x_k|²/(λ_T,k − λ_t,k).

Observed coordinates with λ_t = λ_T are pinned to y; unobserved ones have no second term. The proposal is preconditioned Langevin,
x′ = x + P∇log π + √(2P) z, with P_k = ε λ_t(λ_T − λ_t)/λ_T on observed coordinates and ε λ_t on the others, so that P times the
Hessian of −log π is at most ε. P depends on the level, never on x, which makes the proposal reversible up to the acceptance step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.operators import Observation
from anem.sample.kernels import Model, Noise

__all__ = ["MALA", "ULA", "Corrected", "Corrector", "Info", "State", "Target"]


@dataclass(frozen=True, eq=False)
class State:
    """A chain with its energy and gradient cached: a step costs one network call.

    Arguments:
        evaluation: the model at (x, Σ_t); the position is ``evaluation.y``.
        log_density: log π_t(x) up to a constant, (B,).
        gradient: ∇ log π_t in basis coordinates, (B, C, H, W); without meaning where a coordinate is pinned.
    """

    evaluation: Evaluation
    log_density: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Info:
    """What happened in a step.

    Arguments:
        acceptance: min(1, π(x′)q(x given x′)/π(x)q(x′ given x)), (B,); for ULA what MALA would have accepted, a measure of its bias.
        accepted: whether the chain moved, bool (B,).
    """

    acceptance: Tensor
    accepted: Tensor


class Target:
    """π_t for one observation, at every level below its Σ_T.

    Arguments:
        observation: y, Σ_T and which coordinates were observed. For y = x + n of known Σ, all of them.
    """

    def __init__(self, observation: Observation) -> None:
        self.coordinates = observation.cov.basis.forward(observation.y)
        self.values = observation.cov.values
        self.observed = observation.observed

    def state(self, evaluation: Evaluation) -> State:
        """The chain at ``evaluation.y``."""
        basis = evaluation.cov.basis
        gap = torch.where(self.observed, self.values - evaluation.cov.values, 0.0)
        free = gap > 0
        precision = torch.where(free, 1 / torch.where(free, gap, 1.0), 0.0)
        residual = self.coordinates - basis.forward(evaluation.y)
        log_density = -evaluation.energy - 0.5 * (precision * residual.square()).flatten(1).sum(1)
        return State(evaluation, log_density, precision * residual - basis.forward(evaluation.grad_y))

    def preconditioner(self, cov: Covariance, step_size: Tensor) -> Tensor:
        """P, per coordinate, (B, C, H, W), for ε (B,); zero where pinned."""
        rest = torch.where(self.observed, (self.values - cov.values) / self.values, 1.0)
        return step_size.reshape(-1, 1, 1, 1) * cov.values * rest


@dataclass(frozen=True, eq=False)
class Corrected:
    """A chain after the steps at one level.

    Arguments:
        evaluation: the model where the chain is now.
        step_size: ε for the next level, (B,).
        acceptance: mean over the steps, (B,).
    """

    evaluation: Evaluation
    step_size: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Corrector:
    """Langevin steps at every level; use :class:`ULA` or :class:`MALA`.

    Arguments:
        steps: at each level, one network call each.
        step_size: ε of the first level; None for 1.36 d^{−1/3}, the optimum for d independent coordinates (Roberts & Rosenthal 1998).
        adaptation: between levels log ε changes by this times (mean acceptance − 0.574), each chain for itself; 0 keeps ε. Adaptation
            makes ε depend on the chain's past, so that invariance is exact only at 0; the effect is of the order of the change.
    """

    steps: int = 1
    step_size: float | None = None
    adaptation: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.adaptation < 0 or (self.step_size is not None and not self.step_size > 0):
            raise ValueError(
                f"corrector: wanted steps >= 1, step_size > 0 and adaptation >= 0, got {self.steps}, {self.step_size}, {self.adaptation}"
            )

    adjusted = False
    """Whether proposals are accepted or refused."""

    def initial_step_size(self, like: Tensor) -> Tensor:
        """ε at the first level, (B,), for images like (B, C, H, W)."""
        size = self.step_size if self.step_size is not None else 1.36 * like[0].numel() ** (-1 / 3)
        return like.new_full((len(like),), size)

    def step(self, model: Model, state: State, target: Target, step_size: Tensor, noise: Noise) -> tuple[State, Info]:
        """One step at the level of ``state``, for ε (B,)."""
        cov = state.evaluation.cov
        root = target.preconditioner(cov, step_size).sqrt()
        z = noise.normal(state.gradient)
        move = root * (root * state.gradient + 2**0.5 * z)
        proposal = target.state(model(state.evaluation.y + cov.basis.inverse(move), cov))
        # The reverse move needs the noise −(z + √(P/2)(∇log π + ∇log π′)): no division by P, which is 0 where pinned.
        back = z + 0.5**0.5 * root * (state.gradient + proposal.gradient)
        log_ratio = proposal.log_density - state.log_density + 0.5 * (z.square() - back.square()).flatten(1).sum(1)
        accepted = noise.uniform(log_ratio).log() < log_ratio if self.adjusted else torch.ones_like(log_ratio, dtype=torch.bool)
        chance = torch.where(log_ratio.isnan(), 0.0, log_ratio.clamp_max(0.0).exp())  # a proposal without energy is refused
        return _select(accepted, proposal, state), Info(chance, accepted)

    def correct(self, model: Model, now: Evaluation, target: Target, step_size: Tensor, noise: Noise) -> Corrected:
        """All steps of one level, from the model at (x_t, Σ_t) and ε (B,)."""
        state, total = target.state(now), torch.zeros_like(step_size)
        for _ in range(self.steps):
            state, info = self.step(model, state, target, step_size, noise)
            total = total + info.acceptance
        acceptance = total / self.steps
        adapted = step_size * (self.adaptation * (acceptance - 0.574)).exp()
        return Corrected(state.evaluation, adapted, acceptance)


@dataclass(frozen=True)
class ULA(Corrector):
    """Unadjusted Langevin: every proposal is taken. Its stationary law is biased by O(ε): N(0, 1) gets variance 1/(1 − P/2)."""

    step_size: float | None = 0.1


@dataclass(frozen=True)
class MALA(Corrector):
    """Metropolis-adjusted Langevin: π_t is invariant for any ε, which is adapted towards 0.574 acceptance (Roberts & Rosenthal 1998)."""

    adaptation: float = 1.0
    adjusted = True


def _select(accepted: Tensor, proposal: State, state: State) -> State:
    """``proposal`` where accepted (B,), ``state`` elsewhere."""

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    a, b = proposal.evaluation, state.evaluation
    ratio = None if a.variance_ratio is None or b.variance_ratio is None else pick(a.variance_ratio, b.variance_ratio)
    evaluation = replace(
        a,
        y=pick(a.y, b.y),
        energy=pick(a.energy, b.energy),
        grad_y=pick(a.grad_y, b.grad_y),
        grad_logvar=pick(a.grad_logvar, b.grad_logvar),
        variance_ratio=ratio,
    )
    return State(evaluation, pick(proposal.log_density, state.log_density), pick(proposal.gradient, state.gradient))
