"""Expectation propagation: exact where cavities are, near the integral where it is not, and what its tables say."""

import math

import pytest
import torch

from anem.bases import as_basis
from anem.covariance import Covariance
from anem.gaussian import IndependentPixels
from anem.marginal import ScalarMixture
from anem.propagation import _log_site, propagate
from anem.statistics import DataStatistics


def statistics(size=(1, 2), weights=(0.6, 0.4), means=(0.0, 0.8), variances=(1e-3, 0.04)):
    """Of independent pixels from a scalar mixture."""
    stats = DataStatistics(1, *size, dct=()).double()
    stats.marginal = mixture = ScalarMixture(1, len(weights)).double()
    p, m, s = (torch.tensor([v], dtype=torch.float64) for v in (weights, means, variances))
    mixture.weights.copy_(p), mixture.means.copy_(m), mixture.variances.copy_(s)
    mean = (p * m).sum()
    variance = (p * (s + m.square())).sum() - mean.square()
    stats.mean.fill_(mean), stats.variance.fill_(variance), stats.spectrum.fill_(variance)
    divergences, reductions = mixture._tables()
    mixture.divergences.copy_(divergences), mixture.reductions.copy_(reductions)
    return stats


def run(stats, y, cov, rounds, share=0.5):
    rho = stats.residual(y, cov.basis)
    level = stats.variance.expand_as(cov.values)
    found = propagate(rho, cov.values, level, cov.basis, stats, rounds, torch.full((len(y), 1, 1, 1), share, dtype=y.dtype))
    t = level + cov.values
    flat = 0.5 * (rho.square() / t + torch.log(2 * math.pi * t)).flatten(1).sum(1)
    return found, flat + found.energies


def pixels(stats, n, seed=0):
    g = torch.Generator().manual_seed(seed)
    m = stats.marginal
    j = torch.multinomial(m.weights[0], n * 2, True, generator=g)
    return (m.means[0, j] + m.variances[0, j].sqrt() * torch.randn(n * 2, generator=g, dtype=torch.float64)).view(n, 1, 1, 2)


def exact(stats, y, cov):
    """−log p(y) of two pixels, all components of both at once."""
    m, basis = stats.marginal, cov.basis
    eye = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2)
    b = basis.forward(eye).view(2, 2).T
    sigma = torch.einsum("ki,bk,kj->bij", b, cov.values.flatten(1), b)
    total = []
    for i in range(2):
        for j in range(2):
            mean = torch.stack([m.means[0, i], m.means[0, j]])
            spread = sigma + torch.diag(torch.stack([m.variances[0, i], m.variances[0, j]]))
            normal = torch.distributions.MultivariateNormal(mean.expand(len(y), 2), spread)
            total.append(normal.log_prob(y.flatten(1)) + torch.log(m.weights[0, i] * m.weights[0, j]))
    return -torch.logsumexp(torch.stack(total), 0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_every_round_is_exact_in_pixels(share):
    stats, x = statistics(), pixels(statistics(), 200)
    values = 10 ** (-8 + 9 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    cov = Covariance(values, "pixel")
    y = x + cov.sample(torch.Generator().manual_seed(2))
    found, energies = run(stats, y, cov, 3, share)
    assert torch.allclose(energies, exact(stats, y, cov).expand(4, -1), rtol=1e-9, atol=1e-6)
    assert torch.allclose(found.noise, values, rtol=1e-6)


def test_white_noise_is_exact_in_frequencies_too():
    stats, x = statistics(), pixels(statistics(), 200)
    cov = Covariance.white(0.01, x.shape, "fourier", like=x)
    y = x + cov.sample(torch.Generator().manual_seed(2))
    assert torch.allclose(run(stats, y, cov, 3)[1], exact(stats, y, cov).expand(4, -1), rtol=1e-9)


@pytest.mark.parametrize("values", [(1e-4, 0.3), (0.3, 1e-4), (1e-3, 0.1)])
def test_rounds_approach_the_exact_energy_of_two_pixels(values):
    """One coordinate well known and one hardly: mean-field is far off, the sites repair most of it."""
    stats, x = statistics(), pixels(statistics(), 2000)
    cov = Covariance(torch.tensor(values, dtype=torch.float64).view(1, 1, 1, 2).expand(len(x), 1, 1, 2), "fourier")
    y = x + cov.sample(torch.Generator().manual_seed(2))
    errors = (run(stats, y, cov, 4)[1] - exact(stats, y, cov)).abs().median(1).values
    assert errors[-1] < 0.5 * errors[0], errors


def test_gaussian_pixels_need_no_sites():
    stats = statistics(weights=(1.0,), means=(0.3,), variances=(0.05,))
    x = pixels(stats, 50)
    cov = Covariance(torch.tensor([1e-3, 2.0], dtype=torch.float64).view(1, 1, 1, 2).expand(50, 1, 1, 2), "fourier")
    found, _ = run(stats, x + cov.sample(torch.Generator().manual_seed(2)), cov, 3)
    assert found.energies.abs().max() < 1e-6


def test_mean_posterior_variance_follows_from_the_divergence():
    """K(τ) = ½ log 2πe(c̄ + τ) − h(m), and by de Bruijn's identity mmse = 1/(1/c̄ + 1/τ) + 2τ² dK/dτ."""
    stats = statistics()
    tau = torch.logspace(-4, 1, 30, dtype=torch.float64).view(1, 1, 1, -1).requires_grad_()
    slope = torch.autograd.grad(stats.marginal.divergence(tau).sum(), tau)[0]
    linear = 1 / (1 / stats.variance + 1 / tau)
    assert torch.allclose(linear * stats.marginal.log_reduction(tau).exp(), linear + 2 * tau.square() * slope, rtol=0.02, atol=1e-7)


def test_mean_posterior_variance_is_that_of_samples():
    stats = statistics()
    x = pixels(stats, 200_000)
    tau = torch.full_like(x, 0.05)
    _, posterior = stats.marginal(x + tau.sqrt() * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype), tau)
    linear = 1 / (1 / stats.variance + 1 / tau)
    predicted = (linear * stats.marginal.log_reduction(tau).exp()).mean()
    assert abs((posterior - x).square().mean() / predicted - 1) < 0.02


def test_energies_vanish_where_nothing_is_observed():
    stats, x = statistics(), pixels(statistics(), 50)
    cov = Covariance(torch.tensor([1e5, 3e5], dtype=torch.float64).view(1, 1, 1, 2).expand(50, 1, 1, 2), "fourier")
    assert run(stats, x + cov.sample(torch.Generator().manual_seed(2)), cov, 3)[0].energies.abs().max() < 1e-3


def test_single_precision_follows_double():
    stats, x = statistics(size=(8, 8)), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    basis = as_basis("fourier")
    values = basis.symmetrise(10 ** (-8 + 4 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)))
    cov = Covariance(values, basis)
    y = x + cov.sample(torch.Generator().manual_seed(2))
    double = run(stats, y, cov, 2)[0].energies
    single = run(stats.float(), y.float(), cov.to(torch.float32), 2)[0].energies
    assert torch.allclose(single.double(), double, rtol=2e-3, atol=0.5)


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_the_energy_of_independent_pixels_is_normalised_in_both_gradients(basis):
    """Exact in pixels and for white noise: E ∂U/∂ℓ = 0, and the one-call posterior variance is the squared error."""
    model, x = IndependentPixels(statistics()), pixels(statistics(), 20_000)
    cov = Covariance.white(0.05, x.shape, basis, like=x)
    y = x + cov.sample(torch.Generator().manual_seed(2))
    result = model(y, cov)
    assert torch.allclose(result.energy, exact(model.statistics, y, cov), rtol=1e-9)
    slope = result.grad_logvar.flatten(1).mean(1)
    assert slope.mean().abs() < 4 * slope.std() / len(x) ** 0.5
    error = cov.basis.forward(result.denoised - x).square()
    assert abs(error.mean() / result.posterior_variance.mean() - 1) < 0.03


@pytest.mark.parametrize("settings", [{"rounds": -1}, {"share": 0.0}, {"share": 1.5}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="independent pixels: wanted"):
        IndependentPixels(statistics(), **settings)


def test_the_factor_of_a_site_is_its_integral():
    """−2 log E[exp(−½γx² + (γx̃ + d)x)], x ~ N(x̃ + o, v), by quadrature, but for −γx̃² − 2dx̃, which belongs to the site."""
    gamma, d, tilted, offset, v = (torch.tensor(a, dtype=torch.float64) for a in (0.7, -0.4, 0.9, 0.3, 1.6))
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)
    log_density = -0.5 * ((x - tilted - offset).square() / v + torch.log(2 * math.pi * v))
    log_site = -0.5 * gamma * x.square() + (gamma * tilted + d) * x
    integral = -2 * ((log_density + log_site).logsumexp(0) + math.log(float(x[1] - x[0])))
    assert float(_log_site(gamma, d, offset, v)) == pytest.approx(float(integral + gamma * tilted.square() + 2 * d * tilted), rel=1e-9)
