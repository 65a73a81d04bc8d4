"""Kernels and correctors against closed forms and exact laws, in float64."""

import math

import pytest
import torch

from anem.bench.samplers import (
    UnitNoise,
    bridge_moments,
    chain_moments,
    fully_observed,
    permutation_p_values,
    random_covariance,
)
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.gaussian import Gaussian, GaussianMixture, basis_matrix, make_skewed
from anem.operators import Identity, Observation
from anem.sample import KERNELS, MALA, ULA, Diverged, Geometric, Noise, Target, WaterFilling, as_kernel, run_chain, sample_posterior

BASES = ["pixel", "fourier", "dct2"]
STOCHASTIC = [name for name in KERNELS if as_kernel(name).stochastic]
SHAPE = (1, 4, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_gaussian(seed: int = 0) -> GaussianMixture:
    """One Gaussian with a generic covariance of scale 1, diagonal in no basis."""
    d = math.prod(SHAPE)
    factor = torch.randn(d, d, generator=generator(seed), dtype=torch.float64) / d**0.5
    mean = torch.randn(1, *SHAPE, generator=generator(seed + 1), dtype=torch.float64)
    return GaussianMixture(torch.ones(1), mean, (factor @ factor.T)[None])


def observed(prior: EnergyModel, basis: str, low: float = 0.1, high: float = 10.0, seed: int = 3) -> tuple[torch.Tensor, Covariance]:
    g = generator(seed)
    cov = random_covariance(basis, SHAPE, low, high, g)
    return prior.sample(1, g) + cov.sample(g), cov


class FixedNoise(Noise):
    """The same numbers at every draw."""

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__()
        self.numbers = numbers

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return self.numbers.expand(like.shape)


# --- one step ---


@pytest.mark.parametrize("basis", BASES)
def test_steps_are_their_formulas(basis):
    prior = dense_gaussian()
    y, cov = observed(prior, basis)
    target = cov.replace(cov.values * cov.basis.symmetrise(torch.linspace(0.2, 1.0, 8, dtype=torch.float64).reshape(1, *SHAPE)))
    now, z = prior(y, cov), torch.randn(1, *SHAPE, generator=generator(8), dtype=torch.float64)
    noise, b = FixedNoise(z), cov.basis
    x, d, v = b.forward(y), b.forward(now.denoised), now.posterior_variance
    lt, ls = cov.values, target.values
    r = ls / lt
    expected = {
        "ancestral": d + r * (x - d) + (ls * (1 - r)).sqrt() * z,
        "euler": x - (lt - ls) * b.forward(now.grad_y) + (lt - ls).sqrt() * z,
        "bridge": d + r * (x - d) + (ls * (1 - r) + (1 - r) ** 2 * v).sqrt() * z,
        "flow-euler": d + r.sqrt() * (x - d),
    }
    for name, value in expected.items():
        got = b.forward(as_kernel(name).step(prior, now, target, noise))
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-12)
    before = prior(y + 0.1, cov.replace(3 * lt))
    change = b.forward(now.denoised - before.denoised)
    slope = 0.5 * (lt / ls).log().max() / math.log(3)
    got = b.forward(as_kernel("sde-2m").step(prior, now, target, noise, before))
    torch.testing.assert_close(got, expected["ancestral"] + (1 - r) * slope * change, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_a_step_of_no_length_changes_nothing(name):
    """λ_s = λ_t: pinned coordinates, and σ = 0 altogether, must give neither motion nor NaN."""
    prior = dense_gaussian()
    y, cov = observed(prior, "fourier")
    x = run_chain(
        prior, fully_observed(y, cov, 1), Geometric(3, variance=100.0), as_kernel(name), noise=Noise(generator()), final="noisy"
    ).x
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_coordinates_measured_below_the_end_stay(name):
    prior = dense_gaussian()
    y, cov = observed(prior, "dct2", low=1e-4, high=1.0)
    x = run_chain(prior, fully_observed(y, cov, 1), Geometric(6, variance=0.05), as_kernel(name), noise=Noise(generator()), final="noisy").x
    fixed = cov.values <= 0.05
    assert 0 < int(fixed.sum()) < fixed.numel()
    moved = cov.basis.forward(x - y).abs()
    assert float(moved[fixed].max()) < 1e-12 and float(moved[~fixed].min()) > 1e-6


@pytest.mark.parametrize("name", KERNELS)
def test_network_calls_are_those_stated(name):
    prior, kernel = dense_gaussian(), as_kernel(name)
    y, cov = observed(prior, "pixel")
    chain = run_chain(prior, fully_observed(y, cov, 2), Geometric(5), kernel)
    assert chain.calls == 1 + 5 * kernel.calls
    if not kernel.multistep:
        chain = run_chain(prior, fully_observed(y, cov, 2), Geometric(5), kernel, MALA(steps=3))
        assert chain.calls == 1 + 5 * (kernel.calls + 3)


def test_the_last_step_of_euler_leaves_no_more_noise_than_the_level_holds():
    prior = dense_gaussian()
    y, cov = observed(prior, "pixel")
    _, covariance = chain_moments(prior, y, cov, Geometric(1, variance=1e-6), as_kernel("euler"))
    assert float(covariance.diagonal().max()) <= 1e-6


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="ancestral"):
        as_kernel("heun")


# --- convergence ---


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_weak_order_on_exact_moments(name, basis):
    """First order 0.9–1.2, second at least 1.8, on the mean and covariance of the drawn law, with no Monte Carlo error."""
    prior, kernel, errors = dense_gaussian(), as_kernel(name), []
    y, cov = observed(prior, basis)
    for steps in (24, 48):
        schedule = Geometric(steps, variance=0.02)
        mean, covariance = chain_moments(prior, y, cov, schedule, kernel)
        exact_mean, exact_covariance = bridge_moments(prior, y, cov, schedule.end(cov))
        errors.append(float((mean - exact_mean).square().sum() + (covariance - exact_covariance).square().sum()) ** 0.5)
    order = math.log2(errors[0] / errors[1])
    assert 0.9 <= order <= 1.2 if kernel.order == 1 else order >= 1.8
    assert errors[1] < (0.2 if kernel.order == 1 else 0.01) * float(exact_covariance.norm())


@pytest.mark.parametrize("basis", BASES)
def test_the_second_order_survives_coordinates_that_start_to_move_on_the_way(basis):
    """Along water-filling the hidden one moves alone, then all do. A path parameter that is a mean over coordinates jumps there.

    Relative errors at 24 steps are 0.009 to 0.02, by such a mean 0.06 to 0.07.
    """
    prior, errors = dense_gaussian(), []
    y, cov = observed(prior, basis, low=0.1, high=0.2)
    order = cov.values.flatten().argsort(descending=True, stable=True)
    most = cov.basis.symmetrise(torch.zeros_like(cov.values).flatten().index_fill(0, order[:1], 1.0).reshape(cov.shape))
    cov = cov.replace(torch.where(most > 0, 50.0, cov.values))
    for steps in (24, 96):
        schedule = WaterFilling(steps, variance=0.02)
        mean, covariance = chain_moments(prior, y, cov, schedule, as_kernel("sde-2m"))
        exact_mean, exact_covariance = bridge_moments(prior, y, cov, schedule.end(cov))
        errors.append(float((mean - exact_mean).square().sum() + (covariance - exact_covariance).square().sum()) ** 0.5)
    assert errors[0] < 0.03 * float(exact_covariance.norm()) and math.log2(errors[0] / errors[1]) >= 2 * 1.8


@pytest.mark.parametrize("basis", BASES)
def test_bridge_is_exact_in_one_step_for_a_diagonal_gaussian(basis):
    prior = Gaussian(torch.zeros(SHAPE), random_covariance(basis, SHAPE, 0.1, 3.0, generator(1)))
    y, cov = observed(prior, basis)
    schedule = Geometric(1, variance=1e-3)
    mean, covariance = chain_moments(prior, y, cov, schedule, as_kernel("bridge"))
    exact_mean, exact_covariance = bridge_moments(prior.dense, y, cov, schedule.end(cov))
    torch.testing.assert_close(mean, exact_mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(covariance, exact_covariance, rtol=1e-9, atol=1e-10)
    _, without = chain_moments(prior, y, cov, schedule, as_kernel("ancestral"))
    assert float((without - exact_covariance).norm()) > 0.1 * float(exact_covariance.norm())


@pytest.mark.parametrize("name", ["flow", "flow-euler"])
@pytest.mark.parametrize("basis", BASES)
def test_flow_converges_to_the_exact_flow_map(basis, name):
    """ρ_s = ρ_t √((c + λ_s)/(c + λ_t)) for a Gaussian diagonal in the basis; one point, whatever the noise."""
    prior, kernel, errors = Gaussian(torch.zeros(SHAPE), random_covariance(basis, SHAPE, 0.1, 3.0, generator(1))), as_kernel(name), []
    y, cov = observed(prior, basis)
    for steps in (24, 48):
        schedule = Geometric(steps, variance=0.02)
        gain = ((prior.variance + schedule.end(cov).values) / (prior.variance + cov.values)).sqrt()
        x = run_chain(prior, fully_observed(y, cov, 2), schedule, kernel, final="noisy").x
        assert torch.equal(x[0], x[1])
        errors.append(float((x[:1] - cov.basis.inverse(gain * cov.basis.forward(y))).norm()))
    order = math.log2(errors[0] / errors[1])
    assert 0.9 <= order <= 1.2 if kernel.order == 1 else order >= 1.8


# --- correctors ---


def exact_at_level(prior: GaussianMixture, y: torch.Tensor, cov: Covariance, level: Covariance, n: int, g: torch.Generator) -> torch.Tensor:
    """n draws of x_t given y: x from the posterior, and n_t given n_T = y − x, N((λ_t/λ_T) n_T, λ_t(1 − λ_t/λ_T)); (n, C, H, W)."""
    x, r = prior.posterior(y, cov).sample(n, g)[:, 0], level.values / cov.values
    z = torch.randn(x.shape, generator=g, dtype=x.dtype)
    return x + cov.basis.inverse(r * cov.basis.forward(y - x) + (level.values * (1 - r)).sqrt() * z)


@pytest.mark.parametrize("basis", BASES)
def test_target_is_the_exact_law_of_the_level(basis):
    """log π_t against the Gaussian law of x_t given the observed coordinates of y, by dense conditioning; gradient by autograd."""
    prior, shape = dense_gaussian(), (40, *SHAPE)
    y, cov = observed(prior, basis)
    seen = torch.ones(1, *SHAPE, dtype=torch.bool)
    seen[..., -1, :] = False
    seen = seen & (cov.basis.symmetrise(seen.double()) == 1)
    level = cov.replace(0.3 * cov.values)
    target = Target(Observation(y.expand(shape), cov.expand(40), seen.expand(shape), torch.zeros(40)))
    x = prior.sample(40, generator(9))
    state = target.state(prior(x, level.expand(40)))

    matrix, keep = basis_matrix(cov.basis, SHAPE)[0], seen.flatten()
    total = matrix @ prior.covariances[0] @ matrix.T  # in coordinates
    at_t, at_start = total + level.values.flatten().diag(), total + cov.values.flatten().diag()
    cross = at_t[:, keep]
    gain = cross @ torch.linalg.inv(at_start[keep][:, keep])
    mean = matrix @ prior.means[0].flatten()
    law = torch.distributions.MultivariateNormal(
        mean + gain @ ((matrix @ y.flatten()) - mean)[keep], covariance_matrix=at_t - gain @ cross.T, validate_args=False
    )
    z = (x.flatten(1) @ matrix.T).requires_grad_()
    log_density = law.log_prob(z)
    constant = state.log_density - log_density.detach()
    torch.testing.assert_close(constant, constant[:1].expand(40), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(log_density.sum(), z)
    torch.testing.assert_close(state.gradient.flatten(1), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("corrector", [ULA(), MALA()], ids=["ULA", "MALA"])
def test_corrector_leaves_pinned_coordinates(corrector):
    prior = dense_gaussian()
    y, cov = observed(prior, "dct2")
    free = torch.zeros(1, *SHAPE, dtype=torch.bool)
    free[..., 0] = True
    level = cov.replace(torch.where(free, 0.1 * cov.values, cov.values))
    target = Target(fully_observed(y, cov, 20))
    corrected = corrector.correct(
        prior, prior(y.expand(20, -1, -1, -1), level.expand(20)), target, torch.full((20,), 0.3), Noise(generator())
    )
    moved = cov.basis.forward(corrected.evaluation.y - y).abs()
    assert float(moved[~free.expand(moved.shape)].max()) < 1e-13
    assert float(moved[free.expand(moved.shape)].max()) > 1e-3


def test_acceptance_is_the_metropolis_hastings_ratio():
    """Against densities of the proposal written out, π(x′)q(x given x′)/π(x)q(x′ given x)."""
    prior = make_skewed(*SHAPE)
    y, cov = observed(prior, "pixel", 0.01, 0.3)
    level, n, epsilon = cov.replace(0.5 * cov.values).expand(30), 30, torch.linspace(0.1, 1.5, 30, dtype=torch.float64)
    target = Target(fully_observed(y, cov, n))
    x = exact_at_level(prior, y, cov, cov.replace(0.5 * cov.values), n, generator(4))
    state, z = target.state(prior(x, level)), torch.randn(x.shape, generator=generator(5), dtype=torch.float64)
    _, info = MALA().step(prior, state, target, epsilon, FixedNoise(z))
    p = target.preconditioner(level, epsilon)
    proposal = x + p * state.gradient + (2 * p).sqrt() * z
    there = target.state(prior(proposal, level))

    def log_q(end: torch.Tensor, start: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return torch.distributions.Normal(start + p * gradient, (2 * p).sqrt()).log_prob(end).flatten(1).sum(1)

    log_ratio = there.log_density - state.log_density + log_q(x, proposal, there.gradient) - log_q(proposal, x, state.gradient)
    torch.testing.assert_close(info.acceptance, log_ratio.clamp_max(0).exp(), rtol=1e-8, atol=1e-10)
    assert float(info.acceptance.min()) < 0.9


def test_a_refused_chain_stays_where_it_was():
    prior = make_skewed(*SHAPE)
    y, cov = observed(prior, "fourier", 0.01, 0.3)
    level = cov.replace(0.5 * cov.values).expand(200)
    target = Target(fully_observed(y, cov, 200))
    state = target.state(prior(exact_at_level(prior, y, cov, cov.replace(0.5 * cov.values), 200, generator(4)), level))
    after, info = MALA().step(prior, state, target, torch.full((200,), 2.0), Noise(generator(6)))
    assert 0 < int(info.accepted.sum()) < 200
    same = (after.evaluation.y == state.evaluation.y).flatten(1).all(1)
    assert torch.equal(same, ~info.accepted)
    fresh = target.state(prior(after.evaluation.y, level))
    torch.testing.assert_close(after.log_density, fresh.log_density, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.gradient, fresh.gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.evaluation.grad_logvar, fresh.evaluation.grad_logvar, rtol=1e-9, atol=1e-9)


def test_ula_on_a_standard_normal_has_variance_one_over_one_minus_half_p():
    """c + λ = 1 and nothing observed: π = N(0, 1); the stationary variance of the step's own affine map."""
    prior = Gaussian(torch.zeros(1, 1, 1), Covariance.white(0.5, (1, 1, 1, 1), like=torch.zeros((), dtype=torch.float64)))
    level = Covariance.white(0.5, (3, 1, 1, 1), like=prior.mean)
    nothing = torch.zeros(3, 1, 1, 1, dtype=torch.bool)
    target = Target(Observation(prior.mean.expand(3, -1, -1, -1), level, nothing, torch.zeros(3)))
    for epsilon in (0.1, 0.5, 1.5):
        start = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
        noise = FixedNoise(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).reshape(3, 1, 1, 1))
        state = target.state(prior(start, level))
        x = ULA().step(prior, state, target, torch.full((3,), epsilon, dtype=torch.float64), noise)[0].evaluation.y.flatten()
        slope, spread = x[2] - x[0], x[1] - x[0]
        p = epsilon * 0.5
        assert abs(float(spread.square() / (1 - slope.square())) - 1 / (1 - p / 2)) < 1e-12


@pytest.mark.parametrize(
    ("corrector", "epsilon", "steps", "invariant"),
    [(MALA(adaptation=0.0), 1.0, 10, True), (ULA(), 1.0, 10, False), (ULA(), 0.01, 10, True)],
    ids=["MALA", "ULA at a large step", "ULA at a small step"],
)
def test_invariance_of_a_skewed_target(corrector, epsilon, steps, invariant):
    """Exact draws of π_t, moved, are compared with fresh ones: permutation tests with a false-alarm rate of 1e-3 each."""
    prior, n, g = make_skewed(*SHAPE), 800, generator(21)
    y, cov = observed(prior, "fourier", 0.02, 0.5, seed=5)
    level = cov.replace(0.4 * cov.values)
    target = Target(fully_observed(y, cov, n))
    now = prior(exact_at_level(prior, y, cov, level, n, g), level.expand(n))
    size, acceptance = torch.full((n,), epsilon, dtype=torch.float64), []
    for _ in range(steps):
        corrected = corrector.correct(prior, now, target, size, Noise(g))
        now, size = corrected.evaluation, corrected.step_size
        acceptance.append(float(corrected.acceptance.mean()))
    assert torch.equal(size, torch.full_like(size, epsilon))
    fresh = exact_at_level(prior, y, cov, level, n, g).flatten(1)
    spread = exact_at_level(prior, y, cov, level, 4000, g).flatten(1)
    p = permutation_p_values(now.y.flatten(1), fresh, spread.mean(0), spread.T.cov(), 999, g)
    assert min(p.values()) > 0.001 if invariant else min(p.values()) <= 0.001
    assert float(torch.tensor(acceptance).mean()) < (0.9 if epsilon == 1.0 else 1.01)


def test_permutation_test_holds_its_level():
    """100 pairs of equal laws: the number of p ≤ 0.1 is binomial(100, 0.1), above 25 with probability below 1e-5."""
    mean, eye, g = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64), generator(2)
    draws = torch.randn(100, 2, 40, 3, generator=g, dtype=torch.float64)
    rejected = [{k: v <= 0.1 for k, v in permutation_p_values(a, b, mean, eye, 99, g).items()} for a, b in draws]
    for name in rejected[0]:
        assert 0 < sum(r[name] for r in rejected) <= 25


def test_step_size_adapts_towards_the_optimal_acceptance():
    prior = make_skewed(*SHAPE)
    y, cov = observed(prior, "pixel", 0.02, 0.5)
    level, n, g = cov.replace(0.4 * cov.values), 200, generator(7)
    target, noise = Target(fully_observed(y, cov, n)), Noise(g)
    now, corrector = prior(exact_at_level(prior, y, cov, level, n, g), level.expand(n)), MALA(steps=2, step_size=0.01)
    size, acceptance = corrector.initial_step_size(now.y), []
    for _ in range(40):
        corrected = corrector.correct(prior, now, target, size, noise)
        now, size = corrected.evaluation, corrected.step_size
        acceptance.append(float(corrected.acceptance.mean()))
    assert acceptance[0] > 0.9
    assert 0.5 <= sum(acceptance[-15:]) / 15 <= 0.65


def test_a_proposal_without_energy_is_refused_and_the_chain_goes_on():
    """Every other call has no energy; the step size stays a number, and later proposals are accepted."""
    prior = make_skewed(*SHAPE)
    y, cov = observed(prior, "pixel", 0.02, 0.5)
    level, g = cov.replace(0.4 * cov.values), generator(8)
    start = prior(exact_at_level(prior, y, cov, level, 20, g), level.expand(20))
    calls = []

    def patchy(y: torch.Tensor, cov: Covariance) -> Evaluation:
        calls.append(y)
        found = prior(y, cov)
        return Evaluation(y, cov, found.energy * (math.nan if len(calls) % 2 else 1.0), found.grad_y, found.grad_logvar)

    corrector = MALA(steps=4, step_size=0.1)
    corrected = corrector.correct(patchy, start, Target(fully_observed(y, cov, 20)), corrector.initial_step_size(start.y), Noise(g))
    assert len(calls) == 4 and bool((corrected.evaluation.y != start.y).any())
    assert 0.3 < float(corrected.acceptance.mean()) <= 0.5 and bool(corrected.step_size.isfinite().all())


def test_wrong_correctors_are_refused():
    prior = dense_gaussian()
    y, cov = observed(prior, "pixel")
    with pytest.raises(ValueError, match="sde-2m"):
        run_chain(prior, fully_observed(y, cov, 1), Geometric(3), as_kernel("sde-2m"), ULA())
    with pytest.raises(ValueError, match="steps"):
        MALA(steps=0)


def test_values_that_are_not_finite_stop_the_chain():
    class Broken(Gaussian):
        def forward(self, y: torch.Tensor, cov: Covariance) -> Evaluation:
            evaluation = super().forward(y, cov)
            return Evaluation(y, cov, evaluation.energy, evaluation.grad_y * math.nan, evaluation.grad_logvar)

    prior = Broken(torch.zeros(SHAPE), random_covariance("pixel", SHAPE, 0.1, 3.0, generator(1)))
    y, cov = observed(prior, "pixel")
    with pytest.raises(Diverged, match=r"step 1 of 3.* image 0 \(sample 0\): values that are not finite"):
        run_chain(prior, fully_observed(y, cov, 1), Geometric(3), as_kernel("ancestral"))


class Explosive(Gaussian):
    """Below λ = 0.1 its gradient points away from the mean, a hundredfold, where the first pixel is above 0."""

    def forward(self, y: torch.Tensor, cov: Covariance) -> Evaluation:
        exact = super().forward(y, cov)
        wrong = (cov.values.amax((1, 2, 3)) < 0.1) & (y[:, 0, 0, 0] > 0)
        factor = torch.where(wrong, -100.0, 1.0).reshape(-1, 1, 1, 1)
        return Evaluation(y, cov, exact.energy, factor * exact.grad_y, exact.grad_logvar)


@pytest.mark.parametrize("corrector", [None, ULA()], ids=["alone", "ULA"])
def test_a_diverging_chain_stops_at_once_and_says_which(corrector):
    prior = Explosive(torch.zeros(SHAPE), Covariance(torch.ones(1, *SHAPE, dtype=torch.float64)))
    m = torch.full((3, *SHAPE), -1.0, dtype=torch.float64)
    m[1] = 1.0
    with pytest.raises(Diverged) as caught:
        sample_posterior(prior, m, Identity(), 0.4, samples=2, steps=400, corrector=corrector)
    error = caught.value
    assert error.chains and set(error.chains) <= {1, 4} and error.images == 3 and error.step < 250 and error.distance > 50
    assert float(error.cov.values.max()) < 0.1
    assert f"step {error.step} of 400" in str(error) and f"image 1 (sample {error.chains[0] // 3})" in str(error)
    whole = sample_posterior(prior, m[[0, 2]], Identity(), 0.4, steps=400, corrector=corrector, seed=[0, 2])
    assert float(whole.samples.abs().max()) < 3


def test_strange_measurements_are_no_divergence():
    """y a thousand standard deviations away, or ordinary in size but a thousand away in its frequency; the samples stay hundreds away."""
    prior = Gaussian(torch.zeros(SHAPE), Covariance(torch.ones(1, *SHAPE, dtype=torch.float64)))
    far = torch.full((1, *SHAPE), 1000.0, dtype=torch.float64)
    assert float(sample_posterior(prior, far, Identity(), 0.01, steps=5).samples.min()) > 900
    values = torch.full((1, *SHAPE), 1e-6, dtype=torch.float64)
    values[..., 0, 0] = 1.0
    smooth = Gaussian(torch.zeros(SHAPE), Covariance(values, "fourier"))
    rough = 1 - 2 * (torch.arange(8).reshape(1, *SHAPE) % 2).double()
    assert float(sample_posterior(smooth, rough, Identity(), 1e-3, steps=5).samples.abs().min()) > 100 * 1e-3


def test_unit_noise_spans_all_random_numbers():
    noise, like = UnitNoise(), torch.zeros(7, 1, 1, 3, dtype=torch.float64)
    assert torch.equal(torch.cat([noise.normal(like).flatten(1), noise.normal(like).flatten(1)], 1)[1:], torch.eye(6, dtype=torch.float64))
