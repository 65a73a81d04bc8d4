"""The one loop that all kernels, correctors and schedules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.operators import Observation
from anem.sample.correctors import Corrector, Target
from anem.sample.kernels import Kernel, Noise
from anem.sample.schedules import Schedule, check_step

__all__ = ["FINAL", "REACH", "Callback", "Chain", "ChainState", "Diverged", "run_chain"]

FINAL = ("denoise", "noisy")
"""How a chain ends: at E[x given x_0, Σ_0], or at x_0 itself, which still holds noise of covariance Σ_0."""

REACH = 50.0
"""Standard deviations of the forward process beyond which a chain counts as diverged."""


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where a batch of chains is, for callbacks.

    Arguments:
        x: positions x_t, (B, C, H, W), float64.
        steps: of the whole path.
        chains: which chains these are, of all that will be run; chain s·B + b is sample s of image b.
        total: number of all chains.
        calls: network calls so far, for each chain.
        acceptance: of the corrector at this level, (B,), or None.
        step_size: of the corrector at the next level, (B,), or None.
    """

    x: Tensor
    steps: int
    chains: range
    total: int
    calls: int
    acceptance: Tensor | None = None
    step_size: Tensor | None = None


Callback = Callable[[int, ChainState, Covariance, Evaluation], None]
"""``callback(step, state, cov, evaluation)``, after step 0 (the start, Σ_T), 1, …, n (Σ_0) of every batch of chains."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A finished batch of chains.

    Arguments:
        x: (B, C, H, W), float64.
        first, last: the model at (y, Σ_T) and at (x_0, Σ_0).
        acceptance: of the corrector at every level, (n, B), or None.
        calls: network calls, for each chain.
    """

    x: Tensor
    first: Evaluation
    last: Evaluation
    acceptance: Tensor | None
    calls: int


class Diverged(ValueError):
    """A chain left what the forward process can produce, or the finite numbers: the model is wrong there, or the steps are too long.

    One bad chain stops its whole batch, at once: restorations that are noise must not pass for results. To have the others, leave out the
    images named here, or run each in a call of its own: no chain depends on what is drawn beside it.

    Arguments:
        step, steps: when, and of how many.
        cov: Σ at that step.
        chains: numbers of the chains that diverged, in order.
        images: number of images: chain s · images + b is sample s of image b.
        kernel: name of the kernel.
        distance: how far out the farthest is, in standard deviations; not finite for NaN and infinity.
    """

    def __init__(self, step: int, steps: int, cov: Covariance, chains: list[int], images: int, kernel: str, distance: float) -> None:
        self.step, self.steps, self.cov, self.chains, self.images, self.distance = step, steps, cov, chains, images, distance
        named = [f"image {c % images} (sample {c // images})" for c in chains[:5]]
        who = ", ".join(named) + (f" and {len(chains) - 5} more" if len(chains) > 5 else "")
        how = f"values {distance:.3g} standard deviations away" if math.isfinite(distance) else "values that are not finite"
        level = f"where λ is {float(cov.values.min()):.3g} to {float(cov.values.max()):.3g}"
        super().__init__(
            f"model: the chain diverged at step {step} of {steps}, {level}, for {who}: {how}; kernel {kernel!r}; "
            f"try more steps, or a model that knows such noise"
        )


class _Guard:
    """Where an exact chain can be: |z_k − μ_k| ≤ REACH √(max c + λ_t,k) in every basis coordinate, and not much farther out than a
    measurement that is strange itself.

    One data variance for all coordinates: images other than the training set's may have much in a frequency that had little there.
    """

    def __init__(self, model: EnergyModel, observation: Observation, chains: range, images: int, steps: int) -> None:
        basis, y, statistics = observation.cov.basis, observation.y, model.statistics
        self.mean = basis.forward(statistics.mean_image(y).expand(y.shape))
        self.variance = statistics.variance_of(observation.cov).to(y).amax((1, 2, 3), keepdim=True)
        self.slack = torch.where(observation.observed, 2 * (basis.forward(y) - self.mean).abs(), 0.0)
        self.chains, self.images, self.steps = chains, images, steps

    def check(self, x: Tensor, cov: Covariance, step: int, kernel: str) -> None:
        """Raise :class:`Diverged` if a chain at x (B, C, H, W) is out of reach at Σ."""
        out = ((cov.basis.forward(x) - self.mean).abs() - self.slack) / (self.variance + cov.values).sqrt()
        farthest = out.flatten(1).amax(1)  # NaN if any is
        bad = (~(farthest <= REACH)).nonzero()[:, 0].tolist()
        if bad:
            chains = [self.chains[i] for i in bad]
            raise Diverged(step, self.steps, cov[torch.tensor(bad)], chains, self.images, kernel, float(farthest[bad].max()))


class _Counted:
    """A model that counts its calls."""

    def __init__(self, model: EnergyModel) -> None:
        self.model = model
        self.calls = 0

    def __call__(self, y: Tensor, cov: Covariance) -> Evaluation:
        self.calls += 1
        return self.model(y, cov)


@torch.no_grad()
def run_chain(
    model: EnergyModel,
    observation: Observation,
    schedule: Schedule,
    kernel: Kernel,
    corrector: Corrector | None = None,
    noise: Noise | None = None,
    *,
    final: str = "denoise",
    callback: Callback | None = None,
    chains: range | None = None,
    total: int | None = None,
    images: int | None = None,
) -> Chain:
    """Take y from Σ_T to Σ_0: at every step the kernel, then the corrector.

    Network calls: 1 + n · (``kernel.calls`` + ``corrector.steps``). Keep ``observation`` in float64: so are the states then.

    Arguments:
        model: the energy.
        observation: y, Σ_T and which coordinates were observed (only the corrector needs the last).
        schedule: the path.
        kernel, corrector: the steps.
        noise: random numbers; torch's default generator if None.
        final: see :data:`FINAL`.
        callback: see :data:`Callback`.
        chains, total: what the callback is told about these chains.
        images: of how many images chain s · images + b is sample s of image b; that of the chains if None. For messages.

    Raises:
        Diverged: a chain that is not where the forward process can be (or not finite).
        ValueError: a ``final`` that is none, a multistep kernel or an adaptive schedule with a corrector, a schedule whose variances
            increase.
    """
    if final not in FINAL:
        raise ValueError(f"final: wanted 'denoise' or 'noisy', got {final!r}")
    if corrector is not None and kernel.multistep:
        raise ValueError(f"corrector: it moves the chain off the path that {kernel.name!r} extrapolates; wanted another kernel")
    if corrector is not None and schedule.adaptive:
        raise ValueError(
            "corrector: its target knows no path that follows the chain; wanted a schedule fixed beforehand, see anem.sample.freeze"
        )
    noise = noise or Noise()
    counted = _Counted(model)
    batch = len(observation.y)
    chains = chains or range(batch)
    guard = _Guard(model, observation, chains, images or batch, schedule.steps)
    first = now = counted(observation.y, observation.cov)
    before, acceptance = None, []
    end = schedule.end(now.cov)
    target = Target(observation)
    step_size = corrector.initial_step_size(observation.y) if corrector else torch.empty(0)

    def report(step: int) -> None:
        if callback is not None:
            accepted, size = (acceptance[-1] if acceptance else None), (step_size if corrector else None)
            state = ChainState(now.y, schedule.steps, chains, total or batch, counted.calls, accepted, size)
            callback(step, state, now.cov, now)

    report(0)
    for step in range(1, schedule.steps + 1):
        left = schedule.steps - step + 1
        cov = schedule.next(now, end, left)
        check_step(now.cov, cov)
        x = (kernel if left > 1 else kernel.last).step(counted, now, cov, noise, before)
        guard.check(x, cov, step, kernel.name)
        before, now = now, counted(x, cov)
        if corrector is not None:
            corrected = corrector.correct(counted, now, target, step_size, noise)
            now, step_size = corrected.evaluation, corrected.step_size
            acceptance.append(corrected.acceptance)
            guard.check(now.y, cov, step, kernel.name)
        report(step)
    if not torch.allclose(now.cov.values, end.values, rtol=1e-6, atol=0):
        raise ValueError(f"schedule: wanted a path that ends where {type(schedule).__name__}.end says, got one that does not")
    x = now.denoised if final == "denoise" else now.y
    guard.check(x, now.cov, schedule.steps, kernel.name)
    return Chain(x, first, now, torch.stack(acceptance) if acceptance else None, counted.calls)
