"""The digits bench: its small pieces on exact energies, and all of it at a tiny size on made-up digits."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from anem.bench import digits, harness
from anem.bench.digits import Size, basis_differences, pixel_histogram, task_covariance
from anem.bench.harness import Settings, run_bench
from anem.data import MNIST_SPLITS
from anem.energy import EnergyModel
from anem.gaussian import make_mixture
from anem.images import from_integers
from anem.network import EnergyNetwork, NetworkConfig
from anem.operators import make_operator
from anem.statistics import DataStatistics


class Partial(EnergyModel):
    """A mixture whose energy in Fourier is too large by 0.3 nats/dim for the first image and too small for the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_mixture(2, 1, 4, 4)
        self.statistics = self.inner.statistics

    def energy(self, y, cov):
        wrong = torch.full((len(y),), -0.3 * 16, dtype=y.dtype)
        wrong[0] = 0.3 * 16
        return self.inner.energy(y, cov) + (wrong if cov.basis.name == "fourier" else 0)


@pytest.mark.parametrize("variance", [1e-6, 1.0])
def test_one_energy_in_all_bases_has_no_differences(variance, generator):
    prior = make_mixture(2, 1, 4, 4)
    differences = basis_differences(prior, prior.sample(3, generator), variance, generator)
    assert set(differences) == {"fourier", "dct2", "dct4"}
    for values in differences.values():
        torch.testing.assert_close(values, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_differences_of_either_sign_count_per_image_and_dimension(generator):
    model = Partial()
    differences = basis_differences(model, model.inner.sample(3, generator), 0.1, generator)
    torch.testing.assert_close(differences["fourier"], torch.full((3,), 0.3, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(differences["dct2"], torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_histogram_is_a_distribution_that_excludes_nothing():
    images = torch.zeros(5000, 1, 2, 2, dtype=torch.uint8)
    images[:, :, 1, 1] = 255
    histogram = pixel_histogram(images)
    assert histogram.sum().item() == pytest.approx(1, abs=1e-12)
    expected = torch.ones(256, dtype=torch.float64)
    expected[0] += 15_000
    expected[255] += 5_000
    torch.testing.assert_close(histogram, expected / 20_256)


def test_a_task_is_judged_at_the_covariance_of_its_observations():
    statistics = make_mixture(2, 1, 8, 8).statistics
    shape = (1, 1, 8, 8)
    box = task_covariance(make_operator("inpaint-box", shape, box=4), shape, 0.01, statistics)
    assert box.basis.name == "pixel" and box.values.dtype == torch.float64
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[..., 2:6, 2:6] = True
    torch.testing.assert_close(box.values[inside], torch.full((16,), statistics.lambda_max, dtype=torch.float64))
    torch.testing.assert_close(box.values[~inside], torch.full((48,), 1e-4, dtype=torch.float64))
    blur = task_covariance(make_operator("deblur", shape), shape, 0.01, statistics)
    assert blur.basis.name == "fourier" and blur.values[0, 0, 0, 0].item() == pytest.approx(1e-4)
    assert task_covariance(make_operator("sr2", shape), shape, 0.01, statistics).shape == shape


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The bench on a tiny untrained network, twelve made-up digits and the smallest sizes; called, it runs and returns the report."""
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-14:14, -14:14]) < rng.uniform(4, 12, (12, 1, 1))
    x = (disc * rng.integers(150, 256, disc.shape)).astype(np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=np.zeros(12), x_test=x, y_test=np.zeros(12))
    for name, split in {"train": ("train", 0, 12), "report": ("test", 0, 4), "tuning": ("test", 4, 12)}.items():
        monkeypatch.setitem(MNIST_SPLITS, name, split)
    statistics = DataStatistics.fit(from_integers(torch.from_numpy(x)[:, None]))
    shape = NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4, rounds=1)
    EnergyNetwork(shape, statistics).save_pretrained(tmp_path / "model")
    tiny = Size(losses=3, images=2, cell=1, chains=2, population=1, steps=5, tuning=2, bits=2, restored={8: 2}, samples=2, shown=2)
    monkeypatch.setattr(Size, "quick", lambda: tiny)
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")

    def start(split="tuning", run=digits.run):
        settings = Settings(model=str(tmp_path / "model"), data=tmp_path, split=split, quick=True, out=tmp_path / split)
        return run_bench(run, "digits", settings, command=f"digits {split}", json_file=tmp_path / f"{split}.json")

    return start


def test_every_figure_is_made_once_and_an_interrupted_run_continues(bench, tmp_path, monkeypatch):
    report = bench()
    figures = report.figures
    sections = {"loss", "bases", "slope", "bits", "log Z", "restore"}
    assert {key.split("/")[0] for key in figures} == sections
    assert all(math.isfinite(float(f.value)) for f in figures.values())
    assert sum(key.startswith("bases/") for key in figures) == 15
    assert {key.split("/")[1] for key in figures if key.startswith("restore/")} == set(digits.TASKS)
    aims = {key.split("/")[0] for key, f in figures.items() if f.aim}
    assert aims == {"bases", "slope", "bits"}
    assert figures["bits/dim/pixel histogram"].verdict == "not judged"
    assert Image.open(tmp_path / "tuning" / "random-80-8-calls.png").width > 2 * 28
    for part in ("HeldOut", "_raw", "_picture", "basis_differences", "immse_slope", "log_partition", "sample_posterior"):
        monkeypatch.setattr(digits, part, None)  # whatever calls it fails
    assert bench().figures == figures


def test_the_split_decides_which_images_are_judged_and_not_on_which_sigma_is_chosen(bench):
    seen = {}

    def only_bits(context):
        model, data = context.load(context.model), digits.load_dataset(digits.mnist(context.split, str(context.data / "mnist.npz")))
        digits._bits(context, model, data, Size.quick())
        seen[context.split] = data.images

    tuning, report = (bench(split, only_bits).figures for split in ("tuning", "report"))
    assert len(seen["tuning"]) == 8 and len(seen["report"]) == 4
    for decoding in digits.DECODINGS:
        assert tuning[f"bits/dim/{decoding}/log10 σ²"] == report[f"bits/dim/{decoding}/log10 σ²"]
        assert tuning[f"bits/dim/{decoding}"] != report[f"bits/dim/{decoding}"]
