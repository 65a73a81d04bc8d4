"""Paths of covariances: closed forms, ends, order, and a path of a user's own that follows the model."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anem.bench.samplers import fully_observed, random_covariance
from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.gaussian import make_skewed
from anem.sample import Geometric, Listed, Noise, Schedule, WaterFilling, as_kernel, end_of_path, run_chain
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
    kind=st.sampled_from([Geometric, WaterFilling]),
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
