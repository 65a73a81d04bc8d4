"""Paths of covariances: closed forms, ends, order, and a path of a user's own that follows the model."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anem.bench.samplers import fully_observed, random_covariance
from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.gaussian import make_power_law_gaussian, make_skewed
from anem.sample import Geometric, InOrder, Listed, Noise, Schedule, WaterFilling, as_kernel, end_of_path, run_chain
from anem.sample.schedules import check_step
from anem.statistics import VARIANCE_FLOOR

SHAPE = (1, 4, 4)


def start(basis: str = "fourier", low: float = 1e-7, high: float = 100.0) -> Covariance:
    return random_covariance(basis, SHAPE, low, high, torch.Generator().manual_seed(1))


def at(cov: Covariance) -> Evaluation:
    """A level, for schedules that look at nothing else."""
    zero = torch.zeros_like(cov.values)
    return Evaluation(zero, cov, zero[:, 0, 0, 0], zero, zero)


def path(schedule: Schedule, cov: Covariance) -> list[Covariance]:
    levels, end = [cov], schedule.end(cov)
    for left in range(schedule.steps, 0, -1):
        levels.append(schedule.next(at(levels[-1]), end, left))
    return levels


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_geometric_path_is_its_closed_form(power):
    cov, n = start(), 12
    schedule = Geometric(n, variance=1e-4, power=power)
    end = cov.values.clamp_max(1e-4)
    for i, level in enumerate(path(schedule, cov)):
        tau = (i / n) ** power
        torch.testing.assert_close(level.values, cov.values ** (1 - tau) * end**tau, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_water_filling_path_is_its_closed_form(power):
    """min(λ_T, θ), each image with a θ of its own."""
    cov, n = start(), 12
    cov = Covariance(torch.cat([cov.values, 0.1 * cov.values]), cov.basis)
    top = cov.values.flatten(1).amax(1).view(-1, 1, 1, 1)
    for i, level in enumerate(path(WaterFilling(n, variance=1e-4, power=power), cov)):
        tau = (i / n) ** power
        torch.testing.assert_close(level.values, torch.minimum(cov.values, top ** (1 - tau) * 1e-4**tau), rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_coordinates_in_an_order_are_their_closed_form(basis):
    """λ_T^{1−s} λ_0^s, s running from 0 to 1 in a share of the path that begins later the later the coordinate's turn."""
    cov, n, width = start(basis), 12, 0.3
    order = torch.arange(16.0).view(4, 4).sqrt()
    places = cov.basis.symmetrise(order.double().expand(cov.shape)).flatten()
    place = torch.tensor([float((places.unique() < x - 1e-12).sum()) for x in places]).view(cov.shape) / (len(places.unique()) - 1)
    end = cov.values.clamp_max(1e-4)
    for i, level in enumerate(path(InOrder(n, variance=1e-4, order=order, width=width), cov)):
        s = ((i / n - (1 - width) * place) / width).clamp(0, 1)
        torch.testing.assert_close(level.values, cov.values ** (1 - s) * end**s, rtol=1e-6, atol=0.0)


def test_all_at_once_is_the_geometric_path_and_one_by_one_they_wait():
    cov = start("pixel", low=1.0)
    together = path(InOrder(10, order=torch.arange(16).view(4, 4), width=1.0), cov)
    for a, b in zip(together, path(Geometric(10), cov), strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-9, atol=0.0)
    middle = path(InOrder(32, order=torch.arange(16).view(4, 4), width=1 / 16), cov)[16].values.flatten()
    torch.testing.assert_close(middle[:7], torch.full((7,), VARIANCE_FLOOR).double())
    torch.testing.assert_close(middle[9:], cov.values.flatten()[9:])


def test_any_order_ends_in_the_posterior(generator):
    """Bridge steps, pixel by pixel in a random order: mean and variance within 5 standard errors of the exact ones and 3 %."""
    prior = make_power_law_gaussian(1, 4, 4)
    cov = Covariance.white(prior.statistics.lambda_max, (1, *SHAPE), like=torch.zeros((), dtype=torch.float64))
    y = prior.sample(1, generator) + cov.sample(generator)
    order = torch.randperm(16, generator=generator).view(4, 4)
    drawn = run_chain(prior, fully_observed(y, cov, 2000), InOrder(160, order=order), as_kernel("bridge"), noise=Noise(generator)).x
    posterior = prior.posterior(y, cov)
    exact = posterior.covariance[0].diagonal()
    assert float(((drawn.mean(0).flatten() - posterior.mean.flatten()).abs() / (exact / 2000).sqrt()).max()) < 5
    assert float((drawn.flatten(1).var(0) / exact - 1).abs().max()) < 5 * (2 / 2000) ** 0.5 + 0.03


def test_an_order_of_each_image_goes_along_with_it_and_bad_ones_are_refused():
    orders = torch.stack([torch.arange(16.0).view(1, 4, 4), 100 + torch.arange(16.0).flip(0).div(3).floor().view(1, 4, 4)])
    schedule = InOrder(8, order=orders)
    cov = start("pixel").expand(2)
    whole = path(schedule, cov)[4]
    for i in range(2):
        torch.testing.assert_close(whole.values[i : i + 1], path(schedule.rows(torch.tensor([i])), cov[i : i + 1])[4].values)
    assert not torch.allclose(whole.values[0], whole.values[1])
    with pytest.raises(ValueError, match=r"order: wanted what broadcasts to \(2, 1, 4, 4\), got \(3, 3\)"):
        path(InOrder(4, order=torch.zeros(3, 3)), cov)
    with pytest.raises(ValueError, match="order: wanted a tensor of finite numbers"):
        InOrder(4, order=torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="width: wanted"):
        InOrder(4, order=torch.zeros(4, 4), width=0)


def test_water_filling_leaves_what_was_measured_until_the_rest_is_as_good():
    hidden = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    hidden[..., :2, :] = True
    cov = Covariance(torch.where(hidden, 10.0, 1e-3).double())
    levels = path(WaterFilling(20, variance=1e-5), cov)
    for level in levels:
        inside, outside = level.values[hidden].unique(), level.values[~hidden].unique()
        assert len(inside) == len(outside) == 1 and float(outside) == min(float(cov.values[~hidden][0]), float(inside))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from([Geometric, WaterFilling, lambda *plan: InOrder(*plan, order=torch.arange(16.0).view(4, 4))]),
    steps=st.integers(1, 40),
    power=st.floats(0.3, 3.0),
    variance=st.floats(1e-9, 10.0),
    basis=st.sampled_from(["pixel", "fourier", "dct2"]),
)
def test_planned_paths_fall_and_end_exactly(kind, steps, power, variance, basis):
    cov = start(basis)
    levels = path(kind(steps, variance, power), cov)
    assert len(levels) == steps + 1
    assert torch.equal(levels[-1].values, cov.values.clamp_max(variance))
    pinned = cov.values <= variance
    for now, target in zip(levels[:-1], levels[1:], strict=True):
        check_step(now, target)
        Covariance(target.values, target.basis)  # valid, even
        assert torch.equal(target.values[pinned], cov.values[pinned])


def test_default_end_is_the_variance_of_rounding():
    cov = start()
    assert torch.equal(Geometric().end(cov).values, end_of_path(cov).values)
    assert float(end_of_path(cov).values.max()) == VARIANCE_FLOOR


def test_listed_path_repeats_a_recorded_one():
    prior, cov, g = make_skewed(*SHAPE), start(low=0.01), torch.Generator().manual_seed(2)
    y = prior.sample(1, g) + cov.sample(g)
    recorded: list[Covariance] = []

    def record(step: int, state, cov: Covariance, evaluation: Evaluation) -> None:
        recorded.append(cov)

    def draw(schedule: Schedule, callback=None) -> torch.Tensor:
        noise = Noise(torch.Generator().manual_seed(3))
        return run_chain(prior, fully_observed(y, cov, 1), schedule, as_kernel("ancestral"), noise=noise, callback=callback).x

    first = draw(Geometric(7), record)
    assert len(recorded) == 8
    torch.testing.assert_close(draw(Listed(recorded[1:])), first, rtol=0.0, atol=0.0)


def test_listed_path_of_some_images():
    level = Covariance(torch.rand(3, *SHAPE) + 0.1)
    schedule = Listed([level, Covariance(level.values / 2), Covariance(level.values[:1] / 100)])
    some = schedule.rows(torch.tensor([2, 0, 2]))
    assert torch.equal(some.next(at(Covariance(torch.ones(3, *SHAPE))), level, 3).values, level.values[[2, 0, 2]])
    assert torch.equal(some.end(Covariance(torch.ones(3, *SHAPE))).values, (level.values[:1] / 100).expand(3, -1, -1, -1))


@dataclass(frozen=True)
class Informed(Schedule):
    """log λ_k falls by log(1 + ε/κ_k), so that the bridge's missing variance stays below ε, but fast enough to end in time."""

    steps: int
    epsilon: float

    def end(self, start: Covariance) -> Covariance:
        return end_of_path(start, 1e-4)

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        if left == 1:
            return end
        fall = torch.log1p(self.epsilon / now.relative_variance.clamp_min(1e-3))
        needed = (now.cov.values / end.values).log() / left
        return now.cov.replace((now.cov.values * (-torch.maximum(fall, needed)).exp()).clamp_min(end.values))


def test_a_path_may_follow_the_model_image_by_image():
    prior, cov, n = make_skewed(*SHAPE), start(low=0.01), 4
    y = prior.sample(n, torch.Generator().manual_seed(2)) + cov.expand(n).sample(torch.Generator().manual_seed(3))
    observation, last = fully_observed(y[:1], cov, n), []
    observation = type(observation)(y, cov.expand(n), observation.observed, observation.log_evidence_terms)

    def record(step: int, state, cov: Covariance, evaluation: Evaluation) -> None:
        last.append(cov.values)

    chain = run_chain(prior, observation, Informed(15, 0.5), as_kernel("ancestral"), callback=record)
    assert torch.equal(chain.last.cov.values, cov.values.clamp_max(1e-4).expand(n, -1, -1, -1))
    assert not torch.equal(last[3][0], last[3][1])


def test_wrong_schedules_are_refused():
    cov = start("pixel", low=0.1)
    for kind in (Geometric, WaterFilling):
        with pytest.raises(ValueError, match="steps"):
            kind(0)
        with pytest.raises(ValueError, match="variance"):
            kind(5, variance=0.0)
        with pytest.raises(ValueError, match="power"):
            kind(5, power=-1.0)
    with pytest.raises(ValueError, match="levels"):
        Listed([])
    with pytest.raises(ValueError, match="never increase"):
        check_step(cov, cov.replace(2 * cov.values))
    with pytest.raises(ValueError, match="never increase"):
        check_step(cov, cov.replace(0 * cov.values))
    with pytest.raises(ValueError, match="'pixel'"):
        check_step(cov, Covariance(cov.values, "dct2"))
    with pytest.raises(ValueError, match="never increase"):
        observation = fully_observed(torch.zeros(1, *SHAPE, dtype=torch.float64), cov, 1)
        run_chain(make_skewed(*SHAPE), observation, Listed([cov.replace(2 * cov.values)]), as_kernel("ancestral"))


@dataclass(frozen=True)
class Elsewhere(Geometric):
    """Ends above what it says."""

    def next(self, now: Evaluation, end: Covariance, left: int) -> Covariance:
        return now.cov.replace(now.cov.values * 0.5)


def test_a_path_that_ends_elsewhere_is_refused():
    prior, cov = make_skewed(*SHAPE), start(low=0.01)
    y = prior.sample(1, torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="wanted a path that ends where Elsewhere.end says"):
        run_chain(prior, fully_observed(y, cov, 1), Elsewhere(3), as_kernel("ancestral"))
