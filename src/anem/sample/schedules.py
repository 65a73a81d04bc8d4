"""Paths of covariances from Σ_T down to Σ_0: a schedule says where to go next from where the chain is.

It is asked once a step, with the model's evaluation at the current level, the end of the path and the steps left, so a path may
follow what the model sees (per image and per coordinate) as well as a fixed plan, and every kernel works with every schedule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.statistics import VARIANCE_FLOOR

__all__ = ["Geometric", "InOrder", "Listed", "Planned", "Schedule", "WaterFilling", "end_of_path", "check_step"]


def end_of_path(start: Covariance, variance: float = VARIANCE_FLOOR) -> Covariance:
    """Σ_0 with λ_0,k = min(``variance``, λ_T,k): coordinates measured better than that stay where they are."""
    return start.replace(start.values.clamp_max(variance))


class Schedule(ABC):
    """A path of ``steps`` steps; ``adaptive`` whether it follows the chain, which a corrector does not allow."""

    steps: int
    adaptive: ClassVar[bool] = False

    @abstractmethod
    def end(self, start: Covariance) -> Covariance:
        """Σ_0 of the path that starts at Σ_T."""

    @abstractmethod
    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        """Σ_s, the next covariance.

        Arguments:
            now: the model at the current level, its covariance Σ_t included.
            end: Σ_0.
            left: steps left, this one included; with one left the answer must be ``end``.
        """

    def rows(self, index: Tensor) -> Schedule:
        """The schedule of the images ``index`` of the batch."""
        return self


@dataclass(frozen=True)
class Planned(Schedule):
    """A path of n steps: after step i a share τ = (i/n)^p of it lies behind.

    Arguments:
        steps: n.
        variance: λ_0 of :func:`end_of_path`, by default the variance of 8-bit rounding.
        power: p; above 1 the first steps are shorter, below 1 the last ones.
    """

    steps: int = 50
    variance: float = VARIANCE_FLOOR
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.variance > 0 or not self.power > 0:
            raise ValueError(f"schedule: wanted steps >= 1, variance > 0 and power > 0, got {self.steps}, {self.variance}, {self.power}")

    def end(self, start: Covariance) -> Covariance:
        return end_of_path(start, self.variance)

    def share(self, left: int) -> float:
        """What the next step takes of the way that is left, in (0, 1]."""
        behind, then = ((i / self.steps) ** self.power for i in (self.steps - left, self.steps - left + 1))
        return (then - behind) / (1 - behind)


@dataclass(frozen=True)
class Geometric(Planned):
    """λ_t = λ_T^{1−τ} λ_0^τ with τ = (i/n)^p, the path of the paper."""

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        if left == 1:
            return end
        return now.cov.replace(now.cov.values * (end.values / now.cov.values) ** self.share(left))


@dataclass(frozen=True)
class WaterFilling(Planned):
    """λ_t = min(λ_T, θ_t): one level θ falls geometrically from the largest variance to λ_0, and takes along what stands above it.

    What was measured well stays as it was measured until the rest has become as good, where the geometric path makes it better from the
    first step on, beyond what the measurement says and before anything is known of the rest. In steep spectra (blurs, super-resolution)
    that is what a network learns worst: docs/notes/sampling.md has the figures. The name is that of reverse water-filling, the
    rate–distortion function of a Gaussian (Cover & Thomas, Elements of Information Theory, §10.3.3), whose distortions are such minima.
    """

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        if left == 1:
            return end
        top, low = (cov.values.flatten(1).amax(1).view(-1, 1, 1, 1) for cov in (now.cov, end))
        return now.cov.replace(torch.minimum(now.cov.values, top * (low / top) ** self.share(left)))


@dataclass(frozen=True, eq=False)
class InOrder(Planned):
    """Coordinates become known one after the other, in any order: pixels from left to right, frequencies from low to high, box last.

    Each goes geometrically from λ_T to λ_0 during a share w of the path, which begins for the first coordinate at its start and for the
    last one at 1 − w: λ_t = λ_T^{1−s} λ_0^s with s_k = min(max((τ − (1 − w) o_k)/w, 0), 1), o_k from 0 (first) to 1 (last). With w = 1 it
    is the geometric path; with a small w one of generation coordinate by coordinate, each drawn given those before it.

    Arguments:
        order: numbers by which coordinates are sorted, equal ones together, that broadcast to (B, C, H, W) in the basis of Σ: any map
            (H, W) will do. In frequencies the mean over k and −k is taken.
        width: w, in (0, 1].
    """

    order: Tensor = field(default_factory=lambda: torch.zeros(1, 1))
    width: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.order, Tensor) or not self.order.numel() or not bool(torch.isfinite(self.order).all()):
            raise ValueError("order: wanted a tensor of finite numbers")
        if not 0 < self.width <= 1:
            raise ValueError(f"width: wanted a number in (0, 1], got {self.width}")

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        if left == 1:
            return end
        begin = (1 - self.width) * self._places(now.cov)
        taus = (((self.steps - i) / self.steps) ** self.power for i in (left, left - 1))
        behind, then = (((tau - begin) / self.width).clamp(0, 1) for tau in taus)
        share = torch.where(behind < 1, (then - behind) / (1 - behind).clamp_min(1e-12), 1.0)
        values = now.cov.values * (end.values / now.cov.values) ** share
        return now.cov.replace(torch.minimum(torch.maximum(values, end.values), now.cov.values))  # rounding goes neither up nor too far

    def _places(self, cov: Covariance) -> Tensor:
        """o of every coordinate, (B or 1, C, H, W): the rank in its own image, so that no path depends on what runs beside it."""
        shared = self.order.ndim < 4 or len(self.order) == 1
        shape = (1, *cov.shape[1:]) if shared else tuple(cov.shape)
        try:
            order = torch.broadcast_to(self.order.to(cov.values), shape)
        except RuntimeError:
            raise ValueError(f"order: wanted what broadcasts to {tuple(cov.shape)}, got {tuple(self.order.shape)}") from None
        places = []
        for image in cov.basis.symmetrise(order):
            values, place = image.unique(return_inverse=True)
            places.append(place.to(order) / max(1, len(values) - 1))
        return torch.stack(places)

    def rows(self, index: Tensor) -> Schedule:
        return replace(self, order=self.order[index.to(self.order.device)]) if self.order.ndim == 4 and len(self.order) > 1 else self


class Listed(Schedule):
    """A path given level by level, for instance one recorded in a pilot run.

    Arguments:
        levels: Σ after each step, the last one Σ_0; every one with a batch of 1 or of the images' number.
    """

    def __init__(self, levels: Sequence[Covariance]) -> None:
        if not levels:
            raise ValueError("levels: wanted at least one covariance, got none")
        self.levels = list(levels)
        self.steps = len(self.levels)

    def end(self, start: Covariance) -> Covariance:
        return self.levels[-1].expand(len(start.values)).to(start.values)

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        return self.levels[-left].expand(len(now.y)).to(now.y)

    def rows(self, index: Tensor) -> Schedule:
        return Listed([level if len(level.values) == 1 else level[index.cpu()] for level in self.levels])


def check_step(now: Covariance, target: Covariance) -> None:
    """Raise ValueError unless ``target`` is a covariance in the same basis, of the same shape and nowhere above ``now``."""
    if target.basis != now.basis or target.shape != now.shape:
        raise ValueError(
            f"schedule: wanted a covariance {tuple(now.shape)} in {now.basis.name!r}, got {tuple(target.shape)} in {target.basis.name!r}"
        )
    if not bool((torch.isfinite(target.values) & (target.values > 0) & (target.values <= now.values)).all()):
        raise ValueError("schedule: wanted finite, positive variances that never increase")
