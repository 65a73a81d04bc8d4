"""Estimators of the covariance term have its mean, and a training in turns uses up its time and goes on where it was."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from bench_digits import made_up_digits
from training_fakes import loss as fake_loss
from training_fakes import make_config, make_parts

from anem.bench import estimators, harness, turns
from anem.bench.estimator_variants import VARIANTS, some_images, some_steps
from anem.bench.estimators import Size
from anem.bench.harness import Settings, run_bench
from anem.bench.turns import Clock, Contender, Record, spend
from anem.corruptions import NoiseConfig, draw_covariances
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train import train
from anem.train.config import CheckpointConfig
from anem.train.parts import build_parts

SMALL = NetworkConfig(channels=(4, 4), blocks=(1, 1), stem=2, embedding=4)
LOSS = partial(dual_score_loss, config=LossConfig(balance=0.5))


@pytest.fixture(scope="module")
def batch():
    """A network in float64, its weights far from their start, and four images with covariances in several bases and noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 1, 8, 8, generator=generator)
    model = EnergyNetwork(SMALL, DataStatistics.fit(x)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator))
    x = x[:4].double()
    cov = draw_covariances(tuple(x.shape), model.statistics, NoiseConfig(), generator).cov.to(x.dtype)
    return model, x, cov, torch.randn(x.shape, dtype=x.dtype, generator=generator)


def gradient(loss, batch, seed=0):
    torch.manual_seed(seed)
    model = batch[0]
    found = torch.autograd.grad(loss(*batch, 0.7).total, [*model.parameters()], allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(model.parameters(), found, strict=True)])


def seeds(draw, count):
    """A seed of torch's default generator for every outcome 0 … count − 1 of ``draw``."""
    found = {}
    for seed in range(200):
        torch.manual_seed(seed)
        found.setdefault(int(draw()), seed)
    return [found[k] for k in range(count)]


def test_some_steps_have_the_mean_of_all(batch):
    gradients = [gradient(partial(some_steps, LOSS, 4), batch, s) for s in seeds(lambda: torch.randint(4, ()), 4)]
    full = gradient(LOSS, batch)
    torch.testing.assert_close(sum(gradients) / 4, full, rtol=1e-9, atol=1e-10)
    assert float((gradients[1] - full).norm()) > 0.01 * float(full.norm())
    torch.testing.assert_close(gradients[1], gradients[2], rtol=0, atol=0)


def test_some_images_have_the_mean_of_all(batch):
    gradients = [gradient(partial(some_images, LOSS, 4), batch, s) for s in seeds(lambda: torch.randperm(4)[0], 4)]
    full = gradient(LOSS, batch)
    torch.testing.assert_close(sum(gradients) / 4, full, rtol=1e-9, atol=1e-10)
    assert all(float((g - full).norm()) > 1e-3 * float(full.norm()) for g in gradients)


def test_some_images_report_every_image_in_its_place(batch):
    torch.manual_seed(3)
    got, wanted = some_images(LOSS, 2, *batch, 1.0), LOSS(*batch, 1.0)
    for name in ("a_dsm", "a_csm", "energy"):
        torch.testing.assert_close(getattr(got, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="divides by 3, got 4"):
        some_images(LOSS, 3, *batch, 1.0)


class Ticks(Clock):
    """A step takes a second."""

    def __init__(self):
        self.now = itertools.count().__next__


@pytest.fixture
def contender(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "Clock", Ticks)
    checkpoint = CheckpointConfig(minutes=0, keep=2)  # as the benches have it: at the end of a turn
    return lambda name, loss=fake_loss: Contender(
        name, make_config(tmp_path / name, checkpoint=checkpoint), make_parts(loss=loss, held_out=0)
    )


def progress(record):
    return [(p.seconds, p.images) for p in record.points]


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def test_the_time_is_used_up_in_turns_as_by_one_training(contender, tmp_path):
    record = Record(tmp_path / "turns.json", {}, "c0ffee")
    model = spend(contender("turns"), record, seconds=10.0, images=math.inf, turn=3.0)
    assert progress(record) == [(1, 8), (4, 32), (7, 56), (10, 80)]
    at_once = contender("at once")
    assert all(map(torch.equal, weights(model), weights(train(replace(at_once.config, images=80), parts=at_once.parts, callbacks=[]))))
    record = Record(tmp_path / "images.json", {}, "c0ffee")
    spend(contender("images"), record, seconds=math.inf, images=48, turn=3.0)
    assert progress(record) == [(1, 8), (4, 32), (6, 48)]


def test_an_interrupted_training_goes_on_from_its_record(contender, tmp_path, monkeypatch):
    whole = Record(tmp_path / "whole.json", {}, "c0ffee")
    wanted = spend(contender("whole"), whole, 6.0, math.inf, 3.0)
    advance = turns.advance

    def cut(c, images):
        advance(c, images)
        if images == 32:
            raise KeyboardInterrupt  # trained, but not on record

    monkeypatch.setattr(turns, "advance", lambda c, images: cut(c, images) if images == 32 else advance(c, images))
    file = tmp_path / "cut.json"
    with pytest.raises(KeyboardInterrupt):
        spend(contender("cut"), Record(file, {"seed": 0}, "c0ffee"), 6.0, math.inf, 3.0)
    monkeypatch.setattr(turns, "advance", advance)
    record = Record.open(file, {"seed": 0}, "another")
    assert (progress(record), record.commit) == ([(1, 8)], "c0ffee")
    model = spend(contender("cut"), record, 6.0, math.inf, 3.0)
    assert record.points == whole.points == Record.open(file, {"seed": 0}, "").points
    assert all(map(torch.equal, weights(model), weights(wanted)))
    with pytest.raises(ValueError, match="other settings"):
        Record.open(file, {"seed": 1}, "c0ffee")


def test_a_training_that_diverges_keeps_what_it_had(contender, tmp_path):
    calls = itertools.count()

    def diverging(*arguments):
        terms = fake_loss(*arguments)
        terms.total = terms.total * (math.nan if next(calls) >= 12 else 1.0)  # two pieces a step: in the seventh
        return terms

    record = Record(tmp_path / "record.json", {}, "c0ffee")
    model = spend(contender("diverging", diverging), record, 10.0, math.inf, 3.0)
    assert progress(record) == [(1, 8), (4, 32)] and "non-finite loss" in record.stopped
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_every_variant_is_judged_at_the_time_of_the_default(tmp_path, monkeypatch):
    made_up_digits(tmp_path, monkeypatch)
    monkeypatch.setattr(turns, "Clock", Ticks)
    monkeypatch.setattr(harness, "commit", lambda: "c0ffee")
    monkeypatch.setattr(Size, "quick", lambda: Size(8, 1.0, 4, 4, statistics=12, points=8, losses=2, slopes=1, batches=2))
    few = (VARIANTS[0], VARIANTS[3], VARIANTS[4])
    monkeypatch.setattr(estimators, "VARIANTS", few)
    monkeypatch.setattr(estimators, "network_config", lambda config: SMALL)
    monkeypatch.setattr(estimators, "build_parts", lambda c: replace(build_parts(c), model=partial(EnergyNetwork, SMALL)))

    def start():
        settings = Settings(data=tmp_path, quick=True, out=tmp_path / "out")
        return run_bench(estimators.run, "estimators", settings, command="estimators", json_file=tmp_path / "bench.json").figures

    figures = start()
    for problem, metric in (("oracle", "energy MAE (nats/dim)"), ("digits", "energy error (nats/dim)")):
        for variant in few:
            name = f"{problem}/{variant.name}"
            assert (figures[f"{name}/seconds"].value, figures[f"{name}/images seen"].value) == (2, 8)
            assert all(math.isfinite(figures[f"{name}/{m}"].value) for m in (metric, "A-DSM", "A-CSM"))
        assert figures[f"{problem}/matching/variance of the gradient over matching"].value == 1
        assert figures[f"{problem}/a quarter of the batch/variance of the gradient over matching"].value > 0
    monkeypatch.setattr(estimators, "spend", None)  # whatever is trained again fails
    assert start() == figures
