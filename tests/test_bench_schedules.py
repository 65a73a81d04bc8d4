"""The bench of schedules, and the recorder and pictures of paths."""

import math

import pytest
import torch
from bench_digits import made_up_digits, run_quick
from PIL import Image

from anem.bench import harness, schedules
from anem.bench.paths import PathRecorder, plot_paths
from anem.bench.schedules import Size
from anem.gaussian import make_skewed
from anem.operators import GaussianBlur, Inpainting
from anem.sample import Geometric, VarianceGuided, sample_posterior


def test_every_figure_is_made_once_and_an_interrupted_run_continues(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    monkeypatch.setattr(Size, "quick", lambda: Size(images=5, pixels=(20, 160), calls=4, draws=50, shown=2))
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    calls = []

    def counted(*arguments, **options):
        calls.append((options["schedule"].steps, options["seed"]))
        return sample_posterior(*arguments, **options)

    monkeypatch.setattr(schedules, "sample_posterior", counted)
    figures = run_quick(schedules.run, tmp_path).figures
    assert calls == [(3, [0, 1, 2, 3, 4])] * 8
    assert all(0 <= float(f.value) <= 1 for k, f in figures.items() if "−" not in k)
    judged = [f"classification error/20 pixels/{n} − geometric, 95 % to" for n in ("paper's rule", "ours")]
    assert [k for k, f in figures.items() if f.aim] == judged
    for name in ("water-filling", "paper's rule", "ours"):
        key = f"classification error/20 pixels/{name}"
        geometric = float(figures["classification error/20 pixels/geometric"].value)
        assert float(figures[f"{key} − geometric"].value) == pytest.approx(float(figures[key].value) - geometric)
    pictures = {f"{kind}-{k}.png" for kind in ("paths", "digits") for k in (20, 160)} | {"classification.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == pictures | {"pieces"}
    assert all(math.isfinite(float(f.value)) for f in figures.values())
    monkeypatch.setattr(schedules, "sample_posterior", None)  # whatever calls it fails
    assert run_quick(schedules.run, tmp_path).figures == figures


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_recorder_keeps_the_path_of_its_chain(chunk, generator):
    prior = make_skewed(1, 4, 4)
    masks = Inpainting.random((4, 4), 0.5, seed=[1, 2])
    m = masks.measure(prior.sample(2, generator), 0.1, generator)
    recorder = PathRecorder(1)
    sample_posterior(prior, m, masks, 0.1, samples=2, schedule=VarianceGuided(5), chunk=chunk, callback=recorder)
    values = recorder.values
    assert values.shape == (6, 1, 4, 4) and recorder.basis == "pixel"
    start = masks.observe(m, 0.1, prior.statistics, generator).cov.values[1]
    torch.testing.assert_close(values[0], start)
    assert bool((values.diff(dim=0) <= 0).all()) and float(values[-1].max()) < 1e-5


def test_paths_are_drawn(tmp_path, generator):
    prior, blur = make_skewed(1, 4, 4), GaussianBlur(3, 1.0)
    m = blur.measure(prior.sample(1, generator), 0.1, generator)
    paths = {name: PathRecorder() for name in ("a", "b")}
    for recorder, schedule in zip(paths.values(), (Geometric(4), VarianceGuided(7)), strict=True):
        sample_posterior(prior, m, blur, 0.1, schedule=schedule, callback=recorder)
    plot_paths({name: (path.basis, path.values) for name, path in paths.items()}, tmp_path / "paths.png")
    width, height = Image.open(tmp_path / "paths.png").size
    assert width > 1000 and height > 400
