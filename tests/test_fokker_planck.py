"""The Fokker–Planck residual at exact energies, and its probes."""

import pytest
import torch

from anem.bases import as_basis
from anem.covariance import Covariance
from anem.gaussian import make_power_law_gaussian, make_skewed
from anem.losses import LossConfig, fokker_planck_residuals


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


def test_another_term_is_refused():
    with pytest.raises(ValueError, match="covariance_term: wanted one of matching"):
        LossConfig(covariance_term="hutchinson")
