"""Markov chain Monte Carlo at one level of noise: Langevin kernels alone, several chains, warm-up and convergence diagnostics.

The target is the exact law of x_0 = x + n_0 given the observed coordinates of y, n_0 ~ N(0, Σ_0) with a small Σ_0
(:class:`~anem.sample.correctors.Target`). Chains start, and proposals are scaled, by what the data statistics alone say of it: in basis
coordinates, for a prior N(μ, c + λ_0) and an observation y_k ~ N(x_k, g_k), g = λ_T − λ_0,

    mean = μ + s/g (y − μ),  variance s = (c + λ_0) g/(c + λ_0 + g),  or μ and c + λ_0 where nothing was observed.

Warm-up tunes ε by dual averaging, then sets s to the variance the chains have shown, then tunes ε again. Nothing changes after it.

Source: Hoffman & Gelman 2014, arXiv 1111.4246, §3.2 (dual averaging).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.operators import Observation
from anem.random import generators_for, seeds_for
from anem.sample.convergence import effective_sample_size, split_rhat
from anem.sample.correctors import MALA, Corrector, State, Target
from anem.sample.kernels import Noise
from anem.sample.posterior import chain_seed
from anem.sample.schedules import end_of_path
from anem.statistics import VARIANCE_FLOOR, DataStatistics

if TYPE_CHECKING:
    import arviz

__all__ = ["DualAveraging", "Trace", "sample_mcmc"]


class DualAveraging:
    """Step sizes that bring acceptance to its aim, one an image.

    log ε_t = log 10ε_0 − (√t/γ) h_t, h_t a running mean of (aim − acceptance), with γ = 0.05; the average over t forgets the first ones.

    Arguments:
        start: ε_0, (B,).
        aim: mean acceptance wanted; 0.574 is the optimum for many coordinates (Roberts & Rosenthal 1998).
    """

    def __init__(self, start: Tensor, aim: float = 0.574) -> None:
        self.step_size = start
        self.average = start
        self.aim = aim
        self._centre = (10 * start).log()
        self._gap = torch.zeros_like(start)
        self._count = 0

    def update(self, acceptance: Tensor) -> None:
        """Take the acceptance of a step at ``step_size`` into account, (B,)."""
        self._count += 1
        t = self._count
        self._gap = self._gap + (self.aim - acceptance - self._gap) / (t + 10)
        logarithm = self._centre - t**0.5 / 0.05 * self._gap
        weight = t**-0.75
        self.step_size = logarithm.exp()
        self.average = (weight * logarithm + (1 - weight) * self.average.log()).exp()


@dataclass(frozen=True, eq=False)
class Trace:
    """Chains after their warm-up.

    Arguments:
        draws: x_0, (S, N, B, C, H, W) for S chains and N draws each; noise of covariance Σ_0 is in them.
        log_density: of the target, up to a constant, (S, N, B).
        acceptance: mean over the steps between two draws, (S, N, B); for ULA what MALA would have accepted.
        step_size: ε, (B,).
        calls: network calls of every chain, warm-up included.
    """

    draws: Tensor
    log_density: Tensor
    acceptance: Tensor
    step_size: Tensor
    calls: int

    @property
    def mean(self) -> Tensor:
        """Mean over chains and draws, (B, C, H, W)."""
        return self.draws.mean((0, 1))

    @property
    def std(self) -> Tensor:
        """Standard deviation over chains and draws, (B, C, H, W)."""
        return self.draws.flatten(0, 1).std(0)

    @property
    def effective_sample_size(self) -> Tensor:
        """Of the mean of every pixel, (B, C, H, W); see :func:`~anem.sample.convergence.effective_sample_size`."""
        return effective_sample_size(self.draws)

    @property
    def rhat(self) -> Tensor:
        """Split R̂ of every pixel, (B, C, H, W); see :func:`~anem.sample.convergence.split_rhat`."""
        return split_rhat(self.draws)

    def to_arviz(self) -> arviz.InferenceData:
        """The draws as ``posterior["x"]``, log densities and acceptance as ``sample_stats``, for the plots and diagnostics of ArviZ.

        Raises:
            ValueError: ArviZ is not installed.
        """
        try:
            import arviz
        except ImportError as error:
            raise ValueError("to_arviz needs ArviZ: pip install 'anem[mcmc]'") from error
        return arviz.from_dict(
            posterior={"x": self.draws.cpu().numpy()},
            sample_stats={"lp": self.log_density.cpu().numpy(), "acceptance_rate": self.acceptance.cpu().numpy()},
            dims={"x": ["image", "channel", "row", "column"], "lp": ["image"], "acceptance_rate": ["image"]},
        )


@torch.no_grad()
def sample_mcmc(
    model: EnergyModel,
    observation: Observation,
    *,
    corrector: Corrector | None = None,
    chains: int = 4,
    warmup: int = 500,
    draws: int = 500,
    variance: float = VARIANCE_FLOOR,
    seed: int | Sequence[int] = 0,
    start: Tensor | None = None,
) -> Trace:
    """Draw from p(x_0 given y) by Markov chains, all S·B of them at once.

    Network calls a chain: 1 + (warmup + draws) · ``corrector.steps``. A chain depends on its own seed and on the chains of its image, with
    which it shares ε and s, never on other images.

    Arguments:
        model: the energy.
        observation: y, Σ_T and which coordinates were observed, of B images, in float64.
        corrector: the kernel of the chains, MALA() if None. Its ``steps`` are those between two draws, its ``step_size`` is where ε
            starts. Dual averaging tunes ε for MALA; ULA keeps it, relative to s, so that P_k = ε s_k. ``adaptation``, meant for levels
            that change, is not used.
        chains, warmup, draws: S, the draws thrown away, and N.
        variance: λ_0 of :func:`~anem.sample.schedules.end_of_path`. Chains mix the faster the larger it is.
        seed: of image b, seed + b, or one an image.
        start: where the chains start, (S, B, C, H, W), for instance ``sample_posterior(…, final="noisy").samples``; drawn from the
            Gaussian of the module's docstring if None. Coordinates measured better than λ_0 are set to y.

    Raises:
        ValueError: counts below 1 (warmup below 0), seeds or a start that do not fit, chains that diverge.
    """
    corrector = MALA() if corrector is None else corrector
    if not isinstance(corrector, Corrector):
        raise ValueError(f"corrector: wanted ULA or MALA, got {corrector!r}")
    batch = len(observation.y)
    if min(chains, draws, batch) < 1 or warmup < 0:
        raise ValueError(f"wanted chains, draws, images >= 1 and warmup >= 0, got {chains}, {draws}, {batch}, {warmup}")
    seeds = seeds_for(seed, batch)
    repeated = observation[torch.arange(batch).repeat(chains)]
    noise = Noise(generators_for([chain_seed(own, s) for s in range(chains) for own in seeds], observation.y.device))
    target = _Scaled(repeated, end_of_path(repeated.cov, variance), model.statistics, chains)
    walk = _Walk(model, corrector, target, noise, target.start(noise, start))
    walk.warm_up(warmup)
    kept = [walk.draw() for _ in range(draws)]
    if not bool(torch.isfinite(walk.state.log_density).all()):
        raise ValueError(f"corrector: the chains diverged; wanted a step size below {float(walk.tuner.step_size.max()):.3g}, or MALA")

    def stack(index: int) -> Tensor:
        return torch.stack([k[index] for k in kept], 1).unflatten(0, (chains, batch)).transpose(1, 2)

    return Trace(stack(0), stack(1), stack(2), walk.tuner.step_size, 1 + (warmup + draws) * corrector.steps)


class _Scaled(Target):
    """The target at Σ_0, with proposals scaled by s."""

    def __init__(self, observation: Observation, level: Covariance, statistics: DataStatistics, chains: int) -> None:
        super().__init__(observation)
        self.level, self.chains = level, chains
        basis, total = level.basis, statistics.variance_of(level) + level.values
        gap = torch.where(self.observed, self.values - level.values, torch.inf)
        weight = total / (total + gap)  # of y, zero where nothing was observed
        centre = basis.forward(statistics.mean_image(observation.y).expand_as(observation.y))
        self.pinned = gap == 0
        self.centre = torch.where(self.pinned, self.coordinates, centre + weight * (self.coordinates - centre))
        self.scale = torch.where(self.pinned, 0.0, (1 - weight) * total)

    def start(self, noise: Noise, given: Tensor | None) -> Tensor:
        """First positions, (S·B, C, H, W) in image space."""
        basis = self.level.basis
        if given is None:
            return basis.inverse(self.centre + self.scale.sqrt() * noise.normal(self.centre))
        if given.shape != (self.chains, len(self.centre) // self.chains, *self.centre.shape[1:]):
            raise ValueError(
                f"start: wanted {self.chains} chains of {tuple(self.centre.shape)}, chains times images, got {tuple(given.shape)}"
            )
        return basis.inverse(torch.where(self.pinned, self.coordinates, basis.forward(given.flatten(0, 1).to(self.centre))))

    def preconditioner(self, cov: Covariance, step_size: Tensor) -> Tensor:
        """P = ε s, (S·B, C, H, W), for ε (B,)."""
        return step_size.repeat(self.chains).reshape(-1, 1, 1, 1) * self.scale

    def rescale(self, coordinates: Tensor) -> None:
        """Set s to the variance of basis coordinates (T, S·B, C, H, W) over time and an image's chains; the old s weighs five draws."""
        own = coordinates.unflatten(1, (self.chains, -1))
        count = own.shape[0] * own.shape[1]
        shown = self.level.basis.symmetrise(own.var((0, 1), correction=0).repeat(self.chains, 1, 1, 1))
        self.scale = torch.where(self.pinned, 0.0, (count * shown + 5 * self.scale) / (count + 5))


class _Walk:
    """The chains where they are."""

    def __init__(self, model: EnergyModel, corrector: Corrector, target: _Scaled, noise: Noise, x: Tensor) -> None:
        self.model, self.corrector, self.target, self.noise = model, corrector, target, noise
        self.state: State = target.state(model(x, target.level))
        if not bool(torch.isfinite(self.state.log_density).all()):
            raise ValueError("model: its energy is not finite where the chains start")
        self.tuner = DualAveraging(corrector.initial_step_size(x[: len(x) // target.chains]))

    def draw(self, tune: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Position, log density and mean acceptance after ``corrector.steps`` steps: (S·B, C, H, W), (S·B,), (S·B,)."""
        total = torch.zeros_like(self.state.log_density)
        for _ in range(self.corrector.steps):
            self.state, info = self.corrector.step(self.model, self.state, self.target, self.tuner.step_size, self.noise)
            total = total + info.acceptance
            if tune:
                self.tuner.update(info.acceptance.unflatten(0, (self.target.chains, -1)).mean(0))
        return self.state.evaluation.y, self.state.log_density, total / self.corrector.steps

    def warm_up(self, count: int) -> None:
        """Half of the draws before, half after s is set from the second quarter of them."""
        tune, seen = self.corrector.adjusted, []
        for i in range(count):
            x = self.draw(tune)[0]
            if count // 4 <= i < count // 2:
                seen.append(self.target.level.basis.forward(x))
            if seen and i == count // 2 - 1:
                self.target.rescale(torch.stack(seen))
                self.tuner = DualAveraging(self.tuner.average if tune else self.tuner.step_size)
        self.tuner.step_size = self.tuner.average if tune else self.tuner.step_size
