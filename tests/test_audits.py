"""Audits pass on exact energies, and each fails on the fault it is there to find.

Random numbers are fixed. A figure is said to hold when it is inside its limit and the standard error small enough, so the exact energies
pass whatever the seed up to the rates of 3 standard errors (0.3 %) and of the 99 % bands.
"""

import math
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from anem.bases import as_basis
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import make_mixture, make_power_law_gaussian, make_skewed
from anem.likelihood import (
    AuditSize,
    Check,
    Ranks,
    audit_flow,
    audit_gradient,
    audit_partition,
    audit_paths,
    audit_ranks,
    audit_strangers,
    audit_variance,
    audits,
    path_integral,
    strange_images,
    truth_ranks,
)
from anem.likelihood.audits_ranks import binomial_interval, ks_limit, noisy_truth
from anem.likelihood.audits_suite import _where_chains_settle
from anem.likelihood.partition import Partition
from anem.operators import make_operator
from anem.sample import Diverged, Geometric, Sampler

SHAPE = (1, 1, 4, 4)
DOUBLE = torch.zeros((), dtype=torch.float64)
FEW = Sampler("sde-2m", final="noisy", schedule=Geometric(20))


def white(variance: float, basis: str = "pixel") -> Covariance:
    return Covariance.white(variance, SHAPE, basis, DOUBLE)


class Faulty(EnergyModel):
    """U + f(y, Σ) of an exact energy U."""

    def __init__(self, inner: EnergyModel, fault) -> None:
        super().__init__()
        self.inner, self.statistics, self.fault = inner, inner.statistics, fault

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        return self.inner.energy(y, cov) + self.fault(y, cov)


EXACT = {"gaussian": make_power_law_gaussian(1, 4, 4), "mixture": make_mixture(3, 1, 4, 4), "skewed": make_skewed(1, 4, 4)}
MIXTURE = EXACT["mixture"]
FAULTS = {
    "constant": lambda y, cov: 0.05 * y[0].numel() + 0.0 * y.sum((1, 2, 3)),
    "slope": lambda y, cov: 0.06 * cov.logdet(),
    "score": lambda y, cov: 3 * (y - 0.5).square().sum((1, 2, 3)),
    "one basis": lambda y, cov: (0.06 if cov.basis.name == "fourier" else 0.0) * cov.logdet(),
}
"""What is wrong with a broken energy."""


def broken(fault: str) -> EnergyModel:
    return Faulty(MIXTURE, FAULTS[fault])


# --- one figure ---


def test_a_figure_is_judged_by_its_value_and_its_standard_error():
    def verdict(value, error, errors=math.inf):
        return Check.near_zero("a", "b", "c", value, error, 0.01, errors).verdict

    assert verdict(0.009, 0.003) == verdict(-0.009, 0.003) == verdict(0.0, 0.0) == "pass"
    assert verdict(0.011, 0.003) == verdict(-0.011, 0.001) == "FAIL"
    assert verdict(0.0, 0.0031) == verdict(0.011, 0.004) == verdict(0.0, math.nan) == "undecided"
    assert verdict(0.05, 0.004) == "FAIL", "beyond the limit by more than three standard errors, however large they are"
    assert verdict(0.005, 0.001, errors=3) == "FAIL" and verdict(0.005, 0.002, errors=3) == "pass"
    assert verdict(math.nan, 0.001) == verdict(math.inf, 0.001) == "FAIL"
    assert Check("a", "b", "c", 1.0, 0.1).verdict == ""


def test_one_image_decides_nothing():
    assert Check.mean_near_zero("a", "b", "c", torch.zeros(1), 0.01).verdict == "undecided"


# --- exact energies pass ---


@pytest.mark.parametrize("prior", EXACT)
def test_the_flow_of_an_exact_energy_agrees_with_it(prior, generator):
    model = EXACT[prior]
    check = audit_flow(model, model.sample(6, generator), white(0.1), steps=24, probes=None, generator=generator)
    assert check.verdict == "pass", check


@pytest.mark.parametrize("prior", EXACT)
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_the_mean_gradient_of_an_exact_energy_is_zero(prior, basis, generator):
    model = EXACT[prior]
    check = audit_gradient(model, model.sample(1500, generator), white(1e-3, basis), generator=generator)
    assert check.verdict == "pass", check


@pytest.mark.parametrize("prior", EXACT)
def test_log_z_of_an_exact_energy_is_zero(prior, generator):
    targets = {"1": white(1.0, "fourier"), "0.01": white(0.01, "fourier")}
    checks = audit_partition(EXACT[prior], targets, steps=30, chains=512, population=8, generator=generator)
    assert [c.where for c in checks] == ["1", "0.01"]
    assert [c.verdict for c in checks] == ["pass", "pass"], checks


@pytest.mark.parametrize("prior", EXACT)
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_an_exact_energy_depends_on_no_path(prior, basis, generator):
    model, low, high = EXACT[prior], white(1e-3), white(1.0)
    middle = as_basis(basis).symmetrise(torch.where(torch.rand(SHAPE, generator=generator, dtype=torch.float64) < 0.5, 1e-3, 1.0))
    second = [white(1e-3, basis), Covariance(middle, basis), white(1.0, basis)]
    check = audit_paths(model, model.sample(50, generator), [low, high], second, generator=generator)
    assert check.verdict == "pass", check


@pytest.mark.parametrize("prior", EXACT)
def test_the_one_call_variance_of_an_exact_energy_is_that_of_errors_and_samples(prior, generator):
    model = EXACT[prior]
    checks = audit_variance(model, model.sample(300, generator), white(1e-3), samples=8, sampler=FEW, generator=generator)
    assert [c.verdict for c in checks] == ["pass", "pass"], checks


@pytest.mark.parametrize("prior", EXACT)
def test_truths_rank_uniformly_among_the_samples_of_an_exact_energy(prior, generator):
    """At 4.4 standard errors, or Kolmogorov's limit of the same chance: 1e-5 a figure, not the 1 % of the verdicts."""
    model, count = EXACT[prior], 600
    checks = audit_ranks(model, model.sample(count, generator), make_operator("inpaint-box", SHAPE), 0.1, samples=9, sampler=FEW)
    nominal = {"distance of ranks": 0.0, "50 % coverage": 0.5, "90 % coverage": 0.9}
    assert [c.what.partition(": ")[2] for c in checks] == [*nominal] * 3
    for check in checks:
        off = abs(check.value - nominal[check.what.partition(": ")[2]])
        assert off <= (2.5 / count**0.5 if "distance" in check.what else 4.4 * check.standard_error), check


def test_a_variance_that_cannot_be_trusted_is_shown_but_not_judged(generator):
    checks = audit_variance(MIXTURE, MIXTURE.sample(4, generator), white(10.0), samples=2, sampler=FEW, generator=generator)
    assert [c.verdict for c in checks] == ["", ""] and all(c.criterion is None for c in checks)


# --- broken energies fail ---


def test_a_wrong_constant_shows_in_the_flow_and_in_log_z_and_nowhere_else(generator):
    model, x = broken("constant"), MIXTURE.sample(1500, generator)
    flow = audit_flow(model, x[:6], white(0.1), steps=24, probes=None, generator=generator)
    assert flow.verdict == "FAIL" and flow.value == pytest.approx(0.05 / math.log(2), abs=0.02)
    (log_z,) = audit_partition(model, {"0.01": white(0.01)}, steps=30, chains=512, population=8, generator=generator)
    assert log_z.verdict == "FAIL" and log_z.value == pytest.approx(-0.05, abs=0.012)
    assert audit_gradient(model, x, white(1e-3), generator=generator).verdict == "pass"


def test_a_wrong_slope_shows_in_the_gradient_and_in_log_z(generator):
    model, x = broken("slope"), MIXTURE.sample(2000, generator)
    gradient = audit_gradient(model, x, white(1e-3), generator=generator)
    assert gradient.verdict == "FAIL" and gradient.value == pytest.approx(0.06, abs=0.01)
    (log_z,) = audit_partition(model, {"0.01": white(0.01)}, steps=30, chains=256, population=8, generator=generator)
    assert log_z.verdict == "FAIL" and log_z.value == pytest.approx(-0.06 * math.log(0.01), abs=0.02)


def test_a_slope_that_is_wrong_in_one_basis_shows_between_the_paths(generator):
    x = MIXTURE.sample(30, generator)
    ends = {basis: [white(1e-3, basis), white(1.0, basis)] for basis in ("pixel", "fourier")}
    check = audit_paths(broken("one basis"), x, ends["pixel"], ends["fourier"], generator=generator)
    assert check.verdict == "FAIL" and check.value == pytest.approx(0.06 * math.log(1e3), abs=0.01)
    assert audit_paths(broken("slope"), x, ends["pixel"], ends["fourier"], generator=generator).verdict == "pass"


class Unconservative(Faulty):
    """Reports a gradient in ℓ that its energy has not, for coordinates above 0.1."""

    def forward(self, y, cov):
        at = super().forward(y, cov)
        return type(at)(at.y, at.cov, at.energy, at.grad_y, at.grad_logvar + 0.1 * (cov.values > 0.1) * (cov.values[..., :1] < 0.1))


def test_a_gradient_of_no_energy_shows_between_paths_in_one_basis(generator):
    half = torch.where(torch.arange(4) < 2, 1e-3, 1.0).double().expand(SHAPE)
    second = [white(1e-3), Covariance(half, "pixel"), white(1.0)]
    model = Unconservative(MIXTURE, lambda y, cov: 0.0)
    assert audit_paths(model, MIXTURE.sample(30, generator), [white(1e-3), white(1.0)], second, generator=generator).verdict == "FAIL"


def test_a_wrong_score_shows_in_the_variance_and_in_the_flow(generator):
    model, x = broken("score"), MIXTURE.sample(100, generator)
    against_error, _ = audit_variance(model, x, white(1e-2), samples=2, sampler=FEW, generator=generator)
    assert against_error.verdict == "FAIL"
    assert audit_flow(model, x[:6], white(0.1), steps=24, probes=None, generator=generator).verdict == "FAIL"


def test_an_overconfident_prior_shows_in_variances_and_coverage(generator):
    """Images of the true prior, and an energy that believes in half the standard deviation."""
    truth, model = make_power_law_gaussian(1, 4, 4, variance=0.06), make_power_law_gaussian(1, 4, 4, variance=0.015)
    x = truth.sample(200, generator)
    against_error, against_samples = audit_variance(model, x, white(1e-2), samples=8, sampler=FEW, generator=generator)
    assert against_error.verdict == "FAIL" and against_error.value < -0.1
    assert against_samples.verdict == "pass", "samples and one call agree in their error"
    found = {c.what: c for c in audit_ranks(model, x, make_operator("inpaint-box", SHAPE), 0.1, samples=9, sampler=FEW)}
    narrow = found["pixel: 90 % coverage"]
    assert narrow.verdict == "FAIL" and narrow.value < 0.8
    assert found["energy: distance of ranks"].verdict == "FAIL"


# --- pieces ---


def test_a_path_integral_is_the_difference_of_the_energies_at_its_ends(generator):
    x, z = MIXTURE.sample(5, generator), torch.randn(5, *SHAPE[1:], generator=generator, dtype=torch.float64)
    for basis in ("pixel", "fourier", "dct2"):
        middle = as_basis(basis).symmetrise(0.01 + torch.rand(SHAPE, generator=generator, dtype=torch.float64))
        path = [white(0.01, basis), Covariance(middle, basis), white(2.0, basis)]
        exact = [MIXTURE.energy(x + c.values[0, 0, 0, 0] ** 0.5 * z, c.expand(5)) for c in (path[0], path[-1])]
        torch.testing.assert_close(path_integral(MIXTURE, x, z, path, nodes=16), exact[1] - exact[0], rtol=0, atol=2e-4)


def test_paths_with_different_ends_are_refused():
    uneven = Covariance(torch.linspace(1, 2, 16, dtype=torch.float64).reshape(SHAPE))
    for second in ([white(0.1), white(2.0)], [white(0.2), white(1.0)], [white(0.1), uneven]):
        with pytest.raises(ValueError, match="same ends"):
            audit_paths(MIXTURE, torch.zeros(2, 1, 4, 4), [white(0.1), white(1.0)], second)


def test_the_interval_of_a_binomial_leaves_its_share_on_each_side():
    for n, p in ((400, 0.9), (400, 0.5), (30, 0.9)):
        low, high = binomial_interval(n, p, 0.99)
        exact = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        assert sum(exact[:low]) <= 0.005 < sum(exact[: low + 1])
        assert sum(exact[high + 1 :]) <= 0.005 < sum(exact[high:])


def test_the_limit_of_the_distance_is_crossed_by_one_uniform_sample_in_a_hundred(generator):
    """2000 samples of 50: 20 expected, 5 to 40 with probability 1 − 1e-4."""
    crossed = sum(Ranks(torch.rand(50, generator=generator)).distance > ks_limit(50) for _ in range(2000))
    assert 5 <= crossed <= 40


def test_the_distance_is_kolmogorovs():
    u = torch.tensor([0.05, 0.1, 0.2, 0.25, 0.9], dtype=torch.float64)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    brute = ((u[:, None] <= grid).double().mean(0) - grid).abs().max()
    assert Ranks(u).distance == pytest.approx(float(brute), abs=1e-4)
    assert Ranks(u).coverage(0.5) == pytest.approx(0.2)


def test_ranks_break_ties_at_random(generator):
    """Truth and samples all equal: uniform ranks; 99.99 % band of the distance 2.23/√N."""
    ranks = Ranks.of(torch.zeros(2000), torch.zeros(7, 2000), generator)
    assert ranks.distance < 2.23 / 2000**0.5
    truth, samples = torch.tensor([5.0, -1.0]), torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    low, high = (Ranks.of(truth, samples, generator).values * 4).tolist()
    assert 3 <= low < 4 and 0 <= high < 1


def test_the_noisy_truth_lies_on_the_way_to_the_measurement(generator):
    """Where observed, n_0 has variance λ_0 and n − n_0 is independent of it; elsewhere n_0 is independent of y. 4.5 standard errors."""
    n, shape = 4000, (4000, 1, 2, 2)
    cov = Covariance(torch.full(shape, 0.5, dtype=torch.float64))
    end = cov.replace(torch.full(shape, 0.2, dtype=torch.float64))
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = x + cov.sample(generator)
    observed = torch.tensor([[True, True], [False, False]]).expand(shape)
    sources = [torch.Generator().manual_seed(i) for i in range(n)]
    early = noisy_truth(x, y, cov, end, observed, sources) - x
    rest = y - x - early
    bound = 4.5 * (2 / (2 * n)) ** 0.5
    assert abs(float(early.square().mean()) / 0.2 - 1) < bound
    assert abs(float((early * rest)[..., 0, :].mean())) < bound * (0.2 * 0.3) ** 0.5
    assert abs(float((early * (y - x))[..., 1, :].mean())) < bound * (0.2 * 0.5) ** 0.5


def test_ranks_do_not_depend_on_batch_mates(generator):
    x = MIXTURE.sample(3, generator)
    together = truth_ranks(MIXTURE, x, make_operator("inpaint-half", SHAPE), 0.1, samples=20, sampler=FEW, seed=0)
    alone = truth_ranks(MIXTURE, x[:1], make_operator("inpaint-half", SHAPE), 0.1, samples=20, sampler=FEW, seed=0)
    for what in together:  # ties aside, within one step of the randomised rank
        assert abs(float(together[what].values[0] - alone[what].values[0])) < 1 / 21


def test_a_sampler_that_denoises_is_refused():
    x, denoising = torch.rand(2, 1, 4, 4), Sampler()
    with pytest.raises(ValueError, match="noisy"):
        truth_ranks(MIXTURE, x, make_operator("denoise", SHAPE), 0.1, sampler=denoising)
    with pytest.raises(ValueError, match="noisy"):
        audit_variance(MIXTURE, x, white(0.1), sampler=denoising)


# --- strangers ---


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_the_bound_by_a_stranger_is_the_divergence_in_closed_form(basis, generator):
    """log Z ≥ −KL(N(x, Σ) ‖ p(y given Σ)) for an exact energy: wrong signs, factors and a missing entropy would show."""
    model = EXACT["gaussian"]
    x = torch.full((1, 1, 4, 4), 0.7, dtype=torch.float64)
    cov = white(0.3, basis)
    prior = model.posterior(torch.zeros(1, 1, 4, 4, dtype=torch.float64), white(1e9)).covariance[0]
    total, away = prior + 0.3 * torch.eye(16, dtype=torch.float64), (x - model.statistics.mean_image(x)).flatten()
    p = torch.distributions.MultivariateNormal(torch.zeros_like(away), total)
    q = torch.distributions.MultivariateNormal(away, 0.3 * torch.eye(16, dtype=torch.float64))
    check = audit_strangers(model, {"grey": x}, cov, draws=4000, generator=generator)
    assert check.value == pytest.approx(-float(torch.distributions.kl_divergence(q, p)) / 16, abs=4 * check.standard_error)
    assert check.standard_error < 0.01 and check.verdict == "pass" and "grey" in check.what


def test_an_energy_that_gives_strangers_everything_is_found_out(generator):
    """By the mean over draws, not by one; an energy that is not a number fails too."""
    strangers = strange_images(MIXTURE.sample(3, generator).clamp(0, 1), generator)
    assert len(strangers) == 15 and all(x.shape == (3, 1, 4, 4) and 0 <= x.min() <= x.max() <= 1 for x in strangers.values())
    assert audit_strangers(MIXTURE, strangers, white(1e-3), generator=generator).verdict == "pass"
    for wrong in (torch.tensor(40.0), torch.tensor(math.nan)):
        low = Faulty(MIXTURE, lambda y, cov, wrong=wrong: -wrong * 16 * (y.flatten(1).std(1) > 0.45))
        check = audit_strangers(low, strangers, white(1e-3), generator=generator)
        assert check.verdict == "FAIL" and not check.value < 1
    first = {"grey": strangers["grey"], "black": strangers["black"]}
    odd = Faulty(MIXTURE, lambda y, cov: torch.where(y.flatten(1).mean(1) > 0.3, math.nan, 0.0))
    assert audit_strangers(odd, first, white(1e-3), generator=generator).verdict == "FAIL"
    with pytest.raises(ValueError, match="strangers: wanted some images, got none"):
        audit_strangers(MIXTURE, {}, white(0.1))


# --- the suite ---


TINY = AuditSize(flow=2, flow_steps=3, chains=4, population=2, steps=6, gradient=6, paths=2, nodes=2, truths=4, samples=3, variance=4)


def test_the_suite_visits_every_family_and_the_ends_of_the_range(generator):
    x = MIXTURE.sample(6, generator)
    names = [a.name for a in audits(MIXTURE, x, TINY, lambda_min=1e-6)]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names} == {"gradient", "strangers", "paths", "variance", "flow", "log Z", "ranks"}
    families = {name.split("/")[1] for name in names if name.startswith("log Z/")}
    assert {"white levels", "box", "gaussian-blur", "block-means-4", "smooth-spectrum"} <= families
    run = {a.name: a.run for a in audits(MIXTURE, x, TINY, lambda_min=1e-6)}
    levels = [float(c.where.split()[1]) for c in run["log Z/white levels"]()]
    assert levels[0] == pytest.approx(MIXTURE.statistics.lambda_max, rel=0.01) and levels[-1] == 1e-6
    assert all(a > b for a, b in pairwise(levels))


def test_an_audit_of_the_suite_depends_on_its_seed_and_name_alone(generator):
    x = MIXTURE.sample(6, generator)

    def one(name: str, seed: int) -> list[Check]:
        return next(a.run for a in audits(MIXTURE, x, TINY, seed=seed) if a.name == name)()

    for name in ("gradient/box", "log Z/random-pixels", "ranks/inpaint-box", "flow/white 0.01"):
        assert one(name, 1) == one(name, 1) != one(name, 2)


def test_a_size_without_blocks_is_audited_without_them(generator):
    prior = make_power_law_gaussian(1, 3, 5)
    names = [a.name for a in audits(prior, prior.sample(4, generator), TINY)]
    assert not any("block" in name or "dct" in name for name in names) and "gradient/motion-blur" in names


def test_the_quick_suite_fails_no_exact_energy(generator):
    """But for one figure in about thirty beyond 3 standard errors of its own, which small samples underestimate."""
    model = EXACT["skewed"]
    found = [c for a in audits(model, model.sample(32, generator), AuditSize.quick(), lambda_min=1e-6) for c in a.run()]
    assert len(found) > 60 and sum(c.verdict == "pass" for c in found) > 25
    assert sum(c.verdict == "FAIL" for c in found) <= 1


def test_images_whose_chains_diverge_are_left_out_and_counted(generator):
    """Two of a hundred, each by itself; the rest are audited with the same random numbers from the start."""
    x = MIXTURE.sample(100, generator)
    bad, seen = [x[3], x[60]], []

    def run(images, generator=None):
        seen.append((len(images), float(torch.rand((), generator=generator))))
        at = [i for i, image in enumerate(images) if any(torch.equal(image, b) for b in bad)]
        if at:
            raise Diverged(1, 2, Covariance.white(0.1, x.shape), [at[0] + 2 * len(images)], len(images), "ancestral", 99.0)
        return [Check("variance", "here", "figure", 0.0, 0.1)]

    found = _where_chains_settle(run, x, torch.Generator().manual_seed(1))
    assert [n for n, _ in seen] == [100, 99, 98] and len({u for _, u in seen}) == 1
    assert [(c.what, c.value) for c in found] == [("figure", 0.0), ("images left out, whose chains diverged", 2.0)]
    assert len(_where_chains_settle(run, x[10:50])) == 1
    with pytest.raises(Diverged):
        _where_chains_settle(run, x[:8])


def test_few_effective_populations_leave_log_z_undecided_unless_it_is_too_high(monkeypatch):
    cov = Covariance.white(0.1, (1, 1, 4, 4))
    for log_weights, holds in (([0.0] * 8, True), ([0.0] + [-9.0] * 7, None), ([60.0] + [51.0] * 7, False), ([-20.0] * 8, False)):
        result = Partition.of(torch.tensor([log_weights], dtype=torch.float64))
        monkeypatch.setattr(sys.modules["anem.likelihood.audits"], "log_partition", lambda *a, result=result, **k: result)
        (check,) = audit_partition(MIXTURE, {"here": cov})
        assert check.holds is holds, log_weights
        assert ("4 populations, got" in check.criterion) == (holds is None)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="images"):
        next(audits(MIXTURE, torch.rand(1, 1, 4, 4)))
