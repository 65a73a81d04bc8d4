"""Paths of covariances that follow the energy, image by image and coordinate by coordinate, and their freezing for a corrector.

Both rules end at Σ_0 in the given number of steps.

* :class:`EnergyGuided`: log λ_k falls by g_k = min(η |∂U/∂ℓ_k|, L_k), L_k = log(λ_k/λ_0,k) being what is left, with η such that Σ g_k is
  the share of Σ L_k that a step has;
* :class:`VarianceGuided`: by g_k = min(h_max, log(1 + ε/κ_k)) with κ_k = Var(x_k given x_t)/λ_k, or to the level of water-filling.

A path that follows the chain leaves ancestral sampling valid: what comes next depends on the past alone. A corrector's target does not
know the past, so with one the path has to be fixed beforehand: :func:`freeze`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.operators import Observation
from anem.sample.chain import ChainState, run_chain
from anem.sample.kernels import Kernel, Noise, as_kernel
from anem.sample.schedules import Geometric, Listed, Planned, Schedule, WaterFilling

__all__ = ["SCHEDULES", "EnergyGuided", "VarianceGuided", "as_schedule", "freeze"]


@dataclass(frozen=True)
class EnergyGuided(Planned):
    """The rule of the paper, δΛ ∝ Λ |∂U/∂Λ| Λ: steepest descent of U in the log-det geometry, with absolute values.

    The step follows the geodesic, log λ_k falls by η |∂U/∂ℓ_k|, so that no variance can become negative, and stops at λ_0. η is chosen
    for every image so that log det Σ_t/Σ_0 falls by a fraction 1/(steps left): the path ends on time. Along an exact chain ∂U/∂ℓ has mean
    zero, so that its absolute value measures chance more than information; :class:`VarianceGuided` uses the information alone.

    Arguments:
        clip: least and greatest |∂U/∂ℓ_k|, relative to its mean over the coordinates of the image that still move.

    Source: Zilberstein et al., arXiv 2605.15487, energy-guided schedules; the clipping and the choice of η are ours.
    """

    clip: tuple[float, float] = (0.1, 10.0)

    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.clip[0] <= 1 <= self.clip[1]:
            raise ValueError(f"clip: wanted 0 < least <= 1 <= greatest, got {self.clip}")

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        if left == 1:
            return end
        fall = now.cov.basis.symmetrise(self.fall(now, (now.cov.values / end.values).log(), left))
        return now.cov.replace(torch.maximum(now.cov.values * (-fall).exp(), end.values))

    def fall(self, now: Evaluation, remaining: Tensor, left: int) -> Tensor:
        """g, (B, C, H, W), for L = ``remaining`` (B, C, H, W) and ``left`` steps, this one included; 0 ≤ g ≤ L."""
        size, room = now.grad_logvar.abs().flatten(1), remaining.flatten(1)
        moving = (room > 0).to(size)
        mean = (size * moving).sum(1, keepdim=True) / moving.sum(1, keepdim=True).clamp_min(1)
        weight = torch.where(mean > 0, size / torch.where(mean > 0, mean, 1.0), 1.0).clamp(*self.clip)
        total = self.share(left) * room.sum(1, keepdim=True)
        return torch.minimum(_scale_to(total, weight, room) * weight, room).reshape(remaining.shape)


def _scale_to(total: Tensor, weight: Tensor, room: Tensor) -> Tensor:
    """η ≥ 0 with Σ_k min(η w_k, L_k) = total, (B, 1), for w > 0 and L ≥ 0 (B, d); the sum is piecewise linear in η."""
    full, order = (room / weight).sort(1)  # η at which a coordinate arrives
    weight, room = weight.gather(1, order), room.gather(1, order)
    arrived = room.cumsum(1) - room
    moving = weight.flip(1).cumsum(1).flip(1)
    first = (arrived + full * moving >= total).to(torch.int64).argmax(1, keepdim=True)
    return (total - arrived.gather(1, first)) / moving.gather(1, first)


@dataclass(frozen=True)
class VarianceGuided(WaterFilling):
    """Water-filling, ahead of which go the coordinates that the others determine: ours.

    The bridge's missing variance in a step is (e^g − 1) κ_k of the coordinate's own, so that g_k = log(1 + ε/κ_k) keeps it at ε everywhere:
    where κ ≪ 1 a coordinate may take a long step at no price. The rest follows the level, λ_s,k = min(λ_t,k e^{−g_k}, θ_s).

    A learned κ is noisy where λ is not far below the data variance, and some values are negative, which no variance is. What they are off
    measures the noise: κ counts as no less than twice the root mean square of the negative parts around it in the array of coordinates. An
    exact energy has none, and nothing changes.

    Arguments:
        epsilon: ε; None for 2/steps. On Gaussians the best value falls like 1/steps, and a learned energy wants it smaller
            (docs/notes/sampling.md).
        max_fall: the largest g, a bound on what an energy's error can do.
        floor: least κ; the one-call variance is a small difference of large numbers where λ is far above the data variance.
    """

    epsilon: float | None = None
    max_fall: float = 4.0
    floor: float = 1e-3

    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not ((self.epsilon is None or self.epsilon > 0) and self.max_fall > 0 and self.floor > 0):
            raise ValueError(f"schedule: wanted epsilon, max_fall and floor > 0, got {self.epsilon}, {self.max_fall} and {self.floor}")

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        plan = super().next(now, end, left)
        epsilon = 2 / self.steps if self.epsilon is None else self.epsilon
        fall = torch.log1p(epsilon / _credible(now.relative_variance, self.floor)).clamp_max(self.max_fall)
        ahead = torch.maximum(now.cov.values * (-now.cov.basis.symmetrise(fall)).exp(), end.values)
        return plan.replace(torch.minimum(plan.values, ahead))


def _credible(kappa: Tensor, floor: float, reach: int = 2) -> Tensor:
    """κ (B, C, H, W), raised to ``floor`` and to twice the root mean square of min(κ, 0) within ``reach`` coordinates, around the edges."""
    offsets = range(-reach, reach + 1)
    squares = kappa.clamp_max(0.0).square()
    around = sum(squares.roll((i, j), (-2, -1)) for i in offsets for j in offsets)
    assert isinstance(around, Tensor)
    return torch.maximum(kappa, 2 * (around / len(offsets) ** 2).sqrt()).clamp_min(floor)


SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "geometric": Geometric,
    "water-filling": WaterFilling,
    "energy": EnergyGuided,
    "variance": VarianceGuided,
}
"""Schedules of a given number of steps, by name."""


def as_schedule(schedule: Schedule | str | None = None, steps: int | None = None) -> Schedule:
    """A path of ``steps`` steps, 50 if None, from its name (water-filling if None, see :data:`SCHEDULES`); a schedule is left as it is.

    Raises:
        ValueError: an unknown name, or ``steps`` beside a schedule, which has its own.
    """
    if isinstance(schedule, Schedule):
        if steps is not None:
            raise ValueError(f"steps: wanted none beside a schedule, which has {schedule.steps} of its own, got {steps}")
        return schedule
    name = "water-filling" if schedule is None else schedule
    if name not in SCHEDULES:
        raise ValueError(f"schedule: wanted one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return SCHEDULES[name]() if steps is None else SCHEDULES[name](steps)


def freeze(
    model: EnergyModel,
    observation: Observation,
    schedule: Schedule,
    kernel: Kernel | str = "ancestral",
    noise: Noise | None = None,
) -> Listed:
    """The path of one pilot chain an image, for later use with a corrector or with other samples of the same observations.

    Arguments:
        model, observation, noise: as in :func:`~anem.sample.chain.run_chain`; the levels hold a covariance for each of the B images.
        schedule: the path to follow and record.
    """
    levels: list[Covariance] = []

    def record(step: int, state: ChainState, cov: Covariance, evaluation: Evaluation) -> None:
        levels.append(cov)

    run_chain(model, observation, schedule, as_kernel(kernel), noise=noise, callback=record)
    return Listed(levels[1:])
