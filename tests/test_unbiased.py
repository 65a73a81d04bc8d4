"""The bias of an estimate by an energy that is not normalised, taken off by its scores on samples of the prior."""

import dataclasses
import sys

import pytest
import torch

from anem.blind import FAMILIES, Evidence, estimate, explore
from anem.energy import EnergyModel
from anem.gaussian import make_power_law_gaussian
from anem.random import generator_of

EXACT = make_power_law_gaussian(1, 8, 8)
MODULE = sys.modules["anem.blind.estimate"]


class Unnormalised(EnergyModel):
    """The exact energy plus a function of Σ alone: log Z(Σ) = −lean · Σ_k log λ_k, and the σ found is too large for lean < 0."""

    def __init__(self, lean=-0.08):
        super().__init__()
        self.statistics, self.lean = EXACT.statistics, lean

    def energy(self, y, cov):
        return EXACT.energy(y, cov) + self.lean * cov.values.log().flatten(1).sum(1)


def measure(family, theta, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    operator, sigma = family.degradation(torch.tensor([theta], dtype=torch.float64))
    return operator.measure(EXACT.sample(count, generator), sigma, generator)


def peak(model, m, family):
    evidence = Evidence(model, m, family)
    cells = explore(evidence)
    free = torch.ones(len(family.parameters), dtype=torch.bool)
    return evidence, MODULE._climb(evidence, cells.centres[cells.best], free, cells.widths[cells.best]), cells.widths[cells.best]


@pytest.mark.parametrize(("name", "theta", "lean"), [("white", [0.2], -0.08), ("blur", [0.7, 0.05], -0.03)])
def test_a_missing_normaliser_is_found_by_samples(name, theta, lean):
    """Maximum and covariance become those of the normalised energy, up to the error of a mean of N scores, se/√N, and of two rounds."""
    family, count = FAMILIES[name]((1, 1, 8, 8)), 4000
    m = measure(family, theta)
    _, exact, _ = peak(EXACT, m, family)
    evidence, biased, width = peak(Unnormalised(lean), m, family)
    top, covariance = MODULE._corrected(evidence, biased, width, EXACT.sample(count, torch.Generator().manual_seed(5)))
    errors = exact.errors(exact.covariance)
    off, left = (float(((u - exact.u) / errors).abs().max()) for u in (biased.u, top.u))
    assert off > 0.5 and left < 5 / count**0.5 + 0.1 * off, (off, left)
    # The covariance is that of the maximum over measurements; the curvature at this one is off by a share of about √(2/d).
    assert torch.allclose(top.errors(covariance), errors, rtol=0.4)


def test_the_covariance_is_that_of_the_maximum_over_measurements():
    """H⁻¹ J H⁻¹ against draws, of an energy whose curvature is wrong: twice the exact one, so that H is doubled and J four times."""

    class Doubled(Unnormalised):
        def energy(self, y, cov):
            return 2 * EXACT.energy(y, cov)

    family, found, said = FAMILIES["white"]((1, 1, 8, 8)), [], []
    samples = EXACT.sample(200, torch.Generator().manual_seed(9))
    for seed in range(40):
        evidence, top, width = peak(Doubled(), measure(family, [0.2], seed=seed), family)
        unbiased, covariance = MODULE._corrected(evidence, top, width, samples)
        found.append(float(unbiased.u))
        said.append([float(covariance) ** 0.5, float(top.covariance) ** 0.5])
    spread, (right, naive) = float(torch.tensor(found).std()), torch.tensor(said).mean(0).tolist()
    assert right / naive == pytest.approx(2**0.5, rel=0.1)
    assert 0.7 * right < spread < 1.4 * right  # 40 draws: ± 11 %


def test_scores_are_the_slopes_of_the_evidence():
    family = FAMILIES["blur"]((1, 1, 8, 8))
    u = family.coordinates(torch.tensor([[1.1, 0.08]], dtype=torch.float64))[0]
    x = EXACT.sample(3, torch.Generator().manual_seed(1))
    base = Evidence(EXACT, x[:1], family, seed=3)
    both, one = (base.scores(u, torch.tensor(free), x) for free in ([True, True], [False, True]))
    torch.testing.assert_close(one, both[:, 1:])
    operator, sigma = family.degradation(family.values(u.expand(3, 2)))
    m = operator.measure(x, sigma, generator_of(3, "scores"))
    torch.testing.assert_close(base.scores(u, torch.tensor([True, True]), x, u), both)
    assert not torch.allclose(base.scores(u, torch.tensor([True, True]), x, u + 0.1), both)
    for i in range(3):
        evidence = Evidence(EXACT, m[i : i + 1], family, seed=3)
        for a in range(2):
            step = 1e-5 * torch.eye(2, dtype=torch.float64)[a]
            up, down = evidence.grid(torch.stack([u + step, u - step]))
            assert float(both[i, a]) == pytest.approx(float(up - down) / 2e-5, rel=1e-4, abs=1e-4)


def test_scores_are_those_of_single_measurements_however_many_are_taken_at_once(monkeypatch):
    """With unobserved coordinates, whose draws are the measurement's own and the same for all."""
    family = FAMILIES["blur"]((1, 1, 8, 8))
    u, free = family.coordinates(torch.tensor([[2.5, 0.8]], dtype=torch.float64))[0], torch.tensor([True, True])
    x = EXACT.sample(5, torch.Generator().manual_seed(1))
    evidence = Evidence(EXACT, x[:1], family, seed=3)
    operator, sigma = family.degradation(family.values(u[None]))
    assert not bool(operator.observe(x[:1], sigma, EXACT.statistics, torch.Generator()).observed.all())
    whole = evidence.scores(u, free, x)
    monkeypatch.setattr(sys.modules["anem.blind.evidence"], "_NUMBERS", 1)
    torch.testing.assert_close(evidence.scores(u, free, x), whole)


def test_an_estimate_says_what_was_taken_off_and_moves_its_posterior(monkeypatch):
    family, model = FAMILIES["white"]((1, 1, 8, 8)), Unnormalised(-0.2)
    m = measure(family, [0.2])
    samples = EXACT.sample(400, torch.Generator().manual_seed(5))
    monkeypatch.setattr(MODULE, "searchable", lambda model, shape: (model, samples if isinstance(model, Unnormalised) else None))
    exact, biased, found = estimate(EXACT, m, family), estimate(model, m, family, correct=False), estimate(model, m, family)
    assert bool((exact.bias == 0).all()) and bool((biased.bias == 0).all())
    torch.testing.assert_close(found.theta + found.bias, biased.theta)
    error = float(exact.standard_error)
    assert float(biased.theta) > float(exact.theta) + error
    assert float(found.theta) == pytest.approx(float(exact.theta), abs=0.3 * error)
    assert float(found.posterior.mean) == pytest.approx(float(exact.posterior.mean), abs=0.4 * error)
    low, high = found.posterior.interval(0.9)[0].tolist()
    assert low < 0.2 < high
    assert found.posterior.log_marginal == pytest.approx(biased.posterior.log_marginal)
    coarse = estimate(model, m, family, refine=False)  # no maximum to correct
    assert bool((coarse.bias == 0).all()) and bool(coarse.standard_error.isnan().all())


def test_scores_that_are_not_finite_leave_the_estimate_as_it_is(monkeypatch):
    family, m = FAMILIES["white"]((1, 1, 8, 8)), measure(FAMILIES["white"]((1, 1, 8, 8)), [0.2])
    evidence, top, width = peak(EXACT, m, family)
    monkeypatch.setattr(evidence, "scores", lambda u, free, x, truth=None: torch.full((len(x), 1), float("nan")))
    assert MODULE._corrected(evidence, top, width, m) is None
    assert MODULE._corrected(evidence, dataclasses.replace(top, covariance=None), width, m) is None


FREE, START, WIDTH = torch.tensor([True]), torch.tensor([0.2], dtype=torch.float64).log(), torch.tensor([0.05], dtype=torch.float64)


class Doubled(Unnormalised):
    """Twice the exact energy: C is twice the information, J four times, so C⁻¹ would be half the variance."""

    def energy(self, y, cov):
        return 2 * EXACT.energy(y, cov)


@pytest.mark.parametrize(("model", "off"), [(Unnormalised(-0.03), 0.5), (Doubled(), 0.0)], ids=["unnormalised", "doubled"])
def test_matched_scores_are_those_of_the_exact_energy(model, off):
    """Over measurements: the estimate is the exact maximum, with its errors, where the maximum is off or the curvature is wrong."""
    family, samples = FAMILIES["white"]((1, 1, 8, 8)), EXACT.sample(200, torch.Generator().manual_seed(5))
    rows = []
    for seed in range(8):
        m = measure(family, [0.2], seed=seed)
        exact, biased = (MODULE._climb(Evidence(e, m, family), START, FREE, WIDTH) for e in (EXACT, model))
        u, said = MODULE._matched(Evidence(model, m, family), biased, WIDTH, samples)
        error = exact.errors(exact.covariance)
        rows.append([float(v) for v in ((biased.u - exact.u) / error, (u - exact.u) / error, said / error)])
    before, after, ratio = torch.tensor(rows).unbind(1)
    assert float(before.mean()) >= off
    assert float(after.abs().max()) < 0.3 and abs(float(after.mean())) < 0.2  # it stops within a fifth
    assert 0.8 < float(ratio.mean()) < 1.2  # of 200, ± 5 %


def beside(evidence, away):
    """Not a maximum: so many standard errors from one."""
    top = MODULE._climb(evidence, START, FREE, WIDTH)
    u = top.u + away * top.errors(top.covariance)
    _, gradient, _ = evidence.derivatives(u, FREE)
    return top, dataclasses.replace(top, u=u, gradient=gradient, covariance=None)


@pytest.mark.parametrize("away", [-1.0, 1.0])
def test_matched_scores_need_no_maximum(away):
    """From either side, the scores there lead to the estimate: to first order it does not matter."""
    family = FAMILIES["white"]((1, 1, 8, 8))
    evidence = Evidence(EXACT, measure(family, [0.2]), family)
    top, start = beside(evidence, away)
    u, said = MODULE._matched(evidence, start, WIDTH, EXACT.sample(400, torch.Generator().manual_seed(6)))
    errors = top.errors(top.covariance)
    assert float(((u - top.u) / errors).abs()) < 0.35 and torch.allclose(said, errors, rtol=0.5)


def test_an_estimate_without_curvature_uses_matched_scores(monkeypatch):
    """A model whose curvature is a quarter of its scores' variance: the posterior has to become wider, and does."""
    family, model = FAMILIES["white"]((1, 1, 8, 8)), Doubled()
    m, samples = measure(family, [0.2]), EXACT.sample(400, torch.Generator().manual_seed(5))
    monkeypatch.setattr(MODULE, "searchable", lambda model, shape: (model, samples))
    monkeypatch.setattr(MODULE, "_corrected", lambda *arguments: None)
    found = estimate(model, m, family)
    evidence, top, width = peak(model, m, family)
    u, said = MODULE._matched(evidence, top, width, samples)
    torch.testing.assert_close(found.theta, u.exp())
    torch.testing.assert_close(found.standard_error, said * u.exp())
    before = explore(evidence).spread
    assert float(said) > 1.2 * float(before)
    torch.testing.assert_close(found.posterior.spread, said)


@pytest.mark.parametrize(
    "scores",
    [[float("nan")] * 8, [0.0] * 8, [-2.0, 2.0, 9.0, 9.0, 9.0, 9.0], [-2.0, 2.0, 1e9]],
    ids=["not finite", "the same for every θ", "no nearer", "out of the range"],
)
def test_scores_that_say_nothing_leave_the_estimate_as_it_is(monkeypatch, scores):
    family, m = FAMILIES["white"]((1, 1, 8, 8)), measure(FAMILIES["white"]((1, 1, 8, 8)), [0.2])
    evidence = Evidence(EXACT, m, family)
    top, left = MODULE._climb(evidence, START, FREE, WIDTH), iter(scores)
    monkeypatch.setattr(evidence, "scores", lambda u, free, x, truth=None: torch.full((2, 1), -next(left), dtype=torch.float64))
    assert MODULE._matched(evidence, top, WIDTH, m) is None


def test_an_estimate_at_the_end_of_every_range_stays_there(monkeypatch):
    """A clean image has less noise than the least that is looked for."""
    family, x = FAMILIES["white"]((1, 1, 8, 8)), EXACT.sample(1, torch.Generator().manual_seed(3))
    samples = EXACT.sample(4, torch.Generator().manual_seed(5))
    monkeypatch.setattr(MODULE, "searchable", lambda model, shape: (model, samples))
    found = estimate(EXACT, x, family)
    assert bool(found.at_edge.all()) and bool((found.bias == 0).all()) and bool(found.standard_error.isnan().all())


def test_a_moved_posterior_is_the_same_in_other_places():
    family = FAMILIES["blur"]((1, 1, 8, 8))
    cells = explore(Evidence(EXACT, measure(family, [1.1, 0.05]), family))
    start = cells.centres[cells.best]
    stretch = torch.tensor([1.5, 1.0], dtype=torch.float64)
    moved = cells.moved(start, start + 0.05, stretch)
    p = cells.probabilities
    torch.testing.assert_close(moved.probabilities, p)
    torch.testing.assert_close(p @ moved.centres - start - 0.05, stretch * (p @ cells.centres - start))
    assert moved.entropy == pytest.approx(cells.entropy + float(stretch.log().sum()))
    far = cells.moved(start, start + 10.0, 1e3 * stretch)  # intervals and moments end where the range does
    assert bool((far.mean <= torch.tensor([p.high for p in family.parameters.values()]) * (1 + 1e-12)).all() and far.std.isfinite().all())
    assert far.interval(0.9)[0, 1] <= family.parameters["std"].high * (1 + 1e-12)


def test_matched_scores_of_two_parameters_by_an_energy_of_another_prior():
    """Errors are C⁻¹ J C⁻ᵀ with C_ab = ∂E[s_a]/∂θ_b, here far from symmetric: computed apart, in closed form.

    Both laws are Gaussian and diagonal in frequencies: with t_k the variance of frequency k under the model and τ_k under the data, both
    at θ, the mean score at u of measurements at θ is ½ Σ_k ∂ log t_k (τ_k(θ)/t_k − 1).
    """
    family, model = FAMILIES["blur"]((1, 1, 8, 8)), make_power_law_gaussian(1, 8, 8, exponent=4.0)
    truth = torch.tensor([[0.8, 0.08]], dtype=torch.float64)
    u, width = family.coordinates(truth)[0], torch.tensor([0.05, 0.05], dtype=torch.float64)

    def variances(at, prior):
        operator, sigma = family.degradation(family.values(at[None]))
        gain = operator.response((1, 1, 8, 8), at).abs().square()
        return (gain * prior.variance + sigma.reshape(-1, 1, 1, 1).square()).flatten()

    t = variances(u, model)
    slope = torch.autograd.functional.jacobian(lambda at: variances(at, model).log(), u)
    spread = torch.autograd.functional.jacobian(lambda at: variances(at, EXACT), u)
    wanted = 0.5 * slope.T @ (spread / t[:, None])
    ratio = variances(u, EXACT) / t
    scores = 0.5 * slope.T @ (ratio.square()[:, None] * slope)  # J: frequencies are independent, and var (z²) = 2
    assert float((wanted[0, 1] - wanted[1, 0]).abs()) > 0.2 * float(wanted[0, 1].abs())
    inverse = torch.linalg.inv(wanted)
    errors = (inverse @ scores @ inverse.T).diagonal().sqrt()

    m = measure(family, truth[0].tolist(), seed=3)
    evidence = Evidence(model, m, family)
    both = torch.tensor([True, True])
    value, gradient, _ = evidence.derivatives(u, both)
    here = MODULE._Peak(u, value, gradient, both, None)
    found = MODULE._matched(evidence, here, width, EXACT.sample(8000, torch.Generator().manual_seed(6)))
    assert found is not None
    torch.testing.assert_close(found[1], errors, rtol=0.025, atol=0.0)
    others = [(a @ scores @ b).diagonal().sqrt() for a, b in ((inverse.T, inverse), (inverse, inverse))]
    assert all(float((other / errors - 1).abs().max()) > 0.05 for other in others)
