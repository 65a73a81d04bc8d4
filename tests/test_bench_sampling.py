"""The bench of samples against network calls: its laws against closed forms and draws, its verdicts, and all of it at a tiny size."""

import math

import pytest
import torch
from bench_digits import made_up_digits, run_quick
from PIL import Image

from anem.bench import harness, sampling, sampling_curves, sampling_oracle
from anem.bench.harness import Context
from anem.bench.report import Report
from anem.bench.samplers import bridge_moments, chain_moments, random_covariance
from anem.bench.sampling import Size
from anem.bench.sampling_curves import FEW, MANY, Curve, report_changes
from anem.bench.sampling_law import Law, drawn_law, exact_law
from anem.bench.sampling_oracle import DISTANCE, Oracle, exact_figures, hidden_box
from anem.energy import NotFinite
from anem.gaussian import GaussianMixture, make_mixture
from anem.metrics import mean_statistic
from anem.sample import Geometric, VarianceGuided, as_kernel


def gaussian(side: int = 2) -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    d = side * side
    factor = torch.randn(d, d, generator=g, dtype=torch.float64) / (2 * d)
    mean = 0.5 + 0.1 * torch.randn(1, 1, side, side, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.ones(1), mean, (factor @ factor.T)[None])


# --- the law of a chain ---


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
@pytest.mark.parametrize("name", ["ancestral", "sde-2m", "sandwich"])
def test_the_law_of_a_chain_is_that_of_chains_fed_unit_vectors(name, basis, generator):
    """Against :func:`chain_moments`, which feeds one chain for every number drawn and knows no law of y; noisy ends denoised here."""
    prior, kernel = gaussian(), as_kernel(name)
    cov = random_covariance(basis, (1, 2, 2), 0.1, 10.0, generator)
    y = prior.sample(1, generator) + cov.sample(generator)
    schedule = Geometric(5, variance=0.02)
    mean, covariance = chain_moments(prior, y, cov, schedule, kernel)
    gain, offset = _denoiser(prior, schedule.end(cov))
    law = drawn_law(prior, cov, schedule, kernel)
    torch.testing.assert_close(law.offset + law.gain @ y.flatten(), gain @ mean + offset, rtol=0, atol=1e-10)
    torch.testing.assert_close(law.covariance, gain @ covariance @ gain.T, rtol=0, atol=1e-12)


def _denoiser(prior, cov):
    """D(y) = offset + gain y."""
    law = exact_law(prior, cov)
    return law.gain, law.offset


def test_the_exact_law_is_the_posterior(generator):
    prior = gaussian()
    cov = random_covariance("fourier", (1, 2, 2), 0.1, 10.0, generator)
    y = prior.sample(1, generator) + cov.sample(generator)
    posterior, law = prior.posterior(y, cov), exact_law(prior, cov)
    torch.testing.assert_close(law.offset + law.gain @ y.flatten(), posterior.mean.flatten())
    torch.testing.assert_close(law.covariance, posterior.covariance[0])


def test_many_steps_draw_from_the_posterior_and_order_two_gets_there_faster():
    prior = gaussian()
    cov, errors = hidden_box(prior, 0.1), {}
    exact = exact_law(prior, cov)
    for name in ("ancestral", "sde-2m"):
        for steps in (40, 80):
            errors[name, steps] = drawn_law(prior, cov, Geometric(steps), as_kernel(name)).wasserstein(exact) ** 0.5
    assert errors["ancestral", 80] < 0.6 * errors["ancestral", 40] and errors["sde-2m", 80] < 0.3 * errors["sde-2m", 40]
    assert errors["sde-2m", 80] < 0.02 * float(exact.covariance.trace()) ** 0.5


def test_the_variance_path_is_followed_too(generator):
    """As a Gaussian's κ is the same at every x, the recorded path of any one chain gives the same law."""
    from anem.bench.samplers import fully_observed
    from anem.sample import freeze

    prior = gaussian()
    cov = hidden_box(prior, 0.1)
    y = prior.sample(1, generator) + cov.sample(generator)
    listed = freeze(prior, fully_observed(y, cov, 1), VarianceGuided(6))
    laws = [drawn_law(prior, cov, schedule, as_kernel("bridge")) for schedule in (VarianceGuided(6), listed)]
    torch.testing.assert_close(laws[0].covariance, laws[1].covariance, rtol=1e-9, atol=0)


def test_the_bridge_moments_agree_in_one_step(generator):
    """One exact bridge step of a prior that is diagonal in the basis draws from the posterior."""
    prior = GaussianMixture(torch.ones(1), torch.full((1, 1, 2, 2), 0.5), torch.diag(torch.tensor([0.1, 0.2, 0.3, 0.4]))[None])
    cov = random_covariance("pixel", (1, 2, 2), 0.1, 10.0, generator)
    y = prior.sample(1, generator) + cov.sample(generator)
    law, end = drawn_law(prior, cov, Geometric(1), as_kernel("bridge")), Geometric(1).end(cov)
    mean, covariance = bridge_moments(prior, y, cov, end)
    gain, offset = _denoiser(prior, end)
    torch.testing.assert_close(law.offset + law.gain @ y.flatten(), gain @ mean + offset)
    torch.testing.assert_close(law.covariance, gain @ covariance @ gain.T)


def test_distances_of_laws_in_one_dimension():
    """E W₂² of N(a y + b, s²) from N(y, 1), y ~ N(m, v): (a − 1)² v + ((a − 1) m + b)² + (s − 1)²."""

    def law(gain, offset, s):
        return Law(*(torch.tensor(v, dtype=torch.float64) for v in ([[gain]], [offset], [[s * s]], [0.7], [[2.0]])))

    other = law(1.0, 0.0, 1.0)
    assert law(0.5, 0.1, 3.0).squared_error(other) == pytest.approx(0.25 * 2 + (-0.5 * 0.7 + 0.1) ** 2)
    assert law(0.5, 0.1, 3.0).wasserstein(other) == pytest.approx(0.25 * 2 + (-0.5 * 0.7 + 0.1) ** 2 + 4)
    assert other.wasserstein(other) == pytest.approx(0, abs=1e-12)


def test_several_components_are_refused():
    with pytest.raises(ValueError, match="one component, got 8"):
        drawn_law(make_mixture(8, 1, 2, 2), hidden_box(make_mixture(8, 1, 2, 2)), Geometric(1), as_kernel("ancestral"))


def test_figures_in_closed_form_are_those_of_drawn_chains():
    """The closed form is the mean over images of what the judge of draws says: 5 standard errors of 400 images of 20 draws."""
    parts = make_mixture(1, 1, 4, 4)
    cov, curve = hidden_box(parts), Curve("ancestral", "geometric")
    exact = exact_figures(parts, cov, curve, Geometric(4))
    g = torch.Generator().manual_seed(0)
    x = parts.sample(400, g)
    y = x + cov.expand(400).sample(g)
    setting = Oracle(parts, x, y, cov, parts.posterior(y, cov.expand(400)))
    scores = setting.scores(setting.draw("ancestral", 20, 1, Geometric(4)))
    ratios = scores["centre"] / scores["variance"]
    assert abs(float(ratios.mean()) - exact["squared error over posterior variance"]) < 5 * float(ratios.std()) / 20
    assert exact[DISTANCE] > 0.1


# --- figures of draws ---


def test_the_energy_score_is_least_for_exact_draws(generator):
    setting = Oracle.hidden_box(64, generator)
    exact = setting.posterior.sample(32, generator)
    best = float(setting.scores(exact)["score"].mean())
    centre = setting.posterior.mean
    for wrong in (centre + 0.5 * (exact - centre), centre + 2 * (exact - centre), exact + 0.1):
        assert float(setting.scores(wrong)["score"].mean()) > 1.01 * best


def test_exact_draws_have_the_posterior_variance(generator):
    """5 standard errors, those of images whose ratios scatter by chance alone: √(2/r) of 64 draws each with r ≥ 1 free directions."""
    setting = Oracle.hidden_box(64, generator)
    scores = setting.scores(setting.posterior.sample(64, generator))
    assert float(scores["centre"].sum() / scores["variance"].sum()) == pytest.approx(1, abs=5 * (2 / 4096) ** 0.5)


def test_budgets_become_steps():
    steps = {k: Curve(k, "geometric").path(9) for k in ("ancestral", "flow", "sandwich")}
    assert {k: s.steps for k, s in steps.items()} == {"ancestral": 8, "flow": 4, "sandwich": 2}
    assert Curve("sandwich", "geometric").path(4) is None


def judged(tmp_path, few, many, scales=None, diverged=()):
    """Largest change of per-image scores between few and many calls, and the verdict."""
    context = Context(Report("sampling", "c0ffee", 0, "c"), quick=False, out=tmp_path)
    curve = Curve("bridge", "geometric", diverged=list(diverged))
    for calls, values in ((FEW, few), (MANY, many)):
        if calls not in diverged:
            curve.add(calls, {"a": mean_statistic(values)}, len(values))
    report_changes(context, "x", curve, MANY, len(few), scales or {}, judged=True, draws=500)
    return context.report.figures[f"x/bridge, geometric: largest change from {FEW} to {MANY} calls"]


def test_a_change_holds_within_the_aim_relative_to_the_value_or_to_a_scale(tmp_path, generator):
    base = 1 + 0.5 * torch.rand(64, generator=generator, dtype=torch.float64)
    assert judged(tmp_path, 1.02 * base, base).holds
    assert judged(tmp_path, 1.02 * base, base).value == pytest.approx(0.02)
    assert not judged(tmp_path, 1.04 * base, base).holds
    assert not judged(tmp_path, 0.96 * base, base).holds  # better or worse makes no difference
    around = base - base.mean() + 1e-3
    assert judged(tmp_path, around + 0.02, around, {"a": 1.0}).value == pytest.approx(0.02)
    assert not judged(tmp_path, around + 0.02, around).holds


def test_changes_are_paired(tmp_path, generator):
    base = 1 + 0.5 * torch.rand(64, generator=generator, dtype=torch.float64)
    interval = {}
    for name, few in (("paired", 1.01 * base), ("shuffled", 1.01 * base.flip(0))):
        curve = Curve("bridge", "geometric")
        curve.add(FEW, {"a": mean_statistic(few)}, 64)
        curve.add(MANY, {"a": mean_statistic(base)}, 64)
        interval[name] = curve.changes(FEW, MANY, {}, 64, torch.Generator().manual_seed(0), 500)["a"]
    assert interval["paired"].high - interval["paired"].low < 1e-6 < 0.02 < interval["shuffled"].high - interval["shuffled"].low


@pytest.mark.parametrize("calls", [FEW, MANY])
def test_a_curve_that_diverged_misses_its_aim_and_has_no_change(tmp_path, calls):
    found = judged(tmp_path, torch.rand(8), torch.rand(8), diverged=[calls])
    assert found.value == "diverged" and found.holds is False


# --- all of it ---


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    # Eight images: with fewer a resample may hold one alone, of which KID knows nothing.
    monkeypatch.setattr(Size, "quick", lambda: Size(8, 2, 3, 12, (5, 6, 12), ("geometric",), ("bridge",)))
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    for module in (sampling, sampling_oracle, sampling_curves):
        monkeypatch.setattr(module, "FEW", 6)
        monkeypatch.setattr(module, "MANY", 12)
    return tmp_path


def test_every_figure_is_made_once_and_an_interrupted_run_continues(tiny, monkeypatch):
    monkeypatch.setattr(sampling, "LPIPS", lambda directory: lambda a, b: (a - b).abs().mean((1, 2, 3)))
    figures = run_quick(sampling.run, tiny).figures
    assert all(math.isfinite(float(f.value)) for k, f in figures.items() if k != "gaussian/choice")
    distances = {k.split("/")[1].removesuffix(", 6 calls"): f.value for k, f in figures.items() if k.endswith(f"6 calls/{DISTANCE}")}
    assert figures["gaussian/choice"].value == min(distances, key=distances.get) and len(distances) == 15
    assert {k.split("/")[2] for k in figures if k.startswith("digits/bridge, geometric, 5")} == {"PSNR of the mean (dB)", "LPIPS", "KID"}
    assert all(figures[f"memory/chain of 6 steps over {what}"].holds for what in ("one of 3 steps", "a training step"))
    assert float(figures["memory/chain of 6 steps over a network call"].value) >= 1
    pictures = {f"{part}.{kind}" for part in ("gaussian", "mixture", "digits") for kind in ("png", "csv")}
    assert pictures <= {p.name for p in (tiny / "out").iterdir()}
    assert Image.open(tiny / "out" / "digits.png").width > 1000
    for part in ("sample_posterior", "count"):
        monkeypatch.setattr(sampling, part, None)  # whatever calls it fails
    for part in ("run_chain", "drawn_law"):
        monkeypatch.setattr(sampling_oracle, part, None)
    assert run_quick(sampling.run, tiny).figures == figures


def test_a_kernel_that_diverges_leaves_a_gap_and_is_not_tried_again(tiny, monkeypatch):
    tried = []

    def diverges(*a, **k):
        tried.append(k["schedule"].steps)
        raise NotFinite("y")

    monkeypatch.setattr(sampling, "sample_posterior", diverges)
    context = Context(Report("sampling", "c0ffee", 0, "c"), quick=True, out=tiny / "out", model=str(tiny / "model"), data=tiny)
    for _ in range(2):
        context.made.clear()
        curves = sampling.digits(context, "bridge, geometric", Size(2, 2, 3, 12, (5,), ("geometric",), ("bridge",)))
        assert curves[0].diverged == [5] and curves[0].figures == {} and len(tried) == 1
    assert context.report.figures["digits/bridge, geometric, 5 calls/diverged"].value is True
    sampling_curves.plot_curves([*curves, Curve("bridge", "geometric", {5: {"a": 1.0}})], "t", tiny / "t.png")


def test_weights_that_are_missing_are_named_and_the_figure_left_out(tiny):
    context = Context(Report("sampling", "c0ffee", 0, "c"), quick=True, out=tiny / "out", model=str(tiny / "model"), data=tiny)
    sampling.digits(context, "bridge, geometric", Size(2, 2, 3, 12, (5,), ("geometric",), ("bridge",)))
    figures = context.report.figures
    assert "make data" in figures["digits/left out"].value and len(figures["digits/left out"].value.splitlines()) == 1
    assert not any("LPIPS" in key for key in figures) and "digits/bridge, geometric, 5 calls/KID" in figures
