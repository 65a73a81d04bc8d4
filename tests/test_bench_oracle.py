"""The oracle bench: its errors in closed form, its accounts by group, calibration, interruption."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from training_fakes import make_config, make_parts

from anem.bench import oracle
from anem.bench.harness import Context
from anem.bench.report import Report
from anem.bench.variants import VARIANTS, train_variant
from anem.calibrate import calibrate
from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.data import ImageData
from anem.gaussian import Gaussian, make_mixture, make_skewed
from anem.losses import LossConfig
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train import TrainConfig


def white(c, mean=0.5, shape=(1, 8, 8)):
    """A Gaussian of independent pixels."""
    return Gaussian(torch.full(shape, mean).double(), Covariance.white(c, (1, *shape), like=torch.zeros((), dtype=torch.float64)))


def context(tmp_path, quick=True):
    return Context(Report("oracle", "commit", 0, "command"), quick=quick, out=tmp_path)


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
@pytest.mark.parametrize("lam", [0.03, 0.3])
def test_errors_of_a_wrong_prior_variance_are_the_closed_forms(basis, lam, generator):
    """With c′ for c: D − D* = (g′ − g)ρ with g = c/(c + λ), V − V* = λ(g′ − g), 2∂U/∂ℓ = (λ/t)(1 − ρ²/t), A-DSM floor g."""
    c, wrong, d = 0.06, 0.09, 64
    right, model = white(c).double(), white(wrong).double()
    cov = Covariance.white(lam, (5, 1, 8, 8), basis, like=torch.zeros((), dtype=torch.float64))
    y = right.sample(5, generator) + cov.sample(generator)
    at = oracle.errors(model, right(y, cov), right.statistics)
    power = cov.basis.power(y - 0.5)
    g, g_wrong = c / (c + lam), wrong / (wrong + lam)
    quadratic = power.flatten(1).sum(1)
    energy = 0.5 * (quadratic / d * (1 / (wrong + lam) - 1 / (c + lam)) + math.log((wrong + lam) / (c + lam)))

    def logvar(c):
        return 0.5 * lam / (c + lam) * (1 - power / (c + lam))

    expected = {
        "energy": energy,
        "excess": (g_wrong - g) ** 2 * quadratic / d / lam,
        "floor": torch.full((5,), g, dtype=torch.float64),
        "logvar": (logvar(wrong) - logvar(c)).square().flatten(1).mean(1),
        "variance": torch.full((5,), abs(g_wrong - g) / g, dtype=torch.float64),
        "variance_little": torch.full((5,), abs(g_wrong - g) / g if lam < c else 0.0, dtype=torch.float64),
        "little": torch.full((5,), float(lam < c), dtype=torch.float64),
    }
    assert at.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(at[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_the_truth_has_no_error_and_a_constant_is_all_bias(generator):
    prior = make_skewed(1, 4, 4)
    cases = oracle.draw_cases(prior, oracle.noise_config(prior), 40, generator, chunk=16)
    assert [len(e.y) for e in cases.exact] == [16, 16, 8]

    class Shifted(torch.nn.Module):
        def forward(self, y, cov):
            exact = prior(y, cov)
            return replace(exact, energy=exact.energy + 1.6)

    for model, bias in ((prior, 0.0), (Shifted(), 0.1)):
        parts = [oracle.errors(model, e, prior.statistics) for e in cases.exact]
        at = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
        values = oracle.summarise(at, torch.ones(40, dtype=torch.bool))
        assert values[oracle.BIAS] == pytest.approx(bias, abs=1e-10)
        assert values[oracle.MAE] == pytest.approx(bias, abs=1e-10)
        assert all(abs(v) < 1e-10 for name, v in values.items() if not name.startswith("energy"))


def test_summary_is_by_sums_over_images_not_by_ratios_of_each():
    at = {"energy": torch.tensor([0.1, -0.3, 9.0]), "excess": torch.tensor([1.0, 2.0, 9.0]), "floor": torch.tensor([4.0, 6.0, 9.0])}
    at |= {"logvar": torch.tensor([1.0, 7.0, 9.0]), "variance": torch.tensor([0.2, 0.4, 9.0])}
    at |= {"variance_little": torch.tensor([0.1, 0.0, 9.0]), "little": torch.tensor([0.5, 0.0, 1.0])}
    values = oracle.summarise(at, torch.tensor([True, True, False]))
    assert list(values.values()) == pytest.approx([-0.1, 0.2, 0.3, 2.0, 0.3, 0.2])
    assert math.isnan(oracle.summarise(at, torch.tensor([False, True, False]))[oracle.METRICS[-1]])


def test_families_and_bases_and_decades_each_partition_the_cases(generator):
    prior = make_mixture(2, 1, 4, 4)
    cases = oracle.draw_cases(prior, oracle.noise_config(prior), 200, generator)
    found = list(oracle.groups(cases))
    for kind in ("family", "basis", "decade", "all"):
        assert (torch.stack([chosen for k, _, chosen in found if k == kind]).sum(0) == 1).all(), kind
    assert found[-1][:2] == ("all", "all")
    by_basis = {name: chosen for kind, name, chosen in found if kind == "basis"}
    bases = [e.cov.basis.bases[i].name for e in cases.exact for i in e.cov.basis.index.tolist()]
    assert all(torch.tensor([b == name for b in bases]).equal(chosen) for name, chosen in by_basis.items())


def test_noise_stays_within_a_thousand_times_the_pixel_variance(generator):
    prior = make_mixture(2, 1, 8, 8)
    c = (prior.sample(4000, generator) - prior.statistics.mean_image(prior.means)).square().mean()
    values = torch.cat([e.cov.values for e in oracle.draw_cases(prior, oracle.noise_config(prior), 300, generator).exact])
    assert 0.9e-3 < values.min() / c < 1.5e-3 and 0.7e3 < values.max() / c < 1.1e3


def test_every_image_is_seen_once():
    data = ImageData(torch.zeros(10 * oracle.BATCH, 1, 8, 8))
    seen = torch.cat([data.indices(step * oracle.BATCH, oracle.BATCH, seed=3) for step in range(10)])
    assert seen.sort().values.equal(torch.arange(10 * oracle.BATCH))
    assert oracle.FULL.images % oracle.BATCH == oracle.QUICK.images % oracle.BATCH == 0


def test_variants_differ_in_what_their_names_say():
    base = TrainConfig(output="runs/x", weight=1.0, loss=LossConfig(balance=0.5, collective=0.1))
    configs = {v.name: v.config(base, 64) for v in VARIANTS}
    assert {n: (c.weight, c.loss.balance, c.loss.collective, c.model.overrides["form"]) for n, c in configs.items()} == {
        "default": (1.0, 0.5, 0.1, "anchored"),
        "weight-1-over-d": (1 / 64, 0.5, 0.1, "anchored"),
        "weight-0": (0.0, 0.5, 0.1, "anchored"),
        "paper": (1 / 64, 0.0, 0.0, "inner"),
    }
    assert len({c.output for c in configs.values()}) == len(VARIANTS)


def inner_network(c=0.06):
    images = 0.5 + c**0.5 * torch.randn(2000, 1, 8, 8)
    return EnergyNetwork(NetworkConfig.preset("tiny").override(form="inner"), DataStatistics.fit(images)), images


def test_calibration_makes_the_constant_that_of_gaussian_data():
    """An untrained "inner" energy is ½ρ²/t: at σ² ≫ c calibration must add ½ log 2πt a coordinate, whatever the offset was before."""
    model, images = inner_network()
    variance, generator = 60.0, torch.Generator().manual_seed(1)
    total = model.statistics.variance.double() + variance
    expected = 32 * float(torch.log(2 * math.pi * total))
    model.offset.fill_(7.0)
    shift = calibrate(model, images[:500], variance, generator)
    assert shift == pytest.approx(expected - 7.0, rel=1e-5)
    assert float(model.offset) == pytest.approx(expected, rel=1e-5)
    assert calibrate(model, images[:500], variance, generator) == pytest.approx(0, abs=1e-3)


def small_size():
    return oracle._Size(images=2 * oracle.BATCH, statistics=64, points=64)


def test_a_run_reports_every_figure_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "PRIORS", ("mixture",))
    monkeypatch.setattr(oracle, "QUICK", small_size())
    monkeypatch.setattr(oracle, "VARIANTS", (VARIANTS[0], VARIANTS[3]))
    first = context(tmp_path)
    oracle.run(first)
    figures = first.report.figures
    for variant in ("untrained", "default", "paper"):
        assert all(f"mixture/{variant}/{where}/{m}" in figures for where in ("all", "pixel", "fourier") for m in oracle.METRICS)
        with (tmp_path / f"mixture-{variant}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert sum(int(r["observations"]) for r in rows if r["kind"] == "family") == 64
        whole = next(r for r in rows if r["name"] == "all")
        assert float(whole[oracle.MAE]) == pytest.approx(figures[f"mixture/{variant}/all/{oracle.MAE}"].value, rel=1e-4)
    assert figures[f"mixture/default/at the anchor/{oracle.MAE}"].holds
    assert figures[f"mixture/default/all/{oracle.BIAS}"].verdict == "not judged"
    assert float(EnergyNetwork.from_pretrained(tmp_path / "models" / "mixture" / "paper" / "model").offset) != 0

    history = tmp_path / "models" / "mixture" / "paper" / "history.jsonl"
    steps = history.read_text().count('"kind": "step"')
    lost = {k: figures.pop(k) for k in list(figures) if k.startswith("mixture/paper/all")}
    oracle.run(Context(first.report, quick=True, out=tmp_path))
    assert {k: figures[k] for k in lost} == lost
    assert history.read_text().count('"kind": "step"') == steps > 0


def test_a_fresh_run_trains_afresh(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "PRIORS", ())
    (tmp_path / "models" / "mixture").mkdir(parents=True)
    oracle.run(context(tmp_path))
    assert not (tmp_path / "models").exists()


def test_a_stopped_training_interrupts_the_bench_and_continues(tmp_path):
    config = make_config(tmp_path, images=48, max_minutes=1e-9)
    parts = make_parts(model=lambda statistics: EnergyNetwork(NetworkConfig.preset("tiny"), statistics))
    with pytest.raises(KeyboardInterrupt):
        train_variant(config, parts)
    assert isinstance(train_variant(replace(config, max_minutes=0.0), parts), EnergyNetwork)


def test_all_families_reach_the_oracle():
    """Block sizes 2 and 4 divide 8 × 8, so no family of p(Σ) is left out of the bench."""
    prior = make_mixture(2, 1, 8, 8)
    batch = draw_covariances((2000, 1, 8, 8), prior.statistics, oracle.noise_config(prior), torch.Generator().manual_seed(0))
    assert batch.family.unique().tolist() == list(range(len(NoiseConfig().family_names)))
