"""The oracles against closed forms, numerical integrals, finite differences and each other, in float64."""

import math

import pytest
import torch

from anem.bases import BlockDCT, Fourier, Mixed, Pixel, as_basis
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import MAX_DENSE, Gaussian, GaussianMixture, basis_matrix, make_mixture, make_power_law_gaussian, make_skewed
from anem.statistics import DataStatistics

BASES = ["pixel", "fourier", "dct2", "mixed"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_basis(name: str, batch: int):
    return Mixed([Pixel(), Fourier(), BlockDCT(2)], torch.arange(batch) % 3) if name == "mixed" else as_basis(name)


def random_cov(name: str, shape, seed: int = 0, low: float = -3.0, high: float = 1.0) -> Covariance:
    """Variances 10**low … 10**high, independent over coordinates."""
    basis = make_basis(name, shape[0])
    logs = low + (high - low) * torch.rand(shape, generator=generator(seed), dtype=torch.float64)
    return Covariance(basis.symmetrise(10**logs), basis)


def dense(cov: Covariance) -> torch.Tensor:
    """Σ in image space, (B, d, d)."""
    matrix = basis_matrix(cov.basis, cov.shape[1:])
    return matrix.mT @ (cov.values.flatten(1)[..., None] * matrix)


def small_mixture(channels: int = 2, seed: int = 1) -> GaussianMixture:
    """Three components with generic dense covariances on 4 × 2 images: nothing stationary, nothing symmetric."""
    d = channels * 8
    factors = torch.randn(3, d, d, generator=generator(seed), dtype=torch.float64) / d**0.5
    means = torch.randn(3, channels, 4, 2, generator=generator(seed + 1), dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), means, factors @ factors.mT)


def priors() -> list[EnergyModel]:
    spectrum = make_power_law_gaussian(2, 4, 2).variance
    mean = torch.randn(2, 4, 2, generator=generator(7), dtype=torch.float64)
    return [
        small_mixture(),
        Gaussian(mean, Covariance(spectrum, "fourier")),
        Gaussian(mean, random_cov("pixel", (1, 2, 4, 2), seed=3)),
        Gaussian(mean, Covariance.white(0.3, (1, 2, 4, 2), like=mean)),
    ]


def observation(prior: EnergyModel, cov: Covariance, seed: int = 5) -> torch.Tensor:
    return prior.sample(len(cov.values), generator(seed)) + cov.sample(generator(seed + 1))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("index", range(4))
def test_closed_form_gradients_equal_autograd(index, basis):
    prior = priors()[index]
    cov = random_cov(basis, (6, 2, 4, 2))
    y = observation(prior, cov)
    closed, automatic = prior(y, cov), EnergyModel.forward(prior, y, cov)
    torch.testing.assert_close(closed.energy, automatic.energy, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(closed.grad_y, automatic.grad_y, rtol=1e-9, atol=1e-10)
    if not isinstance(cov.basis, Mixed) and cov.basis == getattr(prior, "basis", None):
        assert prior.dense is not None
        torch.testing.assert_close(automatic.grad_logvar, prior.dense(y, cov).grad_logvar, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(closed.grad_logvar, automatic.grad_logvar, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("basis", BASES)
def test_gaussian_closed_forms(basis):
    """∇U = A⁻¹r and ∂U/∂Σ = ½(A⁻¹ − A⁻¹rrᵀA⁻¹), projected on ℓ = log λ."""
    prior = priors()[1]
    cov = random_cov(basis, (6, 2, 4, 2))
    y = observation(prior, cov)
    matrix = basis_matrix(cov.basis, cov.shape[1:])
    total = dense(Covariance(prior.variance, prior.basis)) + dense(cov)
    inverse = torch.linalg.inv(total)
    r = (y - prior.mean).flatten(1)
    gradient = (inverse @ r[..., None])[..., 0]
    evaluation = prior(y, cov)
    torch.testing.assert_close(evaluation.grad_y.flatten(1), gradient, rtol=1e-9, atol=1e-9)
    by_sigma = 0.5 * (inverse - gradient[:, :, None] * gradient[:, None, :])
    by_lambda = (matrix @ by_sigma * matrix).sum(-1).reshape(y.shape)
    torch.testing.assert_close(evaluation.grad_logvar, cov.values * cov.basis.symmetrise(by_lambda), rtol=1e-9, atol=1e-9)
    energy = 0.5 * ((r * gradient).sum(1) + torch.logdet(total) + r.shape[1] * math.log(2 * math.pi))
    torch.testing.assert_close(evaluation.energy, energy, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("basis", BASES)
def test_fokker_planck(basis):
    """∂U/∂Σ = ½(∇²U − ∇U∇Uᵀ), with ∇²U by differentiating twice and ∂U/∂λ by differentiating the energy in λ."""
    prior = small_mixture()
    cov = random_cov(basis, (3, 2, 4, 2))
    y = observation(prior, cov)
    matrix = basis_matrix(cov.basis, cov.shape[1:])
    evaluation = EnergyModel.forward(prior, y, cov)
    for b in range(len(y)):
        one = cov[torch.tensor([b])]
        hessian = torch.autograd.functional.hessian(lambda v, one=one: prior.energy(v.reshape(1, 2, 4, 2), one)[0], y[b].flatten())
        g = evaluation.grad_y[b].flatten()
        by_sigma = 0.5 * (hessian - torch.outer(g, g))
        m = matrix[b % len(matrix)]
        expected = one.values * one.basis.symmetrise((m @ by_sigma * m).sum(-1).reshape(1, 2, 4, 2))
        torch.testing.assert_close(evaluation.grad_logvar[b : b + 1], expected, rtol=1e-8, atol=1e-8)


def test_gradients_by_finite_differences():
    prior, cov = small_mixture(), random_cov("fourier", (2, 2, 4, 2))
    y, h = observation(prior, cov), 1e-5
    direction = torch.randn(y.shape, generator=generator(9), dtype=torch.float64)
    evaluation = prior(y, cov)
    slope = (prior.energy(y + h * direction, cov) - prior.energy(y - h * direction, cov)) / (2 * h)
    torch.testing.assert_close((evaluation.grad_y * direction).sum((1, 2, 3)), slope, rtol=1e-7, atol=1e-7)
    up, down = (cov.replace(cov.values * (s * h * cov.basis.symmetrise(direction)).exp()) for s in (1, -1))
    slope = (prior.energy(y, up) - prior.energy(y, down)) / (2 * h)
    torch.testing.assert_close((evaluation.grad_logvar * direction).sum((1, 2, 3)), slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("index", range(4))
def test_tweedie_and_posterior_variance(index, basis):
    prior = priors()[index]
    cov = random_cov(basis, (6, 2, 4, 2))
    y = observation(prior, cov)
    evaluation, posterior = prior(y, cov), prior.posterior(y, cov)
    torch.testing.assert_close(evaluation.denoised, posterior.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(evaluation.posterior_variance, posterior.variance, rtol=1e-8, atol=1e-8)
    matrix = basis_matrix(cov.basis, cov.shape[1:])
    diagonal = (matrix @ posterior.covariance * matrix).sum(-1).reshape(y.shape)
    torch.testing.assert_close(posterior.variance, cov.basis.symmetrise(diagonal), rtol=1e-9, atol=1e-9)


def test_posterior_by_bayes_rule():
    """p(x given y) ∝ p(x) N(y; x, Σ): the log-ratio is the same constant at any two points x."""
    prior, cov = small_mixture(), random_cov("dct2", (1, 2, 4, 2))
    y = observation(prior, cov)
    posterior = prior.posterior(y, cov)
    x = prior.sample(40, generator(3))
    clean = GaussianMixture(prior.weights, prior.means, prior.covariances)
    tiny = Covariance.white(1e-12, x.shape, like=x)
    after = GaussianMixture(posterior.weights[0], posterior.means[0], posterior.covariances[0])
    log_likelihood = -0.5 * (cov.norm2(y - x) + cov.logdet() + y[0].numel() * math.log(2 * math.pi))
    constant = -clean.energy(x, tiny) + log_likelihood + after.energy(x, tiny)
    torch.testing.assert_close(constant, -prior.energy(y, cov).expand(40), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("basis", ["pixel", "fourier", "mixed"])
def test_samples_have_the_posterior_moments(basis):
    """Means and second moments within 5 standard errors: false-alarm rate below 1e-6 a number, 1e-3 over all."""
    prior, cov, n = small_mixture(1), random_cov(basis, (3, 1, 4, 2)), 20_000
    y = observation(prior, cov)
    posterior = prior.posterior(y, cov)
    x = posterior.sample(n, generator(11)).flatten(2)
    products = torch.einsum("nbi,nbj->nbij", x - posterior.mean.flatten(1), x - posterior.mean.flatten(1))
    for draws, exact in ((x, posterior.mean.flatten(1)), (products, posterior.covariance)):
        assert bool(((draws.mean(0) - exact).abs() <= 5 * draws.std(0) / n**0.5).all())


def test_density_integrates_to_one():
    """Trapezoid sums over two coordinates, for a pixel and a Fourier description."""
    factors = torch.tensor([[[0.5, 0.0], [0.3, 0.2]], [[0.3, 0.0], [-0.4, 0.6]]], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.5], [1.5, -1.0]], dtype=torch.float64).reshape(2, 1, 1, 2)
    prior = GaussianMixture(torch.tensor([0.25, 0.75]), means, factors @ factors.mT)
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).reshape(-1, 1, 1, 2)
    for basis in ("pixel", "fourier"):
        values = torch.tensor([0.05, 0.8], dtype=torch.float64).reshape(1, 1, 1, 2)
        cov = Covariance(values, basis).expand(len(points))
        mass = (-prior.energy(points, cov)).exp().sum() * (axis[1] - axis[0]) ** 2
        assert abs(float(mass) - 1) < 1e-8


@pytest.mark.parametrize("basis", BASES[:3])
def test_mean_of_energy_slope_is_zero(basis):
    """E_y[∂U/∂λ] = 0 within 5 standard errors in every coordinate (false-alarm rate below 1e-4)."""
    prior, n = make_skewed(1, 4, 4), 20_000
    cov = random_cov(basis, (1, 1, 4, 4)).expand(n)
    slope = prior(observation(prior, cov), cov).grad_logvar
    assert bool((slope.mean(0).abs() <= 5 * slope.std(0) / n**0.5).all())


@pytest.mark.parametrize("index", range(4))
def test_same_white_noise_in_every_basis(index):
    prior = priors()[index]
    y = observation(prior, Covariance.white(0.1, (3, 2, 4, 2), like=torch.zeros((), dtype=torch.float64)))
    for variance in (1e-6, 1e-2, 1.0, 1e3):
        covs = [Covariance.white(variance, y.shape, make_basis(name, 3), like=y) for name in BASES]
        energies = torch.stack([prior.energy(y, cov) for cov in covs])
        torch.testing.assert_close(energies, energies[:1].expand_as(energies), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize(
    "prior", [make_mixture(8), make_power_law_gaussian(3), make_skewed(), small_mixture()], ids=["mixture", "power", "skew", "generic"]
)
def test_exact_statistics_are_those_of_many_samples(prior):
    """Relative error below 5 % with 20,000 samples, whose relative standard error is at most about 1 %."""
    fitted, exact = DataStatistics.fit(prior.sample(20_000, generator(2))), prior.statistics
    torch.testing.assert_close(fitted.mean.double(), exact.mean, rtol=0.03, atol=0.02)
    for name in ("variance", "spectrum", *(f"dct{f}" for f in fitted.dct)):
        torch.testing.assert_close(fitted.get_buffer(name).double(), exact.get_buffer(name), rtol=0.05, atol=1e-6)


def test_largest_eigenvalue_bounds_every_direction():
    for prior in (make_mixture(8), make_power_law_gaussian(1, 8, 4), make_skewed()):
        offset = (prior.sample(20_000, generator(4)) - prior.statistics.mean_image(torch.zeros((), dtype=torch.float64))).flatten(1)
        top = float(torch.linalg.eigvalsh(offset.T @ offset / len(offset))[-1])
        assert abs(top / float(prior.statistics.largest_eigenvalue) - 1) < 0.05


def test_skewed_prior_is_skewed():
    x = make_skewed().sample(20_000, generator(6)).mean((1, 2, 3))
    z = (x - x.mean()) / x.std()
    assert float(z.pow(3).mean()) > 0.5


def test_gaussian_of_any_size_in_its_basis_and_white():
    spectrum = torch.ones(1, 1, 48, 40, dtype=torch.float64)
    prior = Gaussian(torch.zeros(1, 48, 40), Covariance(spectrum, "fourier"), statistics=DataStatistics(1, 48, 40))
    assert prior.mean.numel() > MAX_DENSE and prior.dense is None
    cov = random_cov("mixed", (3, 1, 48, 40))
    y = observation(prior, cov)
    torch.testing.assert_close(prior(y, cov).denoised, prior.posterior(y, cov).mean, rtol=1e-9, atol=1e-9)


def test_float32_in_float32_out():
    prior, cov = small_mixture(), random_cov("fourier", (2, 2, 4, 2))
    y = observation(prior, cov)
    single, double = prior(y.float(), cov.to(torch.float32)), prior(y, cov)
    assert single.energy.dtype == single.grad_y.dtype == single.grad_logvar.dtype == torch.float32
    torch.testing.assert_close(single.denoised.double(), double.denoised, rtol=1e-3, atol=1e-4)


def test_saved_and_loaded_gives_the_same_energy():
    prior, other = small_mixture(seed=1), small_mixture(seed=5)
    cov = random_cov("fourier", (2, 2, 4, 2))
    y = observation(prior, cov)
    assert not torch.allclose(prior.energy(y, cov), other.energy(y, cov))
    other.load_state_dict(prior.state_dict())
    torch.testing.assert_close(prior.energy(y, cov), other.energy(y, cov))


def test_wrong_arguments_are_named():
    mean, eye = torch.zeros(2, 1, 2, 2), torch.eye(4).expand(2, 4, 4)
    with pytest.raises(ValueError, match="weights"):
        GaussianMixture(torch.tensor([0.5, 0.6]), mean, eye)
    with pytest.raises(ValueError, match="covariances"):
        GaussianMixture(torch.tensor([0.5, 0.5]), mean, -eye)
    with pytest.raises(ValueError, match="wanted"):
        GaussianMixture(torch.tensor([0.5, 0.5]), mean, torch.eye(3).expand(2, 3, 3))
    with pytest.raises(ValueError, match="1024"):
        basis_matrix(Pixel(), (1, 64, 64))
    spectrum = random_cov("fourier", (1, 1, 48, 40))
    large = Gaussian(torch.zeros(1, 48, 40), spectrum, statistics=DataStatistics(1, 48, 40))
    with pytest.raises(ValueError, match="1024"):
        large.energy(torch.zeros(1, 1, 48, 40), random_cov("pixel", (1, 1, 48, 40)))
    with pytest.raises(ValueError, match="cov"):
        Gaussian(torch.zeros(1, 4, 4), random_cov("fourier", (2, 1, 4, 4)))
