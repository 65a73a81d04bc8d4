"""The one loop that all kernels, correctors and schedules share."""

from __future__ import annotations

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

__all__ = ["FINAL", "Callback", "Chain", "ChainState", "run_chain"]

FINAL = ("denoise", "noisy")
"""How a chain ends: at E[x given x_0, Σ_0], or at x_0 itself, which still holds noise of covariance Σ_0."""


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

    Raises:
        ValueError: a ``final`` that is none, a multistep kernel or an adaptive schedule with a corrector, a schedule whose variances
            increase, a model whose gradients lead to values that are not finite.
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
    first = now = counted(observation.y, observation.cov)
    before, acceptance = None, []
    end = schedule.end(now.cov)
    target = Target(observation)
    step_size = corrector.initial_step_size(observation.y) if corrector else torch.empty(0)

    def report(step: int) -> None:
        if callback is not None:
            accepted, size = (acceptance[-1] if acceptance else None), (step_size if corrector else None)
            state = ChainState(now.y, schedule.steps, chains or range(batch), total or batch, counted.calls, accepted, size)
            callback(step, state, now.cov, now)

    report(0)
    for step in range(1, schedule.steps + 1):
        left = schedule.steps - step + 1
        cov = schedule.next(now, end, left)
        check_step(now.cov, cov)
        x = (kernel if left > 1 else kernel.last).step(counted, now, cov, noise, before)
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"model: its gradient is not finite (or overflows) at step {step} of {schedule.steps}, kernel {kernel.name!r}")
        before, now = now, counted(x, cov)
        if corrector is not None:
            corrected = corrector.correct(counted, now, target, step_size, noise)
            now, step_size = corrected.evaluation, corrected.step_size
            acceptance.append(corrected.acceptance)
        report(step)
    x = now.denoised if final == "denoise" else now.y
    return Chain(x, first, now, torch.stack(acceptance) if acceptance else None, counted.calls)
