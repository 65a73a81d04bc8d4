"""Estimation of degradation parameters against the dense Gaussian density of the measurement, in float64."""

import json
import math

import numpy as np
import pytest
import torch

from anem.blind import FAMILIES, Evidence, Family, Parameter, Posterior, choose, estimate
from anem.cli import main
from anem.cli.estimate import runner_up
from anem.covariance import Covariance
from anem.gaussian import Gaussian, make_power_law_gaussian, make_skewed
from anem.operators import Identity, Inpainting
from anem.random import generator_of

SIZE = (8, 8)
MODEL = make_power_law_gaussian(1, *SIZE, exponent=4.0)
PRIOR = torch.distributions.MultivariateNormal(MODEL.mean.flatten(), MODEL.dense.covariances[0])
TRUTH = {
    "white": [0.1],
    "box": [4, 0.6, 0.1],
    "box-anywhere": [3, 1, 4, 0.6, 0.1],
    "band": [3, 0.6, 0.1],
    "blur": [1.0, 0.02],
    "motion": [3.0, 40.0, 0.02],
    "super-resolution": [2, 0.02],
}
families = pytest.mark.parametrize("name", FAMILIES)


def measured(name, seed=0, theta=None):
    """A family and a measurement of a draw of the prior under it."""
    family, generator = FAMILIES[name](SIZE), torch.Generator().manual_seed(seed)
    operator, sigma = family.degradation(torch.tensor([theta or TRUTH[name]], dtype=torch.float64))
    return family, operator.measure(MODEL.sample(1, generator), sigma, generator)


def dense_evidence(family, m, theta):
    """log p(m given θ) of every row of θ, from the covariance matrix of m."""
    values = []
    for row in theta.split(1):
        operator, sigma = family.degradation(row)
        forward = operator(torch.eye(64, dtype=torch.float64).reshape(-1, 1, *SIZE)).flatten(1).T
        noise = (sigma.reshape(1, 1, *(sigma.shape[2:] or (1, 1))) ** 2).expand(1, 1, *SIZE).flatten()
        covariance = forward @ PRIOR.covariance_matrix @ forward.T + torch.diag(noise)
        values.append(torch.distributions.MultivariateNormal(forward @ PRIOR.mean, covariance).log_prob(m.flatten()))
    return torch.stack(values)


def curvature(function, u, free, step=1e-3):
    """Gradient and Hessian by central differences in the free coordinates."""
    e = step * torch.eye(len(u), dtype=torch.float64)[free]
    plus, minus = function(u + e), function(u - e)
    pairs = [[function((u + s * a + t * b)[None])[0] for s, t in ((1, 1), (1, -1), (-1, 1), (-1, -1))] for a in e for b in e]
    hessian = torch.stack([pp - pm - mp + mm for pp, pm, mp, mm in pairs]).reshape(len(e), len(e)) / (4 * step**2)
    return (plus - minus) / (2 * step), hessian


@families
def test_evidence_is_the_dense_density(name):
    """With the Jacobian and both unobserved terms: without any of them this fails wherever it has an entry."""
    family, m = measured(name)
    theta = torch.tensor([TRUTH[name], TRUTH[name]], dtype=torch.float64)
    theta[1, -1] = 2.5  # noise under which blurred frequencies are unobserved
    ours = Evidence(MODEL, m, family).grid(family.coordinates(theta))
    torch.testing.assert_close(ours, dense_evidence(family, m, theta), rtol=1e-8, atol=1e-6)


def test_the_energy_alone_has_its_maximum_elsewhere():
    """−U(y, Σ) without the terms, and without the Jacobian only, put the blur's width more than 5 standard errors off."""
    family, m = measured("blur")
    family = family.change({"sigma": 0.02})
    found = estimate(MODEL, m, family)
    stds = torch.linspace(0.3, 3.0, 60, dtype=torch.float64)
    operator, sigma = family.degradation(stds[:, None])
    seen = operator.observe(m, sigma, MODEL.statistics, torch.Generator().manual_seed(0))
    jacobian = operator.response(m.shape, m).abs().log().where(seen.observed, 0.0).sum((1, 2, 3))
    whole = seen.log_evidence(MODEL.energy)
    assert abs(float(stds[whole.argmax()] - found.theta[0])) < 0.05
    for mutant in (whole - seen.log_evidence_terms, whole + jacobian):
        assert abs(float(stds[mutant.argmax()] - found.theta[0])) > 5 * float(found.standard_error[0])


@pytest.mark.parametrize("name", ["white", "box", "blur"])
def test_estimate_and_standard_errors_are_those_of_the_dense_evidence(name):
    family, m = measured(name)
    found = estimate(MODEL, m, family)

    def exact(u):
        return dense_evidence(family, m, family.values(u))

    free = torch.tensor([p.continuous for p in family.parameters.values()])
    u = family.coordinates(found.theta[None])[0]
    gradient, hessian = curvature(exact, u, free)
    covariance = torch.linalg.inv(-hessian)
    assert float(gradient @ covariance @ gradient) < 1e-6  # squared distance to the maximum in standard errors
    slope = torch.tensor([float(p.value(v)) if p.scale == "log" else 1.0 for p, v in zip(family.parameters.values(), u, strict=True)])
    torch.testing.assert_close(found.standard_error[free], (slope[free] * covariance.diagonal().sqrt()), rtol=1e-3, atol=0)
    assert bool(found.standard_error[~free].isnan().all())
    best = exact(u[None])[0]
    assert found.log_evidence == pytest.approx(float(best), abs=1e-6)
    likely = found.posterior.log_evidence > found.log_evidence - 10
    assert bool((exact(found.posterior.centres[likely][:40]) <= best + 1e-9).all())


def spectral_evidence(m, gain, sigma):
    """log p(m) of a stationary Gaussian after a convolution, in closed form; ``gain`` is h, sigma (P,)."""
    variance = gain.abs().square() * MODEL.variance + sigma[:, None, None, None] ** 2
    residual = torch.fft.fft2(m, norm="ortho") - gain * torch.fft.fft2(MODEL.mean, norm="ortho")
    return -0.5 * (residual.abs().square() / variance + (2 * math.pi * variance).log()).sum((1, 2, 3))


def exact_posterior(log_evidence, theta):
    """Mean, standard deviation, 5 % and 95 % points of a marginal, from a dense grid (N, …) whose first axis is θ."""
    p = log_evidence.flatten(1).logsumexp(1).softmax(0)
    mean = (p * theta).sum()
    ends = np.interp([0.05, 0.95], (p.cumsum(0) - p / 2).numpy(), theta.numpy())
    return mean, (p * (theta - mean).square()).sum().sqrt(), torch.from_numpy(ends)


def test_posterior_of_one_parameter_is_the_exact_one():
    family, m = measured("white", theta=[0.3])
    posterior = estimate(MODEL, m, family).posterior
    u = torch.linspace(math.log(0.003), math.log(3.0), 6001, dtype=torch.float64)
    evidence = spectral_evidence(m, torch.ones(1, 1, 1, 1), u.exp())
    mean, std, ends = exact_posterior(evidence[:, None], u.exp())
    assert posterior.resolved
    assert float(posterior.mean[0]) == pytest.approx(float(mean), abs=0.02 * float(std))
    assert float(posterior.std[0]) == pytest.approx(float(std), rel=0.02)
    torch.testing.assert_close(posterior.interval(0.9)[0], ends, rtol=0, atol=0.1 * float(std))
    density = evidence.softmax(0) / (u[1] - u[0])
    assert posterior.entropy == pytest.approx(float(-(density.xlogy(density) * (u[1] - u[0])).sum()), abs=0.02)
    assert posterior.log_marginal == pytest.approx(float(evidence.logsumexp(0)) - math.log(len(u) - 1), abs=0.01)


def test_ends_of_intervals_between_wide_cells():
    """Of a Gaussian in cells of 1.5 standard deviations, wherever these begin: within 0.06 (a density constant in cells: 0.27)."""
    family = FAMILIES["white"]((8, 8))
    low, high = family.parameters["sigma"].bounds()
    for place in torch.linspace(0, 1, 9, dtype=torch.float64):
        std = (high - low) / 60
        centres = (low + high) / 2 + 1.5 * std * (torch.arange(-9, 10)[:, None].double() + place)
        value = -0.5 * ((centres[:, 0] - (low + high) / 2) / std).square()
        posterior = Posterior(family, centres, torch.full_like(centres, 1.5 * std), value)
        ends = (family.coordinates(posterior.interval(0.9).T)[:, 0] - (low + high) / 2) / std
        torch.testing.assert_close(ends, torch.tensor([-1.6449, 1.6449], dtype=torch.float64), rtol=0, atol=0.06)


def test_a_grid_draws_only_for_what_is_not_observed():
    family, m = measured("box", theta=[4, 0.3, 0.1])
    evidence = Evidence(MODEL, m, family, draws=4)
    u = family.coordinates(torch.tensor([[4, 0.3, 0.1], [4, 1e5, 0.1], [2, 0.2, 0.1]], dtype=torch.float64))
    alone = torch.stack([evidence.grid(row[None])[0] for row in u])
    evidence.calls = 0
    torch.testing.assert_close(evidence.grid(u), alone, rtol=1e-12, atol=0)
    assert evidence.calls == 1 + 4 + 1


def test_posterior_of_two_parameters_is_the_exact_one():
    family, m = measured("blur", theta=[1.0, 0.03])
    posterior = estimate(MODEL, m, family).posterior
    std = torch.linspace(0.3, 3.0, 271, dtype=torch.float64)
    u = torch.linspace(math.log(0.003), math.log(3.0), 300, dtype=torch.float64)
    gain = family.degradation(torch.stack([std, std], 1))[0].response(m.shape, m)
    evidence = torch.stack([spectral_evidence(m, gain, v.exp().expand(len(std))) for v in u], 1)
    for a, (grid, surface) in enumerate(((std, evidence), (u.exp(), evidence.T))):
        mean, deviation, ends = exact_posterior(surface, grid)
        assert float(posterior.mean[a]) == pytest.approx(float(mean), abs=0.03 * float(deviation))
        assert float(posterior.std[a]) == pytest.approx(float(deviation), rel=0.03)
        torch.testing.assert_close(posterior.interval(0.9)[a], ends, rtol=0, atol=0.15 * float(deviation))
    expected = float(evidence.flatten().logsumexp(0)) - math.log(270 * 299)
    assert posterior.log_marginal == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("side", [2, 4, 6])
def test_box_side_and_noise_are_recovered(side):
    """σ within 4 standard errors (false alarm 1e-4 each); the side exactly, at three times the noise or more."""
    family, m = measured("box", seed=side, theta=[side, 0.6, 0.1])
    found = estimate(MODEL, m, family)
    assert found.named()["side"] == side
    assert bool(((found.theta - torch.tensor([side, 0.6, 0.1])).abs()[1:] < 4 * found.standard_error[1:]).all())
    low, high = found.posterior.interval(0.9)[0].tolist()
    assert low <= side <= high and low == round(low) and high == round(high)
    second = found.posterior.theta[found.posterior.runner_up()]
    assert int(second[0]) != side


def test_box_position_is_recovered():
    family, m = measured("box-anywhere")
    found = estimate(MODEL, m, family.change({"sigma_in": 0.6, "sigma_out": 0.1}))
    assert found.theta.tolist() == TRUTH["box-anywhere"][:3]
    operator, sigma = found.degradation()
    assert operator.is_identity and int((sigma > 0.5).sum()) == 9


@pytest.mark.parametrize("truth", [[8, 15, 3, 0.5, 0.1], [10, 5, 12, 0.5, 0.1], [20, 3, 5, 0.3, 0.05]])
def test_a_box_anywhere_is_found_although_the_first_cells_are_blocks(truth):
    """With both σ unknown, at the size of digits, where cells alone end on a neighbour: best of all integers next to it, resolved."""
    prior = Gaussian(torch.zeros(1, 28, 28), Covariance.white(0.01, (1, 1, 28, 28)))
    family, generator = FAMILIES["box-anywhere"]((28, 28)), torch.Generator().manual_seed(0)
    theta = torch.tensor([truth], dtype=torch.float64)
    operator, sigma = family.degradation(theta)
    m = operator.measure(0.1 * torch.randn(1, 1, 28, 28, generator=generator, dtype=torch.float64), sigma, generator)
    found = estimate(prior, m, family)
    assert found.theta[:3].tolist() == truth[:3] and found.posterior.resolved
    assert bool(((found.theta - theta[0]).abs()[3:] < 4 * found.standard_error[3:]).all())
    moves = torch.cartesian_prod(*3 * [torch.arange(-1.0, 2.0)], *2 * [torch.zeros(1)]).double()
    beside = Evidence(prior, m, family).grid(family.coordinates(found.theta[None]) + moves)
    assert float(beside.max()) == pytest.approx(found.log_evidence, abs=1e-6)
    low, high = found.posterior.interval(0.9)[3:].T
    assert bool((high - low < 5 * found.standard_error[3:]).all() and (high - low > 2 * found.standard_error[3:]).all())


def test_where_cells_stay_too_coarse_the_runner_up_is_behind_the_summit():
    prior = Gaussian(torch.zeros(1, 28, 28), Covariance.white(0.01, (1, 1, 28, 28)))
    family, generator = FAMILIES["box-anywhere"]((28, 28)), torch.Generator().manual_seed(0)
    operator, sigma = family.degradation(torch.tensor([[20, 3, 5, 0.3, 0.05]], dtype=torch.float64))
    m = operator.measure(0.1 * torch.randn(1, 1, 28, 28, generator=generator, dtype=torch.float64), sigma, generator)
    found = estimate(prior, m, family, budget=1000)
    assert found.theta[:3].tolist() == [20, 3, 5] and not found.posterior.resolved
    assert found.highest == found.log_evidence > float(found.cells.log_evidence.max()) + 50
    assert runner_up(found)["behind"] > 50


def test_the_impossible_has_no_evidence():
    family, m = measured("box-anywhere")
    corners = torch.tensor([[5, 6, 6, 0.6, 0.1], [6, 6, 0, 0.6, 0.1]], dtype=torch.float64)
    assert Evidence(MODEL, m, family).grid(family.coordinates(corners)).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("height", [2, 5])
def test_a_band_is_recovered(height):
    """Its height exactly and both σ within 4 standard errors, all three unknown."""
    family, m = measured("band", seed=height, theta=[height, 0.6, 0.1])
    found = estimate(MODEL, m, family)
    assert float(found.theta[0]) == height
    assert bool(((found.theta - torch.tensor([height, 0.6, 0.1])).abs()[1:] < 4 * found.standard_error[1:]).all())


@pytest.mark.parametrize("name, tolerance", [("super-resolution", 0), ("motion", 0.5)])
def test_blurs_are_recovered(name, tolerance):
    family, m = measured(name)
    found = estimate(MODEL, m, family.change({"sigma": 0.02}))
    assert abs(float(found.theta[0]) - TRUTH[name][0]) <= tolerance
    if name == "motion":
        assert abs(float(found.theta[1]) - 40) < 4 * float(found.posterior.std[1])


@pytest.mark.parametrize("name", ["white", "box", "blur"])
def test_the_right_family_is_chosen(name):
    _, m = measured(name, theta={"blur": [1.0, 0.1]}.get(name))
    known = [FAMILIES[other](SIZE) for other in ("white", "box", "blur")]
    choice = choose(MODEL, m, known)
    assert choice.best.family.name == name and choice.resolved
    assert not choose(MODEL, m, known, budget=4, refine=False).resolved
    assert float(choice.probabilities.sum()) == pytest.approx(1)
    assert choice.log_marginal[choice.order].tolist() == sorted(choice.log_marginal.tolist(), reverse=True)


def test_draws_are_shared_by_all_parameters_and_averaged():
    """A prior for which the unobserved terms are not exact: K draws are log-mean-exp of single ones, whatever the batch."""
    model = make_skewed(1, *SIZE)
    family, m = measured("blur", theta=[2.0, 0.5])
    u = family.coordinates(torch.tensor([[2.0, 0.5], [1.5, 1.0]], dtype=torch.float64))
    operator, sigma = family.degradation(family.values(u))
    seen = [operator.observe(m, sigma, model.statistics, generator_of(0, "unobserved", k)) for k in range(3)]
    single = torch.stack([s.log_evidence(model.energy) for s in seen])
    torch.testing.assert_close(Evidence(model, m, family, draws=1).grid(u), single[0])
    assert float(single.std(0).min()) > 0
    both = Evidence(model, m, family, draws=3).grid(u)
    torch.testing.assert_close(both, single.logsumexp(0) - math.log(3))
    torch.testing.assert_close(Evidence(model, m, family, draws=3).grid(u[1:]), both[1:])


# --- cells ---


def cells(parameter, centres, log_evidence, width):
    family = Family("test", {"p": parameter}, lambda s: (Identity(), s["p"]))
    u = torch.tensor(centres, dtype=torch.float64)[:, None]
    return Posterior(family, u, torch.full_like(u, width), torch.tensor(log_evidence, dtype=torch.float64))


def test_first_cells_tile_the_range():
    for parameter in (Parameter(1, 17, "integer", 6), Parameter(3, 3, "integer"), Parameter(0.1, 10.0, "log"), Parameter(-1, 2)):
        centres, widths = parameter.partition()
        low, high = parameter.bounds()
        edges = torch.cat([(centres - widths / 2), (centres + widths / 2)[-1:]])
        torch.testing.assert_close(edges[1:], (centres + widths / 2))
        assert float(edges[0]) == pytest.approx(low) and float(edges[-1]) == pytest.approx(high)
        if not parameter.continuous:
            assert torch.equal(centres, centres.round())


def test_an_angle_is_averaged_the_shorter_way_round():
    posterior = cells(Parameter(0, 180, "linear", 4, periodic=True), [179.0, 1.0, 90.0], [0.0, 0.0, -40.0], 2.0)
    assert float(posterior.mean[0]) % 180 == pytest.approx(0, abs=1e-9) or float(posterior.mean[0]) == pytest.approx(180)
    assert float(posterior.std[0]) == pytest.approx(1)
    low, high = posterior.interval(0.5)[0].tolist()
    assert high - low < 4


def test_interval_entropy_and_runner_up_of_integers():
    posterior = cells(Parameter(1, 4, "integer"), [1.0, 2.0, 3.0, 4.0], [math.log(p) for p in (0.02, 0.9, 0.07, 0.01)], 1.0)
    assert posterior.interval(0.9)[0].tolist() == [2.0, 3.0]
    assert posterior.interval(0.5)[0].tolist() == [2.0, 2.0]
    assert posterior.theta[posterior.runner_up()].tolist() == [3.0]
    assert posterior.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.02, 0.9, 0.07, 0.01)))
    assert posterior.log_marginal == pytest.approx(math.log(1 / 4))


def test_runner_up_of_a_continuous_parameter_is_another_maximum():
    parameter = Parameter(0, 5, "linear")
    one = cells(parameter, [0.5, 1.5, 2.5, 3.5, 4.5], [-9.0, -1.0, 0.0, -2.0, -5.0], 1.0)
    two = cells(parameter, [0.5, 1.5, 2.5, 3.5, 4.5], [-9.0, 0.0, -5.0, -2.0, -3.0], 1.0)
    ripple = cells(parameter, [0.5, 1.5, 2.5, 3.5, 4.5], [-9.0, 0.0, -0.4, -0.2, -1.1], 1.0)
    assert one.runner_up() is None
    assert two.runner_up() == 3
    assert ripple.runner_up() is None


def test_budget_stops_the_search_and_says_so():
    family, m = measured("white")
    posterior = estimate(MODEL, m, family, budget=1, refine=False).posterior
    assert not posterior.resolved and len(posterior.centres) == 5


def test_an_estimate_at_the_end_of_its_range_has_no_standard_error():
    family, m = measured("white")
    found = estimate(MODEL, m, family.change({"sigma": Parameter(0.5, 3.0, "log")}))
    assert float(found.theta[0]) == pytest.approx(0.5) and bool(found.at_edge[0])
    assert math.isnan(float(found.standard_error[0]))


@pytest.mark.parametrize(
    "fails, message",
    [
        (lambda m, f: estimate(MODEL, m.expand(2, -1, -1, -1), f), "measurement: wanted one"),
        (lambda m, f: estimate(MODEL, m, f, draws=0), "draws"),
        (lambda m, f: choose(MODEL, m, []), "families"),
        (lambda m, f: estimate(MODEL, m, "fog"), "family: wanted one of white, box, .*, got 'fog'"),
        (lambda m, f: f.change({"std": 1.0}), "settings among sigma, got std"),
        (lambda m, f: f.change({"sigma": 1.0}), "at least one unknown"),
        (lambda m, f: f.change({"sigma": math.nan}), "sigma: wanted a finite number >= 0"),
        (lambda m, f: FAMILIES["box"](SIZE).change({"side": math.inf}), "side: wanted a whole number, got inf"),
        (lambda m, f: f.degradation(torch.ones(3, 2)), r"theta: wanted \(P, 1\)"),
        (lambda m, f: Parameter(0.0, 1.0, "log"), "low > 0"),
        (lambda m, f: Parameter(2.0, 1.0), "low < high"),
        (lambda m, f: estimate(MODEL, m, f).posterior.interval(1.0), "mass"),
    ],
)
def test_what_cannot_be_estimated_is_refused(fails, message):
    family, m = measured("white")
    with pytest.raises(ValueError, match=message):
        fails(m, family)


def test_masks_that_leave_different_pixels_measured_are_refused():
    def build(s):
        return Inpainting(torch.stack([(torch.arange(64).reshape(1, 8, 8) >= int(k)).double() for k in s["hidden"]])), s["sigma"]

    family = Family("mask", {"hidden": Parameter(1, 5, "integer"), "sigma": 0.1}, build)
    with pytest.raises(ValueError, match="same entries measured"):
        estimate(MODEL, measured("white")[1], family)


@pytest.mark.parametrize("name, least", [("box", 2), ("band", 2), ("box-anywhere", 3), ("motion", 3)])
def test_images_without_room_for_a_family_are_refused(name, least):
    FAMILIES[name]((1, 1, least, least))
    with pytest.raises(ValueError, match=f"{name}: wanted images of at least {least} x {least} pixels, got 1 x 1"):
        FAMILIES[name]((1, 1, 1, 1))


def test_a_family_has_a_name_and_a_choice_the_settings_of_an_estimate():
    family, m = measured("white")
    own, named = estimate(MODEL, m, family), estimate(MODEL, m, "white")
    assert torch.equal(own.theta, named.theta) and own.log_evidence == named.log_evidence
    coarse = choose(MODEL, m, ["white", family], refine=False, correct=False).estimates
    assert all(torch.equal(e.theta, estimate(MODEL, m, family, refine=False, correct=False).theta) for e in coarse)


def test_arrays_are_estimated_as_tensors_are():
    family, m = measured("white")
    theta = [estimate(MODEL, image, family, refine=False).theta for image in (m, m.float(), m[0, 0].float().numpy())]
    assert torch.equal(theta[1], theta[2]) and torch.allclose(theta[0], theta[2])
    with pytest.raises(ValueError, match="images: wanted at least one image of at least one pixel"):
        estimate(MODEL, np.zeros((0, 0), np.float32), family)


# --- the command ---


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run ``anem estimate`` on a noisy image with an exact model: exit code, standard output, standard error."""
    monkeypatch.setattr("anem.hub.load", lambda name, device="cpu": MODEL)
    np.save(tmp_path / "m.npy", measured("white")[1][0, 0].float().numpy())
    np.save(tmp_path / "clean.npy", MODEL.sample(1, torch.Generator().manual_seed(1)).clamp(0, 1)[0, 0].float().numpy())

    def run(image, *options):
        code = main(["estimate", str(tmp_path / image), "--out", str(tmp_path / "out"), *options])
        return code, *capsys.readouterr()

    return run


def test_the_command_compares_families(command, tmp_path):
    code, out, err = command("m.npy", "--family", "white", "blur", "--json")
    assert code == 0, err
    record = json.loads(out)
    (image,) = record["images"]
    assert [e["family"] for e in image["estimates"]] == ["white", "blur"]
    assert sum(e["probability"] for e in image["estimates"]) == pytest.approx(1)
    found = estimate(MODEL, measured("white")[1].float(), FAMILIES["white"](SIZE))
    (sigma,) = image["estimates"][0]["parameters"]
    assert sigma["estimate"] == pytest.approx(float(found.theta[0]), rel=1e-5)
    assert sigma["interval_90"] == pytest.approx(found.posterior.interval(0.9)[0].tolist(), rel=1e-5)
    assert image["estimates"][0]["runner_up"] is None
    assert json.loads((tmp_path / "out" / "result.json").read_text())["files"] == ["m_blur.png", "m_white.png"]
    assert (tmp_path / "out" / "m_white.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_degrades_clean_images_and_prints_a_table(command):
    code, out, err = command(
        "clean.npy", "--family", "box", "--truth", "side=4", "sigma_in=1.5", "sigma_out=0.05", "--known", "sigma_in=1.5"
    )
    assert code == 0, err
    row = next(line for line in out.splitlines() if "side" in line)
    assert "box" in row and "4 to 4" in row


@pytest.mark.parametrize("budget", [1, 5000])
def test_an_interval_of_cells_that_are_too_coarse_is_marked(command, budget, tmp_path):
    """With one look a family the first cells stay, a factor e^1.4 wide each; the evidence of 64 pixels is ten times narrower."""
    code, out, err = command("m.npy", "--family", "white", "--budget", str(budget))
    assert code == 0, err
    (family,) = json.loads((tmp_path / "out" / "result.json").read_text())["images"][0]["estimates"]
    resolved = budget > 1
    assert family["resolved"] is resolved
    assert ("not resolved" not in " ".join(out.split())) is resolved
    low, high = family["parameters"][0]["interval_90"]
    assert resolved or math.log(high / low) < math.log(1000) / 5


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "--family: wanted one or more of white"),
        (("--family", "white", "--budget", "0"), "wanted --budget and --draws >= 1, got 0 and 4"),
        (("--family", "white", "--draws", "0"), "got 5000 and 0"),
        (("--family", "fog"), "got fog"),
        (("--family", "white", "--known", "std=1"), "no setting std"),
        (("--family", "white", "--known", "sigma"), "NAME=VALUE"),
        (("--family", "white", "--known", "sigma=true"), "--known: wanted NAME=VALUE with a number, got 'sigma=True'"),
        (("--family", "blur", "--known", "sigma=1", "sigma=2"), "--known: wanted sigma once, got 1 and 2"),
        (("--family", "white", "--truth", "std=1"), "--truth: wanted sigma"),
        (("--family", "white", "--known", "sigma=0.1"), "at least one unknown"),
        (("--family", "super-resolution", "--known", "factor=100"), "factor: wanted 1 to 8, got 100"),
        (("--family", "super-resolution", "--known", "factor=2.6"), "factor: wanted a whole number, got 2.6"),
        (("--family", "super-resolution", "--truth", "factor=-3", "sigma=0.1"), "factor: wanted a finite number >= 0, got -3"),
        (("--family", "box", "--known", "side=100"), "box: wanted a rectangle inside 8 x 8, got top -46, left -46"),
        (("--family", "box-anywhere", "--known", "side=100"), "wanted a family with some possible parameters, got none"),
    ],
)
def test_the_command_refuses_in_one_line(command, options, message):
    code, out, err = command("clean.npy", *options)
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1
