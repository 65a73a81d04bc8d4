"""The reference of the speed bench is the same network: energies, gradients and losses, in float64."""

import pytest
import torch

from anem.bases import Fourier, Mixed, Pixel
from anem.bench.reference import ComplexFourier, PlainNetwork, plain_basis
from anem.corruptions import NoiseConfig, draw_covariances
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics

SHAPES = {
    "default": {},
    "norm": {"norm": 4},
    "attention": {"attention": (1,), "channels": (32, 64)},
    "no rounds": {"rounds": 0},
    "inner": {"form": "inner"},
}


def networks(changes, colours=1):
    """A model with weights far from its start, in float64, and its plain form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, colours, 8, 8, generator=generator) * (torch.rand(64, 1, 8, 8, generator=generator) < 0.5)
    model = EnergyNetwork(NetworkConfig.preset("tiny").override(**changes), DataStatistics.fit(x))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model = model.double()
    return model, PlainNetwork(model), x[:16].double()


def draws(model, x, generator):
    cov = draw_covariances(tuple(x.shape), model.statistics, NoiseConfig(lambda_min=1e-6, stratified=True), generator).cov
    return cov.to(x.dtype), torch.randn(x.shape, dtype=x.dtype, generator=generator)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_energy_and_gradients_are_the_same(changes, generator):
    model, plain, x = networks(changes)
    cov, noise = draws(model, x, generator)
    y = x + cov.color(noise)
    ours, theirs = model(y, cov), plain(y, cov)
    for name in ("energy", "grad_y", "grad_logvar"):
        a, b = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_losses_and_their_gradients_are_the_same(changes, generator):
    model, plain, x = networks(changes)
    cov, noise = draws(model, x, generator)
    losses = [dual_score_loss(m, x, cov, noise, config=LossConfig.plain(balance=0.5)) for m in (model, plain)]
    torch.testing.assert_close(losses[0].total, losses[1].total, rtol=1e-10, atol=0)
    for term in losses:
        term.total.backward()
    ours, theirs = dict(model.named_parameters()), dict(plain.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, p in ours.items():
        q = theirs[name]
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            scale = float(q.grad.abs().max())
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9 * scale + 1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_colour_images_too(generator):
    model, plain, x = networks({}, colours=3)
    cov, noise = draws(model, x, generator)
    torch.testing.assert_close(model.energy(x + cov.color(noise), cov), plain.energy(x + cov.color(noise), cov), rtol=1e-10, atol=0)


def test_bases_are_complex_inside(generator):
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(ComplexFourier().forward(x), Fourier().forward(x), rtol=0, atol=1e-12)
    mixed = plain_basis(Mixed([Pixel(), Fourier()], torch.tensor([1, 0])))
    assert [type(b) for b in mixed.bases] == [Pixel, ComplexFourier] and mixed == Mixed([Pixel(), Fourier()], torch.tensor([1, 0]))


def python_nodes(root):
    """Names of the functions written in Python in the graph of a tensor."""
    seen, names, stack = set(), set(), [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            names.add(node.name())
        stack += [parent for parent, _ in node.next_functions]
    return names


def test_the_reference_has_no_function_of_ours(generator):
    model, plain, x = networks({"norm": 4})
    cov, noise = draws(model, x, generator)
    nodes = [python_nodes(dual_score_loss(m, x, cov, noise).total) for m in (model, plain)]
    assert {"_ConvBackward", "_SiluBackward", "_GroupNormBackward", "_LogDensityBackward", "_HartleyBackward"} <= nodes[0]
    assert nodes[1] == set()
