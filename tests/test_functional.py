"""Derivatives of the network's functions against finite differences, twice."""

from functools import partial

import pytest
import torch

from anem.marginal import ScalarMixture
from anem.nn.functional import GradientScope, conv2d, group_norm, silu

torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_equals_torch_and_differentiates_twice(kernel):
    x, w, b, scope = double(2, 3, 5, 4), double(4, 3, kernel, kernel), double(4), GradientScope()
    assert torch.allclose(conv2d(x, w, b, scope), torch.nn.functional.conv2d(x, w, b, padding=kernel // 2))
    assert torch.autograd.gradcheck(lambda *a: conv2d(*a, scope), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda *a: conv2d(*a, scope), (x, w, b))


def test_silu_differentiates_twice():
    z = double(3, 7)
    f = partial(silu, scope=GradientScope())
    assert torch.allclose(f(z), torch.nn.functional.silu(z))
    assert torch.autograd.gradcheck(f, (z,)) and torch.autograd.gradgradcheck(f, (z,))


def test_what_is_differentiated_once_keeps_one_tensor_a_layer_and_has_the_same_gradient():
    x, w, scope = double(2, 3, 5, 4), double(4, 3, 3, 3), GradientScope()

    def run(again: bool) -> tuple[torch.Tensor, int]:
        kept: list[int] = []
        with scope.inputs_only(again=again), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            out = silu(conv2d(x, w, None, scope), scope).square().sum()
            return torch.autograd.grad(out, x)[0], sum(kept)

    gradients, sizes = zip(run(True), run(False), strict=True)
    assert torch.equal(*gradients)
    convolution, activation = x.numel() + w.numel(), 3 * 2 * 4 * 5 * 4
    assert sizes[0] - sizes[1] == x.numel() + activation * 2 // 3 and convolution < sizes[0]


def test_group_norm_equals_torch_and_differentiates_twice():
    x = double(2, 6, 3, 2)
    assert torch.allclose(group_norm(x, 2), torch.nn.functional.group_norm(x, 2))
    assert torch.autograd.gradcheck(lambda v: group_norm(v, 2), (x,))
    assert torch.autograd.gradgradcheck(lambda v: group_norm(v, 2), (x,))


def test_inputs_only_scope_leaves_input_gradients_and_drops_weight_gradients():
    x, w, scope = double(2, 3, 5, 4), double(4, 3, 3, 3), GradientScope()
    reference = torch.autograd.grad(conv2d(x, w, None, scope).square().sum(), x)[0]
    with scope.inputs_only():
        gx, gw = torch.autograd.grad(conv2d(x, w, None, scope).square().sum(), (x, w), allow_unused=True)
    assert torch.equal(gx, reference) and gw is None
    assert scope.weights


def mixture():
    m = ScalarMixture(2, 4).double()
    m.means.copy_(torch.randn(2, 4, dtype=torch.float64))
    m.variances.copy_(torch.rand(2, 4, dtype=torch.float64) + 0.1)
    m.weights.copy_(torch.softmax(torch.randn(2, 4, dtype=torch.float64), 1))
    return m


def test_scalar_mixture_is_its_density_and_posterior_mean():
    model, m, v = mixture(), double(3, 2, 2, 2), (torch.rand(3, 2, 2, 2, dtype=torch.float64) + 0.05)
    log_p, mean = model(m, v)
    for c in range(2):
        t = model.variances[c] + v[:, c, ..., None]
        parts = torch.distributions.Normal(model.means[c], t.sqrt())
        joint = model.weights[c].log() + parts.log_prob(m[:, c, ..., None])
        assert torch.allclose(log_p[:, c], joint.logsumexp(-1), atol=1e-12)
        share = torch.softmax(joint, -1)
        gain = model.variances[c] / t
        exact = (share * (model.means[c] + gain * (m[:, c, ..., None] - model.means[c]))).sum(-1)
        assert torch.allclose(mean[:, c], exact, atol=1e-12)


def test_scalar_mixture_differentiates_twice():
    model, m, v = mixture(), double(2, 2, 2, 2), (torch.rand(2, 2, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(model, (m, v)) and torch.autograd.gradgradcheck(model, (m, v))


def test_scalar_mixture_stays_finite_at_tiny_noise_and_far_away():
    model = ScalarMixture(1, 3)
    model.variances.copy_(torch.tensor([[1e-8, 1e-8, 1e-2]]))
    m = torch.tensor([-5.0, 0.0, 0.5, 20.0]).reshape(1, 1, 2, 2).requires_grad_()
    for variance in (1e-9, 1e-4, 300.0):
        v = torch.full_like(m, variance).requires_grad_()
        log_p, mean = model(m, v)
        gm, gv = torch.autograd.grad(log_p.sum() + mean.sum(), (m, v), create_graph=True)
        second = torch.autograd.grad((gm * variance**0.5).square().sum() + (gv * variance).square().sum(), (m, v))
        assert all(torch.isfinite(t).all() for t in (log_p, mean, gm, gv, *second))


def test_fit_recovers_moments_of_spiky_values():
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(1, 20_000, generator=generator)
    values = torch.where(torch.rand(1, 20_000, generator=generator) < 0.8, u / 256, torch.rand(1, 20_000, generator=generator))
    model = ScalarMixture(1)
    model.fit(values)
    mean = (model.weights * model.means).sum()
    second = (model.weights * (model.variances + model.means.square())).sum()
    assert abs(mean - values.mean()) < 1e-3
    assert abs(second - mean**2 - values.var()) < 1e-3
    # The spike's own scale is resolved: at noise far below it, its density is near 0.8 × 256.
    log_p, _ = model(torch.full((1, 1, 1, 1), 0.5 / 256), torch.full((1, 1, 1, 1), 1e-8))
    assert abs(log_p.exp().item() / (0.8 * 256) - 1) < 0.25


def fitted():
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(1, 8000, generator=generator)
    model = ScalarMixture(1, 6)
    model.fit(torch.where(torch.rand(1, 8000, generator=generator) < 0.7, u / 64, u), steps=50)
    return model.double()


def test_divergence_is_the_mean_of_the_log_ratio():
    """KL(mixture + N(0, τ) ‖ Gaussian) by numerical integration over the line, at noises on and off the grid."""
    model = fitted()
    p, mean, s = (b[0] for b in (model.weights, model.means, model.variances))
    centre = (p * mean).sum()
    spread = (p * (s + mean.square())).sum() - centre.square()
    for variance in (1e-6, 3.3e-4, 0.021, 1.7):
        grid = torch.linspace(-8, 9, 2_000_001, dtype=torch.float64)
        log_p = model(grid.reshape(1, 1, 1, -1), torch.full((1, 1, 1, len(grid)), variance, dtype=torch.float64))[0].flatten()
        log_q = torch.distributions.Normal(centre, (spread + variance) ** 0.5).log_prob(grid)
        exact = torch.trapezoid(log_p.exp() * (log_p - log_q), grid)
        value = model.divergence(torch.full((1, 1, 1, 1), variance, dtype=torch.float64))
        assert abs(value.item() - exact.item()) < 1e-2 * max(1.0, exact.item())  # the quadrature is good to half a percent


def test_divergence_differentiates_twice_between_grid_points():
    model = fitted()
    log_v = torch.tensor([-15.03, -7.21, -1.1, 0.9], dtype=torch.float64).reshape(1, 1, 2, 2).requires_grad_()
    f = lambda t: model.divergence(t.exp())  # noqa: E731
    assert torch.autograd.gradcheck(f, (log_v,)) and torch.autograd.gradgradcheck(f, (log_v,))


def slope(f, x, direction):
    """The gradient of ⟨direction, f(x)⟩, to be differentiated twice more."""
    return torch.autograd.grad(f(x), x, direction, create_graph=True)[0]


def test_functions_differentiate_three_times():
    """Second derivatives within a loss are differentiated once more by training."""
    scope = GradientScope()
    for f, x in (
        (lambda v: conv2d(v.square(), torch.ones(4, 3, 3, 3, dtype=v.dtype), None, scope), double(1, 3, 2, 2)),
        (partial(silu, scope=scope), double(2, 3)),
        (lambda v: group_norm(v, 2), double(1, 4, 2, 1)),
    ):
        assert torch.autograd.gradgradcheck(lambda v, d, f=f: slope(f, v, d), (x, torch.randn_like(f(x)).requires_grad_()))


def test_scalar_mixture_differentiates_three_times():
    model, m, v = mixture(), double(1, 2, 1, 2), (torch.rand(1, 2, 1, 2, dtype=torch.float64) + 0.3).requires_grad_()

    def slopes(m, v):
        log_p, mean = model(m, v)
        return torch.autograd.grad((log_p * mean).sum(), (m, v), create_graph=True)

    assert torch.autograd.gradgradcheck(slopes, (m, v))
