"""Steps of the reverse process, from noise Σ_t down to Σ_s ≼ Σ_t in the same basis.

In basis coordinates z = B x, with δ = λ_t − λ_s, R = λ_s/λ_t and e = λ_t B∇U = z − B D, D = E[x given x_t]:

* first order, one call: z_s = z − (δ/λ_t) e + √(δ(λ_s + δκ)/λ_t) ε. The exact bridge has the conditional variance κλ_t of x in place
  of κλ_t on the diagonal; :class:`Ancestral` leaves it out (κ = 0), :class:`Bridge` takes its exact diagonal from the same call, and
  :class:`Euler` (Euler–Maruyama) amounts to κ = 1.
* second order: :class:`SDE2M`, one call, extrapolates D from the previous step; :class:`Sandwich` has three stages, flow t → s, noise
  of variance δ, flow t → s.
* :class:`Flow`: the deterministic flow dz = ½ e dlog λ. It carries p(y; Σ_t) to p(y; Σ_s), but one y to one point, which is not a
  posterior draw (for a scalar Gaussian, √(c/(c+λ)) y).

Every stochastic kernel, started at an observation y of noise Σ_T, approximates p(x_s given y): no likelihood term is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.random import Generators, normal, uniform

__all__ = ["KERNELS", "SDE2M", "Ancestral", "Bridge", "Euler", "Flow", "FlowEuler", "Kernel", "Model", "Noise", "Sandwich", "as_kernel"]

Model = Callable[[Tensor, Covariance], Evaluation]
"""What a kernel needs of an energy: ``model(y, cov)``, one network call."""


class Noise:
    """The random numbers of a batch of chains; a subclass may supply its own, for instance unit vectors.

    Arguments:
        generators: one generator a chain, or one for all.
    """

    def __init__(self, generators: Generators = None) -> None:
        self.generators = generators

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers with the shape, dtype and device of ``like`` (B, …)."""
        return normal(like.shape, self.generators, like)

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) with the shape, dtype and device of ``like`` (B, …)."""
        return uniform(like.shape, self.generators, like)


class Kernel(ABC):
    """A step from (x_t, Σ_t) to x_s.

    ``order`` is the weak order of convergence (of the flow map for :class:`Flow`); ``calls`` the network calls a step costs, the one at
    the point it arrives at included; ``stochastic`` whether it draws from the posterior; ``multistep`` whether it uses the step before.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    calls: ClassVar[int]
    stochastic: ClassVar[bool] = True
    multistep: ClassVar[bool] = False

    @abstractmethod
    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        """x_s, (B, C, H, W) in image space.

        Arguments:
            model: called only for stages beyond the first.
            now: the model at (x_t, Σ_t).
            target: Σ_s, in the basis of Σ_t and nowhere above it.
            noise: random numbers.
            before: the model at the level before, if there was one; only multistep kernels look at it.
        """

    @property
    def last(self) -> Kernel:
        """The kernel for the last step of a path."""
        return self


def _coordinates(now: Evaluation) -> tuple[Tensor, Tensor]:
    """(z, e): position B x and expected noise λ B∇U = B(x − D), both (B, C, H, W)."""
    basis = now.cov.basis
    return basis.forward(now.y), now.cov.values * basis.forward(now.grad_y)


class _FirstOrder(Kernel):
    order = 1
    calls = 1

    @abstractmethod
    def relative_variance(self, now: Evaluation) -> Tensor | float:
        """κ, what stands for Var(x_k given x_t)/λ_k."""

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        z, e = _coordinates(now)
        delta = now.cov.values - target.values
        variance = delta * (target.values + delta * self.relative_variance(now)) / now.cov.values
        return now.cov.basis.inverse(z - delta / now.cov.values * e + variance.sqrt() * noise.normal(z))


@dataclass(frozen=True)
class Ancestral(_FirstOrder):
    """x_s = D + R(x_t − D) + √(λ_s(1 − R)) ε (Ho et al. 2020, arXiv 2006.11239, eq. 7, for Σ_t in place of a scalar)."""

    name = "ancestral"

    def relative_variance(self, now: Evaluation) -> Tensor | float:
        return 0.0


@dataclass(frozen=True)
class Euler(_FirstOrder):
    """Euler–Maruyama, x_s = x_t − δΣ ∇U + δΣ^{1/2} ε (Song et al. 2021, arXiv 2011.13456).

    Its noise, λ_t − λ_s, is more than level s holds when the step is large, so the last step of a path is ancestral.
    """

    name = "euler"

    def relative_variance(self, now: Evaluation) -> Tensor | float:
        return 1.0

    @property
    def last(self) -> Kernel:
        return Ancestral()


@dataclass(frozen=True)
class Bridge(_FirstOrder):
    """Ancestral plus the diagonal of what it misses, (1 − R)² Var(x given x_t), known exactly from the same call.

    Exact in one step for a Gaussian that is diagonal in the basis; otherwise first order with a smaller constant. A negative variance,
    which only an energy that is not the logarithm of a noisy density can return, counts as zero.
    """

    name = "bridge"

    def relative_variance(self, now: Evaluation) -> Tensor | float:
        return now.relative_variance.clamp_min(0.0)


@dataclass(frozen=True)
class SDE2M(Kernel):
    """x_s = R x_t + (1 − R)[D_t + (Δτ/2Δτ_prev)(D_t − D_prev)] + √(λ_s(1 − R)) ε, second-order multistep data prediction.

    Δτ is the largest fall of log λ among the coordinates: along a geometric path they all fall in proportion, and along water-filling
    those that move fall together, however many that are (their mean would jump when more of them start). The first step is ancestral.
    Source: Lu et al. 2022, DPM-Solver++, arXiv 2211.01095, SDE-DPM-Solver++(2M), for Σ_t in place of a scalar.
    """

    name = "sde-2m"
    order = 2
    calls = 1
    multistep = True

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        x = Ancestral().step(model, now, target, noise)
        if before is None:
            return x
        change = now.cov.basis.forward(now.denoised - before.denoised)
        passed = _progress(before.cov, now.cov)
        slope = torch.where(passed > 0, 0.5 * _progress(now.cov, target) / passed, 0.0)
        return x + now.cov.basis.inverse((1 - target.values / now.cov.values) * slope * change)


def _progress(start: Covariance, end: Covariance) -> Tensor:
    """Δτ, the largest decrease of log λ, (B, 1, 1, 1)."""
    return (start.values / end.values).log().amax((1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class Flow(Kernel):
    """The deterministic flow dx = ½ dΣ ∇U, by Heun's method in the data prediction, z_s = √R z + (1 − √R) B(D_t + D_s)/2.

    Not a posterior draw: it moves each y to one point. For likelihoods and as a stage of :class:`Sandwich`.
    """

    name = "flow"
    order = 2
    calls = 2
    stochastic = False

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        then = model(FlowEuler().step(model, now, target, noise), target)
        z, e = _coordinates(now)
        mean_e = 0.5 * (e + z - now.cov.basis.forward(then.denoised))
        return now.cov.basis.inverse(z - _flow_gain(now.cov, target) * mean_e)


@dataclass(frozen=True)
class FlowEuler(Kernel):
    """The deterministic flow by Euler's method, z_s = B D + √R (z − B D) (Song et al. 2021, arXiv 2010.02502). Not a posterior draw."""

    name = "flow-euler"
    order = 1
    calls = 1
    stochastic = False

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        z, e = _coordinates(now)
        return now.cov.basis.inverse(z - _flow_gain(now.cov, target) * e)


def _flow_gain(start: Covariance, end: Covariance) -> Tensor:
    """1 − √R."""
    return 1 - (end.values / start.values).sqrt()


@dataclass(frozen=True)
class Sandwich(Kernel):
    """Flow t → s, add noise of variance λ_t − λ_s, flow t → s again: each stage keeps the marginal law, the noise mixes. Second order."""

    name = "sandwich"
    order = 2
    calls = 4

    def step(self, model: Model, now: Evaluation, target: Covariance, noise: Noise, before: Evaluation | None = None) -> Tensor:
        flow = Flow()
        x = flow.step(model, now, target, noise)
        x = x + now.cov.replace(now.cov.values - target.values).color(noise.normal(x))
        return flow.step(model, model(x, now.cov), target, noise)


KERNELS: dict[str, Callable[[], Kernel]] = {k.name: k for k in (Ancestral, Euler, Bridge, SDE2M, Sandwich, Flow, FlowEuler)}
"""Kernels by name."""


def as_kernel(kernel: Kernel | str) -> Kernel:
    """A kernel from its name; see :data:`KERNELS`."""
    if isinstance(kernel, Kernel):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(f"kernel: wanted one of {', '.join(KERNELS)}, got {kernel!r}")
    return KERNELS[kernel]()
