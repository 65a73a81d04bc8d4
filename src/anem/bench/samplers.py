"""Every kernel in every basis against exact posteriors: convergence orders on closed-form moments, two-sample tests on a mixture.

Orders. For a Gaussian prior a chain is affine in its random numbers, so one batch of chains, each fed a unit vector of random numbers,
gives the exact mean and covariance of what the kernel draws; no Monte Carlo error enters.

Two-sample tests. Chains from one y are compared with as many exact draws of p(x given y) by permutation tests on three statistics: the
distance of the means, the distance of the second moments (both whitened by the exact covariance), and the energy distance. A p-value
is at most α with probability at most α if the two laws are equal: the false-alarm rate of each aim "> 0.001" is 1e-3. That the tests
can see an error is shown by a chain of too few steps, which they must reject. An "error ratio" is the size of an error over that of
the exact draws, which have sampling error only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import as_basis
from anem.bench.harness import Context
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import Gaussian, GaussianMixture, MixturePosterior, basis_matrix, make_mixture, make_power_law_gaussian
from anem.operators import Observation
from anem.sample import KERNELS, Geometric, Kernel, Noise, Schedule, as_kernel, run_chain

__all__ = [
    "UnitNoise",
    "bridge_moments",
    "chain_moments",
    "draw_chains",
    "fully_observed",
    "permutation_p_values",
    "random_covariance",
    "run",
]

BASES = ("pixel", "fourier", "dct2")
STOCHASTIC = tuple(name for name, kernel in KERNELS.items() if kernel().stochastic)
STATISTICS = ("mean", "covariance", "energy distance")


def fully_observed(y: Tensor, cov: Covariance, chains: int) -> Observation:
    """An observation y = x + n of one image (1, C, H, W), n of known covariance, for a batch of chains."""
    y = y.expand(chains, -1, -1, -1)
    return Observation.of(y, cov.expand(chains))


def random_covariance(basis: str, shape: tuple[int, int, int], low: float, high: float, generator: torch.Generator) -> Covariance:
    """Independent log-uniform variances between ``low`` and ``high`` (before symmetrising), (1, C, H, W), float64."""
    logs = math.log(low) + math.log(high / low) * torch.rand(1, *shape, generator=generator, dtype=torch.float64)
    return Covariance(as_basis(basis).symmetrise(logs.exp()), basis)


class UnitNoise(Noise):
    """For chain 0 all random numbers are zero; for chain j the j-th of all the numbers a chain draws is one, the others are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 0

    def normal(self, like: Tensor) -> Tensor:
        noise = torch.zeros_like(like).flatten(1)
        numbers = torch.arange(noise.shape[1])
        noise[1 + self.drawn + numbers, numbers] = 1
        self.drawn += len(numbers)
        return noise.reshape(like.shape)


def chain_moments(prior: EnergyModel, y: Tensor, cov: Covariance, schedule: Schedule, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Exact mean (d,) and covariance (d, d) of x_0 (noisy) given y (1, C, H, W), for a Gaussian prior and a kernel with one draw a step."""
    chains = 1 + (schedule.steps * y.numel() if kernel.stochastic else 0)
    x = run_chain(prior, fully_observed(y, cov, chains), schedule, kernel, noise=UnitNoise(), final="noisy").x.flatten(1)
    response = x[1:] - x[0]
    return x[0], response.T @ response


def bridge_moments(prior: GaussianMixture, y: Tensor, cov: Covariance, end: Covariance) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x + n_0 given y = x + n_T, n_T − n_0 independent of n_0, for a prior of one component."""
    matrix = basis_matrix(cov.basis, y.shape[1:])[0]
    start, stop = (prior.covariances[0] + matrix.T @ (c.values.reshape(-1, 1) * matrix) for c in (cov, end))
    mean = prior.means[0].flatten()
    gain = torch.linalg.solve(start, stop).T
    return mean + gain @ (y.flatten() - mean), stop - gain @ stop


def permutation_p_values(
    a: Tensor, b: Tensor, mean: Tensor, covariance: Tensor, permutations: int, generator: torch.Generator
) -> dict[str, float]:
    """p-values of "a and b (N, d) have the same law" for three statistics, each a quadratic form in the labels ±1/N.

    Arguments:
        mean, covariance: (d,) and (d, d), by which the draws are centred and whitened.
        permutations: P; the least p-value is 1/(P + 1).
    """
    n = len(a)
    factor = torch.linalg.cholesky(covariance)
    w = torch.linalg.solve_triangular(factor, (torch.cat([a, b]) - mean).T, upper=False).T.float()
    gram = w @ w.T
    squares = gram.diagonal()
    distance = (squares[:, None] + squares[None, :] - 2 * gram).clamp_min(0).sqrt()
    order = torch.rand(permutations, 2 * n, generator=generator).argsort(1)
    labels = torch.cat([torch.arange(2 * n)[None] < n, order < n]).float().mul(2).sub(1) / n
    forms = dict(zip(STATISTICS, (gram, gram.square(), -distance), strict=True))
    values = {name: ((labels @ form) * labels).sum(1) for name, form in forms.items()}
    return {name: float((v >= v[0]).double().mean()) for name, v in values.items()}


def draw_chains(
    prior: EnergyModel, y: Tensor, cov: Covariance, schedule: Schedule, kernel: Kernel, n: int, generator: torch.Generator
) -> Tensor:
    """n draws of x_0 given y, denoised, (n, d)."""
    return run_chain(prior, fully_observed(y, cov, n), schedule, kernel, noise=Noise(generator)).x.flatten(1)


def run(context: Context) -> None:
    """Orders, exactness of the bridge, and two-sample tests."""
    _orders(context)
    _exact_bridge(context)
    _two_sample(context)


def _orders(context: Context) -> None:
    shape = (1, 4, 2) if context.quick else (1, 4, 4)
    generator = context.generator("orders")
    d = math.prod(shape)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    means = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1), means, (factor @ factor.T)[None])
    for basis in BASES:
        cov = random_covariance(basis, shape, 0.1, 10.0, generator)
        y = prior.sample(1, generator) + cov.sample(generator)
        for name in STOCHASTIC:
            kernel, errors = as_kernel(name), []
            for steps in (32, 64):
                schedule = Geometric(steps, variance=0.02)
                pairs = zip(chain_moments(prior, y, cov, schedule, kernel), bridge_moments(prior, y, cov, schedule.end(cov)), strict=True)
                errors.append(float(sum((got - exact).square().sum() for got, exact in pairs)) ** 0.5)
            aim = "0.9–1.2" if kernel.order == 1 else "≥ 1.8"
            context.figure(f"order/{basis}/{name}", math.log2(errors[0] / errors[1]), aim=aim)
        _flow_order(context, basis)


def _flow_order(context: Context, basis: str) -> None:
    """The deterministic flow against its exact map for a Gaussian diagonal in the basis: ρ_s = ρ_t √((c + λ_s)/(c + λ_t))."""
    generator = context.generator("flow", basis)
    shape = (1, 8, 8)
    prior = Gaussian(torch.zeros(shape), random_covariance(basis, shape, 0.03, 3.0, generator))
    cov = random_covariance(basis, shape, 0.1, 10.0, generator)
    y = prior.sample(1, generator) + cov.sample(generator)
    for name in ("flow", "flow-euler"):
        errors = []
        for steps in (32, 64):
            schedule = Geometric(steps, variance=0.02)
            gain = ((prior.variance + schedule.end(cov).values) / (prior.variance + cov.values)).sqrt()
            exact = cov.basis.inverse(gain * cov.basis.forward(y))
            x = run_chain(prior, fully_observed(y, cov, 1), schedule, as_kernel(name), final="noisy").x
            errors.append(float((x - exact).norm()))
        aim = "0.9–1.2" if as_kernel(name).order == 1 else "≥ 1.8"
        context.figure(f"order/{basis}/{name} (flow map)", math.log2(errors[0] / errors[1]), aim=aim)


def _exact_bridge(context: Context) -> None:
    """The improved bridge has no error at all, in one step, for a Gaussian that is diagonal in the basis."""
    prior = make_power_law_gaussian(1, 8, 8)
    generator = context.generator("bridge")
    cov = random_covariance("fourier", (1, 8, 8), 0.01, 1.0, generator)
    y = prior.sample(1, generator) + cov.sample(generator)
    assert prior.dense is not None
    schedule = Geometric(1, variance=1e-4)
    pairs = zip(
        chain_moments(prior, y, cov, schedule, as_kernel("bridge")), bridge_moments(prior.dense, y, cov, schedule.end(cov)), strict=True
    )
    error = max(float((got - exact).norm() / exact.norm()) for got, exact in pairs)
    context.figure("bridge/one step, diagonal Gaussian: relative error", error, aim="≤ 1e-8")


@dataclass(frozen=True, eq=False)
class _Case:
    """One observation of a mixture, with its exact posterior."""

    prior: GaussianMixture
    y: Tensor
    cov: Covariance

    @classmethod
    def ambiguous(cls, basis: str, generator: torch.Generator) -> _Case:
        """Of 64 observations the one that leaves most components possible."""
        prior = make_mixture(8)
        cov = random_covariance(basis, (1, 8, 8), 0.03, 10.0, generator)
        y = prior.sample(64, generator) + cov.expand(64).sample(generator)
        chosen = effective_components(prior.posterior(y, cov.expand(64))).argmax()
        return cls(prior, y[chosen : chosen + 1], cov)

    @property
    def posterior(self) -> MixturePosterior:
        return self.prior.posterior(self.y, self.cov)


def effective_components(posterior: MixturePosterior) -> Tensor:
    """1/Σ r_k² of the responsibilities, (B,)."""
    return 1 / posterior.weights.square().sum(1)


def whitened_errors(draws: Tensor, mean: Tensor, covariance: Tensor) -> tuple[float, float]:
    """Norms of the errors of the mean and of the second moments of draws (N, d), both whitened by the exact covariance."""
    w = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (draws - mean).T, upper=False)
    second = w @ w.T / len(draws) - torch.eye(len(w), dtype=w.dtype)
    return float(w.mean(1).norm()), float(second.norm())


def _two_sample(context: Context) -> None:
    first, second = (200, 48) if context.quick else (400, 64)
    for basis in BASES:
        case = _Case.ambiguous(basis, context.generator("mixture", basis))
        context.figure(f"mixture/{basis}/effective components", effective_components(case.posterior))
        _compare(context, case, f"mixture/{basis}/ancestral, 8 steps", as_kernel("ancestral"), 8, detect=True)
        for name in STOCHASTIC:
            kernel = as_kernel(name)
            steps = first if kernel.order == 1 else second
            _compare(context, case, f"mixture/{basis}/{name}, {steps} steps", kernel, steps)


def _compare(context: Context, case: _Case, key: str, kernel: Kernel, steps: int, detect: bool = False) -> None:
    """Figures of one kernel on one case; with ``detect``, of a kernel that is known to be biased, which the tests must notice."""
    n, permutations = (300, 999) if context.quick else (1000, 1999)
    keys = [f"{key}/{name}: error ratio" for name in ("mean", "covariance")]
    keys += [f"{key}/least p"] if detect else [f"{key}/{name}: p" for name in STATISTICS]
    if context.done(*keys):
        return
    generator, posterior = context.generator(key), case.posterior
    mean, covariance = posterior.mean[0].flatten(), posterior.covariance[0]
    x = draw_chains(case.prior, case.y, case.cov, Geometric(steps), kernel, n, generator)
    exact = posterior.sample(n, generator)[:, 0].flatten(1)
    errors = [whitened_errors(draws, mean, covariance) for draws in (x, exact)]
    for name, error, floor in zip(keys, *errors, strict=False):
        context.figure(name, error / floor)
    p = permutation_p_values(x, exact, mean, covariance, permutations, generator)
    if detect:
        context.figure(keys[2], min(p.values()), aim="≤ 0.001")
        return
    for name in STATISTICS:
        context.figure(f"{key}/{name}: p", p[name], aim="> 0.001")
