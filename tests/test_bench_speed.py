"""The speed bench: its measuring tools on known answers, its estimators on the exact term, its sweep on the network calls it names."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from anem.bench import speed_estimators as est
from anem.bench import speed_step
from anem.bench.counts import make_workload
from anem.bench.harness import Context
from anem.bench.reference import PlainNetwork
from anem.bench.report import Report
from anem.bench.speed_recorded import _a_dsm_loss, recorded_steps, rounded_trainings
from anem.bench.speed_timing import Machine, alternate, exponent, ratio, seconds
from anem.losses import dual_score_loss
from anem.network import NetworkConfig
from anem.random import generator_of


@pytest.fixture(scope="module")
def workload():
    w = make_workload(NetworkConfig.preset("tiny"), batch=8, side=8)
    return replace(w, model=w.model.double(), x=w.x.double(), cov=w.cov.to(torch.float64), noise=w.noise.double())


def test_rounds_alternate_and_turn_round():
    calls = []
    times = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "abc" + "cba" + "abc" + "cba"
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_of_the_same_round():
    times = {"a": torch.tensor([1.0, 10.0, 100.0]), "b": torch.tensor([2.0, 20.0, 200.0])}
    assert ratio(times, "a", "b") == 0.5 and seconds(times["a"]) == 10.0


def test_a_slower_run_takes_longer():
    a, b = torch.ones(600, 600), torch.ones(100, 100)
    times = alternate({"long": lambda: a @ a, "short": lambda: b @ b}, 5, time.perf_counter)
    assert ratio(times, "long", "short") > 2


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_exponents_of_powers(power):
    assert exponent([1, 2, 8], [3 * s**power for s in (1, 2, 8)]) == pytest.approx(power, abs=1e-12)


def test_the_floor_adds_both_parts():
    counts = speed_step.count(lambda: torch.ones(1000) * 2)
    machine = Machine(convolution=1e9, memory=1e9)
    assert machine.floor(replace(counts, multiply_adds=2_000_000, bytes_moved=1_000_000)) == pytest.approx(0.003)


def test_a_step_on_denoising_alone_has_the_loss_of_the_whole_step(workload):
    terms = dual_score_loss(workload.model, workload.x, workload.cov, workload.noise)
    assert speed_step.denoising_step(workload) == pytest.approx(float(terms.a_dsm.mean()), rel=1e-9)
    assert all(p.grad is not None for p in workload.model.unet.parameters())


def test_the_sweep_is_one_energy_a_cell(workload):
    evidence, grid = speed_step.sweep(workload.model, workload.x[:1], 4, 5)
    values = evidence.grid(grid)
    assert grid.shape == (20, 2) and evidence.calls == 20
    operator, sigma = evidence.family.degradation(evidence.family.values(grid))
    seen = operator.observe(workload.x[:1], sigma, workload.model.statistics, generator_of(0, "unobserved", 0))
    torch.testing.assert_close(values, workload.model.log_prob(seen.y, seen.cov) + seen.log_evidence_terms)


def test_forward_mode_gives_the_directional_derivative(workload, generator):
    model = PlainNetwork(workload.model)
    v = est._signs(workload, generator)
    slope = est.directional_derivative(model, workload, v)
    rest = est.residual(model, workload) + est._target(workload)
    torch.testing.assert_close(slope, (v * rest).flatten(1).sum(1), rtol=1e-9, atol=1e-9)


def test_the_slice_is_along_independent_signs(workload):
    """(z · r)²/d with z independent signs has mean ‖r‖²/d; in Fourier too, where v is even."""
    model = PlainNetwork(workload.model)
    z = torch.randint(0, 2, workload.x.shape, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    r = est.residual(model, workload).detach()
    expected = (z * r).flatten(1).sum(1).square().mean() / 64
    got = est.sliced(model, workload, torch.Generator().manual_seed(3)).detach()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_parts_of_the_batch_average_to_the_whole(workload, generator):
    model = PlainNetwork(workload.model)
    orders = [torch.arange(8).roll(-k) for k in range(est.PART)]
    parts = [replace(workload, x=workload.x[o], cov=workload.cov[o], noise=workload.noise[o]) for o in orders]
    values = torch.stack([est.part(model, w, generator).detach() for w in parts])
    assert float(values.mean()) == pytest.approx(float(est.full(model, workload, generator).detach()), rel=1e-9)


def test_the_machine_has_rates():
    machine = Machine.measure(batch=1, shapes=((8, 8),), rounds=1)
    assert machine.convolution > 1e6 and machine.memory > 1e7


def test_recorded_steps_are_the_step(tmp_path):
    report = Report("speed", "c0ffee", 0, "anem bench speed")
    w = make_workload(NetworkConfig.preset("tiny").override(channels=(4, 8), embedding=4, rounds=1), batch=6, side=8)
    recorded_steps(Context(report, quick=True, out=tmp_path), w, 2, ("rounded",))
    off = report.figures["train/small/rounded: gradient, relative difference to the step's"]
    assert 1e-4 < off.value < 0.1 and off.holds
    assert report.figures["train/small/rounded: images per second over the reference's"].value > 0


def test_the_fastest_step_is_compared_with_parts_made_as_fast(tmp_path, monkeypatch):
    """Recorded graphs run as they stand in place of machine code: ratios mean nothing, but all of it runs."""
    monkeypatch.setattr("anem.train.step.machine_code", lambda graph, inputs: graph)
    monkeypatch.setattr(torch, "compile", lambda network: network)
    report = Report("speed", "c0ffee", 0, "anem bench speed")
    w = make_workload(NetworkConfig.preset("tiny").override(channels=(4, 8), embedding=4, rounds=1), batch=6, side=8)
    recorded_steps(Context(report, quick=True, out=tmp_path), w, 2)
    key = "train/small/compiled and rounded"
    aims = {k.removeprefix(key): f.aim for k, f in report.figures.items() if k.startswith(key) and f.aim}
    assert aims[": time over A-DSM alone, compiled and rounded too"] == "≤ 1.3" and aims[": time over the plain denoiser"] == "≤ 4"
    assert aims[": floor over time"] == "≥ 0.5" and aims[": time over the plain denoiser, compiled and rounded too"] == "≤ 4"
    assert all(f.value > 0 for k, f in report.figures.items() if k.startswith(key))
    exact = report.figures["train/small/compiled: gradient, relative difference to the step's"]
    assert exact.holds and exact.value < 1e-4


def test_the_compiled_step_on_denoising_alone_is_that_step(workload):
    speed_step.denoising_step(workload)
    want = {name: p.grad.clone() for name, p in workload.model.named_parameters() if p.grad is not None}
    terms = _a_dsm_loss(workload.model, workload.x, workload.cov, workload.noise, 1.0)
    got = dict(zip(want, torch.autograd.grad(terms.total, [dict(workload.model.named_parameters())[n] for n in want]), strict=True))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-9, msg=name)


def test_two_trainings_that_differ_by_rounding_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(60_000, 28, 28, generator=generator) ** 4 * 255).byte().numpy()
    labels = np.zeros(60_000, np.uint8)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images[:9], y_test=labels[:9])
    report = Report("speed", "c0ffee", 0, "anem bench speed")
    rounded_trainings(Context(report, quick=False, out=tmp_path, data=tmp_path), images=64, judged=32, compiled=False)
    ratio = report.figures["trainings/A-DSM with rounded convolutions over that"]
    assert ratio.aim == "0.98–1.02" and ratio.value != 1.0 and abs(ratio.value - 1) < 0.1


def test_what_an_estimator_adds_to_the_variance_is_its_distance_from_the_full_gradient(workload):
    """One batch given twice: the full term does not vary, and both halves of a pair count."""
    model = PlainNetwork(workload.model)
    found = est.variances(model, [workload, workload], torch.Generator().manual_seed(0))

    def gradient(rows):
        w = replace(workload, x=workload.x[rows], cov=workload.cov[rows], noise=workload.noise[rows])
        return est._gradient(model, est.full(model, w, torch.Generator()))

    exact = gradient(torch.arange(8))
    off = [float((gradient(torch.tensor([i, i + 4])) - exact).square().sum()) for i in range(4)]
    assert found["full"] == pytest.approx(0.0, abs=1e-20 * float(exact.square().sum()))
    assert found[est.PARTIAL] == pytest.approx(sum(off) / 4, rel=1e-9) and found["sliced"] > 0
