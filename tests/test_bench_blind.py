"""The bench of blind estimation: what it degrades and counts, and all of it at a tiny size."""

import math

import pytest
import torch
from bench_digits import made_up_digits, run_quick

from anem.bench import blind, harness
from anem.bench.blind import CHOSEN, BaseEnergy, Size, family_measurements, summarise
from anem.bench.blind_plot import Found
from anem.bench.harness import Context
from anem.blind import FAMILIES, estimate
from anem.covariance import Covariance
from anem.gaussian import Gaussian, make_mixture, make_power_law_gaussian
from anem.hub import load


def test_the_base_energy_is_exact_for_independent_coordinates(generator):
    cov = Covariance(torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64))
    prior = Gaussian(torch.full((1, 8, 8), 0.4, dtype=torch.float64), cov)
    base, y = BaseEnergy(prior.statistics), torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    for basis in ("pixel", "fourier", "dct2"):
        noise = Covariance.white(0.1, y.shape, basis, y)
        torch.testing.assert_close(base.energy(y, noise), prior.energy(y, noise))


def test_families_have_the_same_measurement_error(generator):
    """Mean squared errors over many images agree within 5 standard errors, estimated from the images."""
    x = make_mixture(8).sample(300, generator)
    widths = [1.0] * len(x)
    measured, names = family_measurements(x, widths, generator)
    assert names[:4] == ["box", "blur", "white", "box"]
    blurred = FAMILIES["blur"](x.shape).degradation(torch.tensor([[1.0, 0.05]], dtype=x.dtype))[0](x)
    wanted = (blurred - x).square().mean((1, 2, 3)) + 0.05**2
    excess = (measured - x).square().mean((1, 2, 3)) - wanted
    for i in range(3):
        assert abs(float(excess[i::3].mean())) < 5 * float(excess[i::3].std()) / 100**0.5
    assert len(set(CHOSEN)) == 3


def test_summaries_count_what_they_say(generator):
    family = FAMILIES["box"]((8, 8)).change({"sigma_in": 1.0})
    prior = make_power_law_gaussian(1, 8, 8)
    e = estimate(prior, prior.sample(1, generator), family, draws=1, budget=50, refine=False)
    (side, outside), (low, high) = e.theta.tolist(), e.posterior.interval(0.9)[1].tolist()
    found = Found(family, e.theta[None], e.posterior.interval(0.9)[None], torch.tensor([True]))
    theta = torch.tensor([[side + step, outside] for step in (0, 1, 2)], dtype=torch.float64)
    shifted = Found(family, theta, found.interval.expand(3, -1, -1), torch.tensor([True, False, True]))
    summary = summarise(shifted, [(side, outside / 1.25)] * 3)
    assert summary["side within one"] == pytest.approx(2 / 3) and summary["side exact"] == pytest.approx(1 / 3)
    assert summary["sigma_out, median relative error"] == pytest.approx(0.25)
    assert summary["posteriors as fine as asked for"] == pytest.approx(2 / 3)
    assert summarise(found, [(side, (low + high) / 2)])["sigma_out, coverage of 90 % intervals"] == 1.0
    assert summarise(found, [(side, high * 1.01)])["sigma_out, coverage of 90 % intervals"] == 0.0


def test_every_figure_is_made_once_and_an_interrupted_run_continues(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    tiny = Size(images=1, beside=False, outside=(0.1,), ratios=(2.0,), sigmas=(0.05,), families=1, small=1, budget=60, draws=1)
    monkeypatch.setattr(Size, "quick", lambda: tiny)
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    monkeypatch.setattr(Context, "load", lambda self, name: BaseEnergy(load(name).statistics))
    monkeypatch.setattr(blind, "learn", lambda prior, folder, seed, generator, quick: make_power_law_gaussian(1, 8, 8))
    figures = run_quick(blind.run, tmp_path).figures
    assert all(math.isfinite(float(f.value)) for k, f in figures.items() if "commit" not in k)
    aims = {k.split("/")[-1]: f.aim for k, f in figures.items() if f.aim}
    assert aims["side within one"] == "≥ 0.95" and aims["std, coverage of 90 % intervals"] == "0.85–0.95" and aims["right"] == "≥ 0.95"
    for section in ("box", "blur", "family"):
        assert -1 <= float(figures[f"8 × 8/{section}/loss"].value) <= 1
    assert "box-sigma_out-0.1-ratio-2-model.png" in {p.name for p in (tmp_path / "out").iterdir()}
    for part in ("estimate", "choose", "learn"):
        monkeypatch.setattr(blind, part, None)  # whatever calls it fails
    assert run_quick(blind.run, tmp_path).figures == figures


def test_models_of_the_ablation_that_are_missing_are_named_before_anything_is_done(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    monkeypatch.setattr(Size, "quick", lambda: Size(images=1, families=1, small=1))
    monkeypatch.setattr(blind, "estimate", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"weight-0.*default.*no model there; `anem bench ablation` trains them"):
        run_quick(blind.run, tmp_path)
