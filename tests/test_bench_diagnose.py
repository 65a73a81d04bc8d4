"""``anem bench diagnose``: all of it on an exact Gaussian in place of the digits model."""

import numpy as np
import pytest
import torch
from PIL import Image

from anem.bench import diagnose, harness
from anem.bench.harness import Context, Settings, run_bench
from anem.data import MNIST_SPLITS
from anem.energy import NotFinite
from anem.gaussian import make_power_law_gaussian

PRIOR = make_power_law_gaussian(1, 8, 8, variance=0.015)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Called, it runs the quick bench on eight made-up pictures and returns the report."""
    x = PRIOR.sample(8, torch.Generator().manual_seed(0)).mul(256).clamp(0, 255).byte()[:, 0].numpy()
    np.savez(tmp_path / "mnist.npz", x_test=x, y_test=np.zeros(8))
    monkeypatch.setitem(MNIST_SPLITS, "tuning", ("test", 0, 8))
    monkeypatch.setattr(Context, "load", lambda self, name: PRIOR)
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")

    def start():
        settings = Settings(data=tmp_path, quick=True, out=tmp_path / "out")
        return run_bench(diagnose.run, "diagnose", settings, command="diagnose", json_file=tmp_path / "diagnose.json")

    return start


def test_every_set_is_flagged_and_an_interrupted_run_continues(bench, tmp_path, monkeypatch):
    figures = bench().figures
    flags = {key: figure for key, figure in figures.items() if key.endswith("/flag")}
    assert len(flags) == len(diagnose.ORACLE) + len(diagnose.TASKS) * len(diagnose.DIGITS)
    for name, flag in diagnose.ORACLE.items():
        assert flags[f"oracle/{name}/flag"].value == (flag or "none") and flags[f"oracle/{name}/flag"].holds
    for task in diagnose.TASKS:
        assert flags[f"digits/{task}/pixel noise/flag"].holds
        assert flags[f"digits/{task}/sample/flag"].verdict == "not judged"
        assert (tmp_path / "out" / f"{task}.png").exists()
        assert Image.open(tmp_path / "out" / f"digits-{task}-histograms.png").height > 100 * len(diagnose.DIGITS)
    monkeypatch.setattr(diagnose, "score", None)  # whatever is measured again fails
    assert bench().figures == figures


def test_a_method_that_breaks_down_is_named_and_the_others_are_judged(bench, monkeypatch):
    def breaks(*arguments, **options):
        raise NotFinite("y")

    monkeypatch.setattr(diagnose, "PaperSampler", lambda *a, **k: breaks)
    figures = bench().figures
    assert figures["digits/deblur/paper's sampler/flag"].value == "diverged"
    assert "digits/deblur/DAPS/prior − truth (nats/dim)" in figures
