"""Paths that follow the energy: bounds, ends and budgets for any evaluation, exact laws on oracles, freezing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anem.bench.samplers import draw_chains, fully_observed, permutation_p_values, random_covariance
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.gaussian import Gaussian, make_skewed
from anem.operators import Inpainting, Observation
from anem.sample import MALA, SCHEDULES, EnergyGuided, Geometric, Noise, Sampler, VarianceGuided, as_kernel, as_schedule, freeze, run_chain
from anem.sample.schedules import check_step

SHAPE = (1, 4, 2)
GUIDED = [name for name in SCHEDULES if SCHEDULES[name](1).adaptive]
guided = pytest.mark.parametrize("name", GUIDED)
bases = pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def any_evaluation(cov: Covariance, g: torch.Generator, scale: float = 1.0) -> Evaluation:
    """A level with gradients of any sign and size."""
    y, grad, slope = (torch.randn(cov.shape, generator=g, dtype=torch.float64) for _ in range(3))
    return Evaluation(y, cov, y[:, 0, 0, 0], grad / cov.values.sqrt(), cov.basis.symmetrise(scale * slope * slope.exp()))


def case(prior: EnergyModel, basis: str, seed: int = 11) -> tuple[torch.Tensor, Covariance]:
    g = generator(seed)
    cov = random_covariance(basis, SHAPE, 0.01, 1.0, g)
    return prior.sample(1, g) + cov.sample(g), cov


# --- any evaluation ---


@guided
@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 30),
    variance=st.floats(1e-9, 10.0),
    scale=st.floats(1e-12, 1e6),
    basis=st.sampled_from(["pixel", "fourier", "dct2"]),
    seed=st.integers(0, 10**6),
)
def test_paths_fall_and_end_exactly_on_time(name, steps, variance, scale, basis, seed):
    g = generator(seed)
    start = Covariance(torch.cat([random_covariance(basis, SHAPE, 1e-7, 100.0, g).values for _ in range(3)]), basis)
    schedule = type(as_schedule(name, 1))(steps, variance)
    now, end = start, schedule.end(start)
    for left in range(steps, 0, -1):
        then = schedule.next(any_evaluation(now, g, scale), end, left)
        check_step(now, then)
        Covariance(then.values, then.basis)  # valid, even
        assert bool((then.values >= end.values).all()) and then.values.dtype == torch.float64
        now = then
    assert torch.equal(now.values, start.values.clamp_max(variance))


@bases
def test_the_energys_rule_is_steepest_descent_with_its_share_of_the_budget(basis):
    """Falls of log λ proportional to |∂U/∂ℓ| where neither clipped nor arrived; their sum 1/left of what is left, for every image."""
    cov = Covariance(torch.cat([random_covariance(basis, SHAPE, 1e-5, 10.0, generator(s)).values for s in (1, 2)]), basis)
    schedule, left = EnergyGuided(8, 1e-4, clip=(0.2, 3.0)), 3
    now, end = any_evaluation(cov, generator(5)), schedule.end(cov)
    then = schedule.next(now, end, left)
    fall, room = (cov.values / then.values).log().flatten(1), (cov.values / end.values).log().flatten(1)
    torch.testing.assert_close(fall.sum(1), room.sum(1) / left, rtol=1e-10, atol=0.0)
    size, moving = now.grad_logvar.abs().flatten(1), room > 0
    assert 0 < int((~moving).sum())
    for b in range(2):
        relative = size[b] / size[b][moving[b]].mean()
        free = moving[b] & (fall[b] < room[b] * (1 - 1e-9)) & (relative > 0.2) & (relative < 3)
        assert int(free.sum()) >= 2
        ratio = fall[b][free] / size[b][free]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-9, atol=0.0)
        clipped = moving[b] & (relative <= 0.2) & (fall[b] < room[b] * (1 - 1e-9))
        torch.testing.assert_close(fall[b][clipped], 0.2 * ratio[0] * size[b][moving[b]].mean().expand(int(clipped.sum())))


def test_an_energy_without_slope_gives_the_geometric_path():
    cov = random_covariance("pixel", SHAPE, 0.1, 10.0, generator(1))
    white = Covariance.white(2.0, cov.shape, like=cov.values)
    zero = torch.zeros_like(cov.values)
    now = Evaluation(zero, white, zero[:, 0, 0, 0], zero, zero)
    schedule = EnergyGuided(5, 1e-4)
    end = schedule.end(white)
    torch.testing.assert_close(schedule.next(now, end, 5).values, Geometric(5, 1e-4).next(now, end, 5).values, rtol=1e-12, atol=0.0)


@bases
def test_the_variance_rule_is_its_formula(basis):
    prior = make_skewed(*SHAPE)
    y, cov = case(prior, basis)
    now, schedule, left = prior(y, cov), VarianceGuided(9, 1e-4, epsilon=0.05, max_fall=0.7), 6
    end = schedule.end(cov)
    kappa = prior.posterior(y, cov).variance / cov.values
    level = cov.values.max() * (end.values.max() / cov.values.max()) ** (1 / left)
    ahead = torch.maximum(cov.values * torch.exp(-torch.log1p(0.05 / kappa.clamp_min(1e-3)).clamp_max(0.7)), end.values)
    wanted = torch.minimum(ahead, level.expand_as(ahead))
    torch.testing.assert_close(schedule.next(now, end, left).values, wanted, rtol=1e-7, atol=0.0)
    assert bool((ahead < level).any() and (ahead > level).any())


def evaluation_with(kappa: torch.Tensor, cov: Covariance) -> Evaluation:
    """Whose one-call variances are κλ: ∇U = 0 and ∂U/∂ℓ = (1 − κ)/2."""
    zero = torch.zeros_like(kappa)
    return Evaluation(zero, cov, zero[:, 0, 0, 0], zero, 0.5 * (1 - kappa))


def test_negative_variances_raise_those_around_them():
    """To twice their root mean square over five by five coordinates, around the edges; those farther away and larger ones stay."""
    kappa = torch.full((1, 1, 12, 12), 0.01, dtype=torch.float64)
    kappa[0, 0, 1, 0], kappa[0, 0, 0, 0] = -0.4, 0.5
    cov = Covariance.white(1.0, kappa.shape, like=kappa)
    now, schedule = evaluation_with(kappa, cov), VarianceGuided(1000, epsilon=0.1, max_fall=100.0)
    torch.testing.assert_close(now.relative_variance, kappa)
    fall = -schedule.next(now, schedule.end(cov), 1000).values.log()[0, 0]
    near = torch.log1p(torch.tensor(0.1 / (2 * (0.4**2 / 25) ** 0.5), dtype=torch.float64))
    far = torch.log1p(torch.tensor(0.1 / 0.01, dtype=torch.float64))
    for (i, j), wanted in {(1, 0): near, (11, 10): near, (3, 2): near, (4, 0): far, (1, 3): far, (10, 1): far}.items():
        torch.testing.assert_close(fall[i, j], wanted)
    torch.testing.assert_close(fall[0, 0], torch.log1p(torch.tensor(0.1 / 0.5, dtype=torch.float64)))


def test_by_default_epsilon_is_two_over_the_steps():
    prior = make_skewed(*SHAPE)
    y, cov = case(prior, "pixel")
    now, by_default, given = prior(y, cov), VarianceGuided(40), VarianceGuided(40, epsilon=0.05)
    end = given.end(cov)
    assert torch.equal(by_default.next(now, end, 40).values, given.next(now, end, 40).values)
    assert not torch.equal(by_default.next(now, end, 40).values, VarianceGuided(40, epsilon=0.06).next(now, end, 40).values)


def test_the_variance_rule_keeps_the_missing_variance_below_epsilon():
    prior = make_skewed(*SHAPE)
    y, cov = case(prior, "pixel")
    schedule = VarianceGuided(10_000, epsilon=0.05, max_fall=100.0)
    now, end = prior(y, cov), schedule.end(cov)
    g = (cov.values / schedule.next(now, end, 10_000).values).log()
    assert float((g.expm1() * now.relative_variance).max()) <= 0.05 * (1 + 1e-9)
    assert float(g.min()) > 0.01


# --- chains ---


def diagonal_gaussian(basis: str) -> Gaussian:
    return Gaussian(torch.full(SHAPE, 0.5), random_covariance(basis, SHAPE, 0.003, 0.3, generator(4)))


@pytest.mark.parametrize("prior", [diagonal_gaussian("fourier"), make_skewed(*SHAPE)], ids=["Gaussian", "skewed mixture"])
@pytest.mark.parametrize(("name", "basis"), [("energy", "fourier"), ("variance", "pixel")])
def test_many_steps_draw_from_the_exact_posterior(name, prior, basis):
    """Permutation tests on mean, second moments and energy distance, false-alarm rate 1e-3 each."""
    n, g = 250, generator(12)
    y, cov = case(prior, basis)
    posterior = prior.posterior(y, cov)
    exact = posterior.sample(n, g)[:, 0].flatten(1)
    x = draw_chains(prior, y, cov, as_schedule(name, 80), as_kernel("ancestral"), n, g)
    p = permutation_p_values(x, exact, posterior.mean[0].flatten(), posterior.covariance[0], 999, g)
    assert min(p.values()) > 0.001


@guided
def test_a_path_depends_on_its_own_image_alone(name):
    prior, n, levels = make_skewed(*SHAPE), 4, []
    cov = Covariance(torch.cat([case(prior, "fourier", s)[1].values for s in range(n)]), "fourier")
    y = prior.sample(n, generator(2)) + cov.sample(generator(3))
    together = Observation(y, cov, torch.ones_like(y, dtype=torch.bool), y[:, 0, 0, 0])

    def draw(observation: Observation, seeds) -> torch.Tensor:
        values = []
        noise = Noise([generator(100 + s) for s in seeds])
        chain = run_chain(
            prior,
            observation,
            as_schedule(name, 9),
            as_kernel("ancestral"),
            noise=noise,
            callback=lambda i, s, c, e: values.append(c.values),
        )
        levels.append(torch.stack(values, 1))
        return chain.x

    x = draw(together, range(n))
    alone = draw(together[torch.tensor([2])], [2])
    torch.testing.assert_close(alone, x[2:3], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(levels[1], levels[0][2:3], rtol=1e-9, atol=0.0)
    assert not torch.allclose(levels[0][0, 4] / cov.values[0], levels[0][1, 4] / cov.values[1])


# --- freezing ---


@guided
def test_a_frozen_path_is_that_of_the_pilot(name):
    prior = make_skewed(*SHAPE)
    y, cov = case(prior, "dct2")
    observation, seen = fully_observed(y, cov, 3), []
    noise = [Noise([generator(s) for s in range(3)]) for _ in range(2)]
    frozen = freeze(prior, observation, as_schedule(name, 6), noise=noise[0])
    run_chain(prior, observation, as_schedule(name, 6), as_kernel("ancestral"), noise=noise[1], callback=lambda i, s, c, e: seen.append(c))
    assert frozen.steps == 6 and not frozen.adaptive
    for level, other in zip(frozen.levels, seen[1:], strict=True):
        assert torch.equal(level.values, other.values)


def test_with_a_corrector_the_path_is_frozen_first():
    """Refused otherwise; on the frozen path MALA agrees with the exact posterior, false-alarm rate 1e-3 for each of three statistics."""
    prior, n, g = make_skewed(*SHAPE), 300, generator(8)
    y, cov = case(prior, "pixel")
    with pytest.raises(ValueError, match="freeze"):
        run_chain(prior, fully_observed(y, cov, 2), VarianceGuided(5), as_kernel("ancestral"), MALA())
    frozen = freeze(prior, fully_observed(y, cov, 1), VarianceGuided(60), noise=Noise(g))
    x = run_chain(prior, fully_observed(y, cov, n), frozen, as_kernel("ancestral"), MALA(), Noise(g)).x.flatten(1)
    posterior = prior.posterior(y, cov)
    exact = posterior.sample(n, g)[:, 0].flatten(1)
    p = permutation_p_values(x, exact, posterior.mean[0].flatten(), posterior.covariance[0], 999, g)
    assert min(p.values()) > 0.001


@guided
def test_samplers_take_them(name):
    """Unobserved coordinates, several samples and chunks: what a chunk holds changes nothing."""
    prior = make_skewed(*SHAPE)
    operator = Inpainting.half((4, 2), "right")
    m = operator.measure(prior.sample(2, generator(1)), 0.05, generator(2))

    def observe(generators):
        return operator.observe(m, 0.05, prior.statistics, generators)

    whole, split = (
        Sampler(schedule=as_schedule(name, 8), chunk=chunk).sample(prior, observe, m.shape, 3, like=m).samples for chunk in (6, 1)
    )
    assert whole.shape == (3, 2, *SHAPE) and whole.dtype == torch.float64
    torch.testing.assert_close(whole, split, rtol=1e-8, atol=1e-9)


def test_wrong_settings_are_refused():
    for wrong in ({"steps": 0}, {"variance": 0.0}):
        for schedule in (EnergyGuided, VarianceGuided):
            with pytest.raises(ValueError, match="steps >= 1, variance > 0"):
                schedule(**wrong)
    with pytest.raises(ValueError, match="clip"):
        EnergyGuided(5, clip=(0.0, 2.0))
    with pytest.raises(ValueError, match="epsilon"):
        VarianceGuided(5, epsilon=0.0)
    with pytest.raises(ValueError, match="geometric, water-filling, energy, variance"):
        as_schedule("linear", 5)
    assert as_schedule(schedule := Geometric(3)) is schedule
