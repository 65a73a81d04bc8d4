"""The recipe's network has the gradients of its energy, and the bench trains in turns, goes on where it was, and compares fairly."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from bench_digits import made_up_digits
from PIL import Image

from anem.bases import Mixed
from anem.bench import harness, recipe
from anem.bench.harness import Context, Settings, run_bench
from anem.bench.recipe import NOISE, Size
from anem.bench.recipe_curves import QUANTITIES, reached
from anem.bench.recipe_network import RecipeConfig, RecipeNetwork
from anem.bench.turns import Point, next_goal
from anem.calibrate import calibrate
from anem.corruptions import draw_covariances
from anem.covariance import Covariance
from anem.data import MNIST_SPLITS
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train.parts import build_parts

CONFIG = RecipeConfig(channels=(8, 12, 8), embedding=8)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(64, 1, 8, 8, generator=generator) * (torch.rand(64, 1, 8, 8, generator=generator) < 0.5)


@pytest.fixture
def network(images):
    """A tiny one in float64, its weights far from their start."""
    model = RecipeNetwork(CONFIG, DataStatistics.fit(images))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.double()


def draws(model, x, generator):
    cov = draw_covariances(tuple(x.shape), model.statistics, NOISE, generator).cov
    return cov.to(x.dtype), torch.randn(x.shape, dtype=x.dtype, generator=generator)


def slope(function, at, direction, step=1e-5):
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def test_gradients_are_those_of_the_energy(network, images, generator):
    x = images[:6].double()
    cov, noise = draws(network, x, generator)
    assert isinstance(cov.basis, Mixed)
    rho = network.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise
    found = network.differentiable_gradients(rho, cov)
    y = x + cov.color(noise)
    torch.testing.assert_close(found.energy, network.energy(y, cov), rtol=1e-10, atol=0)
    along = cov.values.sqrt() * torch.randn(x.shape, dtype=x.dtype, generator=generator)
    expected = slope(lambda v: network.energy(network.statistics.mean_image(v) + cov.basis.inverse(v), cov), rho, along)
    torch.testing.assert_close((found.grad_coordinates * along).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-5)
    even = cov.basis.symmetrise(torch.randn(x.shape, dtype=x.dtype, generator=generator))
    expected = slope(lambda v: network.energy(y, cov.replace(v.exp())), cov.values.log(), even)
    torch.testing.assert_close((found.grad_logvar * even).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-5)
    at = network(y, cov)
    torch.testing.assert_close(cov.basis.forward(at.grad_y), found.grad_coordinates.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(at.grad_logvar, found.grad_logvar.detach(), rtol=1e-9, atol=1e-9)


def test_a_training_step_reaches_every_parameter(images, generator):
    model = RecipeNetwork(CONFIG, DataStatistics.fit(images))
    cov, noise = draws(model, images[:6], generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        total = dual_score_loss(model, images[:6], cov, noise, 1 / 64).total
        total.backward()
        optimiser.step()
        losses.append(float(total.detach()))
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert losses[-1] < losses[0]


def test_at_the_start_it_scales_y(images, generator):
    """U = ½ |y|²/(m + λ), m the mean square of a pixel: the best denoiser of its kind."""
    model = RecipeNetwork(CONFIG, DataStatistics.fit(images))
    cov = Covariance.white(0.04, images.shape)
    y = images + cov.sample(generator)
    m = images.square().mean()
    torch.testing.assert_close(model.denoise(y, cov), y * m / (m + 0.04), rtol=0, atol=1e-3)


def test_it_has_as_many_parameters_as_our_preset():
    statistics = DataStatistics(1, 28, 28)
    ours, theirs = (
        sum(p.numel() for p in model.parameters())
        for model in (EnergyNetwork(NetworkConfig.preset("small"), statistics), RecipeNetwork(RecipeConfig(), statistics))
    )
    assert theirs == pytest.approx(ours, rel=0.1)


def test_a_spectrum_is_a_number_a_channel_and_a_map_is_not(network, images, generator):
    x = images[:4].double()
    cov, _ = draws(network, x, generator)
    share = torch.sigmoid(-cov.values.log())
    e = network.unet.embed(cov.values.log(), share, cov.basis)
    assert e.shape == (4, CONFIG.embedding, 8, 8)
    uneven = e.flatten(2).std(2).amax(1) > 1e-9
    for basis, row in cov.basis.split(uneven):
        assert basis.name != "fourier" or not row.any()
    boxes = Covariance(torch.rand(1, 1, 8, 8, dtype=torch.float64, generator=generator) + 0.1)
    assert bool((network.unet.embed(boxes.values.log(), boxes.values, boxes.basis).flatten(2).std(2) > 1e-3).any())
    with pytest.raises(ValueError, match="dct2"):
        network.energy(x, Covariance.white(0.1, x.shape, "dct2", x))


def test_the_constant_is_that_of_gaussian_data(network, images, generator):
    variance = 1e4
    calibrate(network, images.double(), variance, generator)
    cov = Covariance.white(variance, images.shape, like=images.double())
    y = images.double() + cov.sample(generator)
    expected = 0.5 * 64 * (1 + math.log(2 * math.pi * variance))
    energy = -network.log_prob(y, cov)
    assert float(energy.mean()) == pytest.approx(expected, abs=6 * float(energy.std()) / 8 * 2**0.5)


def point(seconds, a_dsm):
    return Point(seconds, int(seconds), {"A-DSM": a_dsm})


def test_a_value_is_reached_where_it_stays():
    points = [point(s, v) for s, v in ((1, 0.9), (2, 0.4), (3, 0.6), (4, 0.5), (5, 0.3))]
    assert reached(points, "A-DSM", 0.5) == 4
    assert reached(points, "A-DSM", 1.0) == 1
    assert reached(points, "A-DSM", 0.2) == math.inf


def test_a_turn_takes_its_time_at_the_last_speed():
    assert next_goal([], 60.0, 8) == 8
    points = [Point(2.0, 8)]
    assert next_goal(points, 60.0, 8) == 8 + 240
    points.append(Point(62.0, 488))
    assert next_goal(points, 60.0, 8) == 488 + 480
    assert next_goal(points, 0.001, 8) == 488 + 8


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The bench on tiny networks, a step and a second a turn, two turns each; ``calls`` counts what is trained."""
    made_up_digits(tmp_path, monkeypatch)
    monkeypatch.setitem(MNIST_SPLITS, "validation", ("test", 0, 12))
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    monkeypatch.setattr(recipe, "Size", lambda: Size(seconds=2.0, turn=1.0, batch=2, losses=2, images=2, statistics=12))
    monkeypatch.setattr(recipe, "RecipeConfig", lambda: CONFIG)
    ours = partial(EnergyNetwork, NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4))
    monkeypatch.setattr(recipe, "build_parts", lambda config: replace(build_parts(config), model=ours))
    advance, calls = recipe.advance, []

    def start(out, interrupt=math.inf, workers=1):
        def counted(contender, images):
            model, seconds = advance(contender, images)
            calls.append((contender.name, images, seconds > 0))
            if len(calls) == interrupt:
                raise KeyboardInterrupt
            return model, 1.0

        calls.clear()
        monkeypatch.setattr(recipe, "advance", counted)
        settings, file = Settings(data=tmp_path, out=tmp_path / out), tmp_path / f"{out}.json"
        return run_bench(recipe.run, "recipe", settings, command="recipe", json_file=file, workers=workers).figures

    return start, calls


def test_turns_alternate_and_an_interrupted_or_divided_race_comes_to_the_same(bench, tmp_path, monkeypatch):
    start, calls = bench
    figures = start("whole")
    names = ["ours", "recipe at 2e-4", "recipe at 1e-3"]
    assert [c[:2] for c in calls] == [(n, images) for images in (2, 4, 4) for n in names]
    assert [c[2] for c in calls] == [True] * 6 + [False] * 3
    assert [k for k, f in figures.items() if f.aim] == [f"time to the recipe's {q}, over the recipe's time" for q in QUANTITIES]
    assert figures["recipe at 1e-3/multiply-adds of a training step (10⁶ an image)"].value > 1
    assert Image.open(tmp_path / "whole" / "curves.png").width > 600
    with pytest.raises(KeyboardInterrupt):
        start("cut", interrupt=5)  # after the second turn of "recipe at 2e-4", trained but not judged
    again = start("cut")
    assert [c[:2] for c in calls][:2] == [("recipe at 2e-4", 4), ("recipe at 1e-3", 4)]
    assert calls[0][2], "the checkpoint that was not judged is trained again"
    assert again == figures
    for name in ("ours", "recipe-at-2e-4", "recipe-at-1e-3"):
        points = [json.loads((tmp_path / out / f"{name}.json").read_text(encoding="utf-8"))["points"] for out in ("whole", "cut")]
        assert points[0] == points[1] and len(points[0]) == 2
    calls.clear()
    assert start("cut") == figures and not calls

    def work(run, report, settings, workers):
        for _ in range(2):  # in this process, which has the tiny sizes; nothing is left for the second
            run(Context(report, worker=True, **vars(settings)))

    monkeypatch.setattr(harness, "_work", work)
    assert start("beside", workers=2) == figures
    assert [c[:2] for c in calls[:6]] == [(n, images) for n in names for images in (2, 4)]
    assert not any(trained for *_, trained in calls[6:])
    assert Image.open(tmp_path / "beside" / "curves.png").width > 600
