"""The Fokker–Planck residual at exact energies, and its probes."""

import pytest
import torch

from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance, as_basis
from anem.gaussian import make_power_law_gaussian, make_skewed
from anem.losses import dual_score_loss, fokker_planck_residuals
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics


def hadamard(batch):
    """16 signs of 4 × 4 images whose mean z zᵀ is the identity: over them Hutchinson's estimator is exact."""
    h = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(4):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return [row.reshape(1, 1, 4, 4).expand(batch, -1, -1, -1) for row in h]


def setting(prior, basis, generator):
    basis = as_basis(basis)
    cov = Covariance(basis.symmetrise(10 ** (torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64) - 1)), basis)
    y = prior.sample(3, generator) + cov.sample(generator)
    return prior.statistics.residual(y, basis), cov


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
@pytest.mark.parametrize("make", [make_skewed, make_power_law_gaussian])
def test_residual_of_an_exact_energy_is_zero_in_the_mean(make, basis, generator):
    """A wrong sign, a factor 2 or a missing λ would leave a part of ∂U/∂ℓ, which is of order one here."""
    prior = make(1, 4, 4)
    rho, cov = setting(prior, basis, generator)
    gradients, residuals = fokker_planck_residuals(prior, rho, cov, hadamard(3))
    assert torch.stack(residuals).mean(0).abs().max() < 1e-10
    y = prior.statistics.mean_image(rho) + cov.basis.inverse(rho)
    torch.testing.assert_close(gradients.grad_logvar, prior(y, cov).grad_logvar, rtol=1e-8, atol=1e-10)
    assert gradients.grad_logvar.abs().max() > 0.05


class Scaled(torch.nn.Module):
    """s U, which is no density's energy; its residual is (s − s²) of the quadratic part: ½ s(s − 1) λ (∂U/∂ρ)²."""

    def __init__(self, prior, s):
        super().__init__()
        self.prior, self.s, self.statistics = prior, s, prior.statistics

    def energy(self, y, cov):
        return self.s * self.prior.energy(y, cov)


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_residual_of_a_scaled_energy_is_its_closed_form(basis, generator):
    prior, s = make_skewed(1, 4, 4), 0.7
    rho, cov = setting(prior, basis, generator)
    gradients, residuals = fokker_planck_residuals(Scaled(prior, s), rho, cov, hadamard(3))
    expected = 0.5 * (s - 1) / s * cov.values * cov.basis.symmetrise(gradients.grad_coordinates.square())
    torch.testing.assert_close(torch.stack(residuals).mean(0), expected, rtol=1e-8, atol=1e-10)


def test_products_of_two_probes_have_the_mean_of_the_square(generator):
    """Over all pairs of independent probes the product averages to r², 0 at the truth; the square of one adds the probe's own noise."""
    prior = make_skewed(1, 4, 4)
    rho, cov = setting(prior, "pixel", generator)
    for energy in (prior, Scaled(prior, 0.7)):
        r = torch.stack(fokker_planck_residuals(energy, rho, cov, hadamard(3))[1])
        torch.testing.assert_close((r[:, None] * r[None]).mean((0, 1)), r.mean(0).square(), rtol=1e-9, atol=1e-14)
        assert (r.square().mean(0) - r.mean(0).square()).mean() > 1e-6


@pytest.mark.parametrize("term", ["sliced", "fokker_planck"])
def test_the_parameter_gradient_of_either_term_equals_finite_differences(term):
    torch.manual_seed(0)
    images = torch.rand(8, 1, 8, 8)
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(images)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = draw_covariances((4, 1, 8, 8), model.statistics, NoiseConfig(lambda_min=1e-4), torch.Generator().manual_seed(0))
    cov, noise, x = batch.cov.to(torch.float64), torch.randn(4, 1, 8, 8, dtype=torch.float64), images[:4].double()

    def total():
        generator = torch.Generator().manual_seed(1)
        return dual_score_loss(
            model, x, cov, noise, balance=0.5, collective=0.05, discount=2.0, covariance_term=term, generators=generator
        ).total

    total().backward()
    direction = [torch.randn_like(p) for p in model.parameters()]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(model.parameters(), direction, strict=True))
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(step * d)
        ends.append(float(total().detach()))
    assert abs((ends[0] - ends[1]) / 2e-6 - slope) < 1e-4 * abs(slope) + 1e-6


def test_another_term_is_refused():
    with pytest.raises(ValueError, match="covariance_term: wanted one of matching"):
        dual_score_loss(None, None, None, None, covariance_term="hutchinson")
