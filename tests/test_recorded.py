"""A network's calls by machine code: the recorded graph is the computation, rows in pieces, and what is recorded when."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional

import anem.nn.recorded
from anem.bases import Mixed, as_basis
from anem.covariance import Covariance
from anem.headroom import Headroom
from anem.network import EnergyNetwork, NetworkConfig
from anem.nn.attached import attached
from anem.nn.recorded import Recorded, Replayed, cpp_compiler
from anem.statistics import DataStatistics

IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()


def network(form: str = "anchored", **changes) -> EnergyNetwork:
    """A small network with every weight in use."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=(4, 8), blocks=(1, 1), stem=1, embedding=4, rounds=1, form=form, **changes)
    model = EnergyNetwork(config, DataStatistics.fit(IMAGES)).eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    if form == "anchored":
        model.headroom = Headroom((-4.0, 0.0), (0.05, 0.01), 2.0)  # which some of the images reach
    return model


def covariance(basis: str, batch: int, dtype: torch.dtype = torch.float32) -> Covariance:
    """Positive and even in frequencies, another for every image."""
    level = torch.logspace(-3, 1, batch, dtype=dtype)[:, None, None, None]
    return Covariance(level * as_basis(basis).symmetrise(1 + torch.rand(batch, 1, 8, 8, dtype=dtype)), basis)


class Counting:
    """In place of a compiler: the recorded graph as it stands, and how often it ran."""

    def __init__(self):
        self.graphs = self.calls = 0

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*arguments):
            self.calls += 1
            return graph(*arguments)

        return run


@pytest.fixture
def counting(monkeypatch):
    """Compiles without a compiler."""
    made = Counting()
    monkeypatch.setattr(anem.nn.recorded, "machine_code", made)
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: "/bin/" + name)
    return made


@pytest.mark.parametrize(
    ("form", "basis", "dtype"),
    [
        ("anchored", "pixel", torch.float32),
        ("anchored", "fourier", torch.float64),
        ("anchored", "dct2", torch.float32),
        ("inner", "fourier", torch.float32),
    ],
)
def test_a_compiled_model_is_the_model(counting, form, basis, dtype):
    model = network(form)
    ordinary = copy.deepcopy(model)
    model.compile(rows=3, after=0)
    y, cov = IMAGES[:8].to(dtype), covariance(basis, 8, dtype)
    got, want = model(y, cov), ordinary(y, cov)
    for name in ("energy", "grad_y", "grad_logvar", "denoised", "posterior_variance"):
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=2e-4, atol=2e-5, msg=name)
    torch.testing.assert_close(model.log_prob(y, cov), ordinary.log_prob(y, cov), rtol=2e-4, atol=2e-5)
    assert counting.graphs == 2 and counting.calls == 6  # with and without gradients, eight images in three calls of three


def test_weights_and_constant_may_change_after_compiling(counting):
    model = network()
    model.compile(rows=4, after=0)
    y, cov = IMAGES[:4], covariance("pixel", 4)
    model(y, cov)
    for p in model.parameters():
        p.mul_(1.1)
    model.offset.fill_(7.0)
    torch.testing.assert_close(model(y, cov).energy, copy.deepcopy(model)(y, cov).energy)
    assert counting.graphs == 1 and counting.calls == 2


def test_rare_shapes_small_rests_mixed_bases_and_training_run_as_usual(counting):
    model = network()
    model.compile(rows=4, after=8)
    for batch, calls in ((4, 0), (4, 0), (4, 1), (6, 2), (7, 4), (2, 4)):  # up to eight images as usual; rests of one or two as well
        model(IMAGES[:batch], covariance("pixel", batch))
        assert counting.calls == calls
    y, cov = IMAGES[:4], covariance("pixel", 4)
    mixed = Covariance(cov.values, Mixed([as_basis("pixel"), as_basis("dct2")], torch.tensor([0, 1, 0, 1])))
    for _ in range(4):
        model(y, mixed)
    model.energy(y.clone().requires_grad_(), cov).sum().backward()
    model.requires_grad_(True).differentiable_gradients(y, cov).energy.sum().backward()
    assert counting.calls == 4 and model.unet.leave.weight.grad is not None
    model(y.double(), cov.to(torch.float64))
    assert counting.calls == 4  # another dtype is counted by itself


def test_a_copy_is_not_compiled(counting):
    model = network()
    model.compile(rows=4, after=0)
    model(IMAGES[:4], covariance("pixel", 4))
    copy.deepcopy(model)(IMAGES[:4], covariance("pixel", 4))
    assert counting.calls == 1


def test_compiling_wants_a_compiler_evaluation_and_sensible_numbers(monkeypatch):
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile: wanted a C\+\+ compiler, got no '.*' on the path"):
        network().compile()
    monkeypatch.setattr(anem.nn.recorded.shutil, "which", lambda name: "/bin/" + name)
    with pytest.raises(ValueError, match=r"compile: wanted rows >= 1 and after >= 0, got 0 and 5"):
        network().compile(rows=0, after=5)
    with pytest.raises(ValueError, match="compile: wanted a model in evaluation mode"):
        network(dropout=0.1).train().compile()


class Part(nn.Module):
    """A function with a gradient, parameters and a constant, of the kinds of operations that a network has."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 64).reshape(8, 8))
        self.kernel = nn.Parameter(torch.linspace(-1, 1, 144).reshape(4, 4, 3, 3))
        self.register_buffer("constant", torch.full((8, 8), shift))

    def forward(self, y, values):
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            small = functional.pixel_unshuffle(self.weight * leaf + self.constant, 2).contiguous(memory_format=torch.channels_last)
            large = functional.pixel_shuffle(functional.silu(functional.conv2d(small, self.kernel, padding=1)), 2)
            energy = (large / values).sum((1, 2, 3))
            return energy, *torch.autograd.grad(energy.sum(), leaf)


compiled = pytest.mark.skipif(shutil.which(cpp_compiler()) is None, reason="wants a C++ compiler, which a bare machine has not")


@compiled
def test_machine_code_computes_the_function():
    part = Part()
    run = Recorded(part, rows=4, after=0)
    for _ in range(2):
        got = run(IMAGES[:7], IMAGES[:7] + 1)
        for a, b in zip(got, part(IMAGES[:7], IMAGES[:7] + 1), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            part.weight.mul_(0.5)


@compiled
def test_machine_code_is_made_once_and_kept_on_disk_by_what_it_computes():
    """Another constant is another function, although its tensors have the same shapes."""
    found = []
    for shift in (0.0, 0.0, 1.0):
        before = counters["inductor"]["fxgraph_cache_hit"]
        got = Recorded(Part(shift), rows=4, after=0)(IMAGES[:4], IMAGES[:4] + 1)
        torch.testing.assert_close(got[0], Part(shift)(IMAGES[:4], IMAGES[:4] + 1)[0].detach(), rtol=1e-5, atol=1e-6)
        found.append(counters["inductor"]["fxgraph_cache_hit"] - before)
    assert found[1] == 1


# --- another device ---

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_a_network_computed_elsewhere_is_the_network_and_its_results_are_here(device, basis):
    model = network()
    ordinary = copy.deepcopy(model)
    model.compute_on(device)
    y, cov = IMAGES[:8].double(), covariance(basis, 8, torch.float64)
    got, want = model(y, cov), ordinary(y, cov)
    for name in ("energy", "grad_y", "grad_logvar", "denoised", "posterior_variance"):
        assert getattr(got, name).device == y.device
        torch.testing.assert_close(getattr(got, name), getattr(want, name), rtol=2e-4, atol=2e-5, msg=name)
    torch.testing.assert_close(model.log_prob(y, cov), ordinary.log_prob(y, cov), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
@pytest.mark.parametrize("device", DEVICES)
def test_second_derivatives_come_back_from_elsewhere(counting, device, basis, recorded):
    found = []
    for remote in (False, True):
        model = network()
        if remote:
            model.compute_on(device)
        if remote and recorded:
            model.compile(rows=4, after=0)
        y, cov = IMAGES[:4].double().requires_grad_(), covariance(basis, 4, torch.float64)
        logvar = cov.values.log().requires_grad_()
        inputs = (y, logvar)
        first = torch.autograd.grad(model.energy(y, cov.replace(logvar.exp())).sum(), inputs, create_graph=True)
        directions = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape) * (k + 1) for k in range(2)]
        second = torch.autograd.grad(first, inputs, directions)
        found.append([x.detach() for x in (*first, *second)])
    for got, want in zip(*reversed(found), strict=True):
        assert float(want.abs().max()) > 1e-3
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-4)
    assert counting.calls == (2 if recorded and device == "cpu" else 0)


def test_an_attached_function_has_the_derivatives_it_was_given():
    """f = Σ a² sin b, whose Hessian times (v, w) is (2 v sin b + 2 a w cos b, 2 a v cos b − a² w sin b)."""

    def first(a, b):
        return (a.square() * b.sin()).flatten(1).sum(1), 2 * a * b.sin(), a.square() * b.cos()

    def second(a, b, v, w):
        return 2 * v * b.sin() + 2 * a * w * b.cos(), 2 * a * v * b.cos() - a.square() * w * b.sin()

    inputs = [torch.rand(3, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: attached(a, b, first, second), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: attached(a, b, first, second), inputs)


def test_a_network_computed_elsewhere_is_a_copy_of_one_in_use():
    model = network()
    y, cov = IMAGES[:4], covariance("pixel", 4)
    before = model(y, cov).energy
    model.compute_on("cpu")
    kept = list(model.state_dict())
    for p in model.parameters():
        p.mul_(1.5)
    torch.testing.assert_close(model(y, cov).energy, before)
    assert not torch.allclose(copy.deepcopy(model)(y, cov).energy, before)  # a copy computes by its own weights
    assert kept == list(network().state_dict()) and len(list(model.modules())) == len(list(network().modules()))
    for device in ("nonsense", "meta"):
        with pytest.raises(ValueError, match=f"device: '{device}' cannot be used here"):
            model.compute_on(device)
    with pytest.raises(ValueError, match="compute_on: wanted a model in evaluation mode"):
        network().train().compute_on("cpu")


def test_a_network_computed_elsewhere_is_compiled_there(counting):
    model = network()
    model.compute_on("cpu")
    model.compile(rows=4, after=0)
    y, cov = IMAGES[:4], covariance("pixel", 4)
    torch.testing.assert_close(model(y, cov).energy, copy.deepcopy(model)(y, cov).energy, rtol=2e-4, atol=2e-5)
    assert counting.calls == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device")
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_a_replayed_network_is_the_network(basis):
    model = network()
    ordinary = copy.deepcopy(model)
    model.compute_on("cuda")
    model.compile(rows=8, after=1)
    for batch in (1, 3, 8, 12, 12, 3, 1):  # graphs for 1, 4 and 8 rows; 12 is cut up
        y, cov = IMAGES[:batch].double(), covariance(basis, batch, torch.float64)
        got, want = model(y, cov), ordinary(y, cov)
        torch.testing.assert_close(got.energy, want.energy, rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(got.grad_y, want.grad_y, rtol=2e-4, atol=2e-5)


class _Graph:
    """In place of a CUDA graph: computes from the fixed inputs into the fixed results."""

    def __init__(self, module, fixed):
        self.module, self.fixed, self.replays = module, fixed, 0
        self.results = [part.clone() for part in module(*fixed)]

    def replay(self):
        self.replays += 1
        for old, new in zip(self.results, self.module(*self.fixed), strict=True):
            old.copy_(new)


def test_replays_fill_cut_and_count(monkeypatch):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x):
            return x * self.weight, x.sum(1)

    made = []

    def capture(self, fixed):
        made.append(_Graph(self.module, fixed))
        return made[-1], fixed, made[-1].results

    monkeypatch.setattr(Replayed, "_capture", capture)
    part = Part()
    replayed = Replayed(part, rows=5, after=1)  # graphs of up to four rows
    for count in (3, 3, 6, 1, 1):
        x = torch.rand(count, 3)
        product, total = replayed(x.requires_grad_())
        torch.testing.assert_close(product, x.detach())
        torch.testing.assert_close(total, x.detach().sum(1))
        assert not product.requires_grad
    assert [len(g.fixed[0]) for g in made] == [4, 1] and made[0].replays == 2 and made[1].replays == 1
    part.double()
    replayed(torch.rand(3, 3)), replayed(torch.rand(3, 3))
    assert len(made) == 3  # the weights are elsewhere now
