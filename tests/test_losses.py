"""The losses at an exact energy: their floors, and that the truth minimises them."""

import pytest
import torch

from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.gaussian import Gaussian
from anem.losses import LossConfig, _excess_variance, _misprojection, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig, TrainingGradients
from anem.random import random_signs
from anem.statistics import DataStatistics


class Exact:
    """An exact energy behind the two attributes the loss uses."""

    def __init__(self, energy, statistics):
        self.energy_model, self.statistics = energy, statistics

    def differentiable_gradients(self, rho, cov):
        y = self.statistics.mean_image(rho) + cov.basis.inverse(rho)
        result = self.energy_model(y, cov)
        return TrainingGradients(result.energy, cov.basis.forward(result.grad_y), result.grad_logvar)


def white_gaussian(c=0.3):
    statistics = DataStatistics(1, 6, 8).double()
    mean = torch.zeros(1, 6, 8, dtype=torch.float64)
    return Exact(Gaussian(mean, Covariance(torch.full((1, 1, 6, 8), c, dtype=torch.float64), "pixel")), statistics)


def test_floors_of_both_losses():
    """White data and noise: A-DSM floor a, A-CSM floor ½a(2 − a) in real coordinates and half of it where k and −k share λ, a = c/(c + λ).

    50,000 images of 48 numbers: tolerance 5 standard errors, false-alarm rate 1e-6 a comparison.
    """
    model, c, n = white_gaussian(), 0.3, 50_000
    g = torch.Generator().manual_seed(0)
    for basis in ("pixel", "fourier", "dct2"):
        for variance in (0.03, 0.3, 3.0):
            x = c**0.5 * torch.randn(n, 1, 6, 8, generator=g, dtype=torch.float64)
            cov = Covariance.white(variance, x.shape, basis, like=x)
            terms = dual_score_loss(model, x, cov, torch.randn(x.shape, generator=g, dtype=torch.float64))
            a = c / (c + variance)
            assert abs(terms.a_dsm.mean() - a) < 5 * terms.a_dsm.std() / n**0.5
            # Of the 6 × 8 frequencies, 4 are their own partner.
            share = 1.0 if basis != "fourier" else 0.5 + 0.5 * 4 / 48
            assert abs(terms.a_csm.mean() - share * 0.5 * a * (2 - a)) < 5 * terms.a_csm.std() / n**0.5


def test_a_wrong_variance_costs_both_losses():
    g = torch.Generator().manual_seed(0)
    x = 0.3**0.5 * torch.randn(4000, 1, 6, 8, generator=g, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
    cov = Covariance.white(0.3, x.shape, like=x)
    right, wrong = (dual_score_loss(white_gaussian(c), x, cov, noise) for c in (0.3, 0.45))
    assert wrong.a_dsm.mean() > right.a_dsm.mean() + 0.01
    assert wrong.a_csm.mean() > right.a_csm.mean() + 0.005


def test_loss_reaches_every_parameter_and_weight_scales_it():
    torch.manual_seed(0)
    images = torch.rand(64, 1, 8, 8)
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(images))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    batch = draw_covariances((32, 1, 8, 8), model.statistics, NoiseConfig(), torch.Generator().manual_seed(0))
    noise = torch.randn(32, 1, 8, 8)
    terms = dual_score_loss(model, images[:32], batch.cov, noise, 0.5)
    assert torch.allclose(terms.total, terms.a_dsm.mean() + 0.5 * terms.a_csm.mean(), rtol=1e-5)
    terms.total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters()) > 0.9 * len(list(model.parameters()))


@pytest.mark.parametrize("term", [None, "matching", "sliced", "fokker_planck"])
def test_parameter_gradient_of_the_loss_equals_finite_differences(term):
    """Alone, and of every covariance term with all weights. The target of ``calibration`` is held fixed, so it has no such gradient."""
    torch.manual_seed(0)
    images = torch.rand(8, 1, 8, 8)
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(images)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = draw_covariances((4, 1, 8, 8), model.statistics, NoiseConfig(lambda_min=1e-4), torch.Generator().manual_seed(0))
    cov, noise, x = batch.cov.to(torch.float64), torch.randn(4, 1, 8, 8, dtype=torch.float64), images[:4].double()
    settings = {} if term is None else {"balance": 0.5, "collective": 0.05, "discount": 2.0, "covariance_term": term}

    def total():
        return dual_score_loss(model, x, cov, noise, config=LossConfig.plain(**settings), generators=torch.Generator().manual_seed(1)).total

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


@pytest.mark.parametrize("term", ["matching", "sliced"])
def test_weights_of_coordinates_and_collective_terms_are_their_formulas(term):
    """Of one image with uneven noise, from r = ∂U/∂ℓ − ½(1 − ε²) and what is written in :class:`LossConfig`, coordinate by coordinate."""
    model, generator = white_gaussian(0.6), torch.Generator().manual_seed(0)
    x, noise = (torch.randn(1, 1, 6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    values = torch.logspace(-3, 2, 48, dtype=torch.float64).reshape(x.shape)
    cov = Covariance(values, "pixel")
    gradients = model.differentiable_gradients(x + values.sqrt() * noise, cov)
    r = (gradients.grad_logvar - 0.5 * (1 - noise.square())).flatten().tolist()
    s = (values.sqrt() * gradients.grad_coordinates - noise).flatten().tolist()
    c = model.statistics.variance_of(cov).flatten().tolist()
    a = [float(ck / (ck + v)) for ck, v in zip(c, values.flatten(), strict=True)]
    b = [(ak + 1e-3) ** -0.5 for ak in a]
    z = [1.0] * 48 if term == "matching" else random_signs(x.shape, torch.Generator().manual_seed(7), x).flatten().tolist()
    if term == "matching":
        matched = sum(bk * rk**2 for bk, rk in zip(b, r, strict=True)) / 48
    else:
        matched = sum(zk * bk**0.5 * rk for zk, bk, rk in zip(z, b, r, strict=True)) ** 2 / 48
    for u in (a, [1 - ak for ak in a]):
        whole = sum(uk * bk**0.5 * rk for uk, bk, rk in zip(u, b, r, strict=True))
        matched += 0.05 * whole**2 / sum(uk**2 for uk in u)
    expected = sum(bk * sk**2 for bk, sk in zip(b, s, strict=True)) / 48 + 0.7 * matched
    config = LossConfig.plain(balance=0.5, collective=0.05, covariance_term=term)
    total = dual_score_loss(model, x, cov, noise, 0.7, config, generators=torch.Generator().manual_seed(7)).total
    assert float(total) == pytest.approx(float(expected), rel=1e-9)


def test_discount_divides_the_covariance_terms_by_the_coherence_of_what_is_hidden():
    """White noise keeps its weight; one hidden frequency of 48 makes its image count 48^−2 of it; A-DSM is never discounted."""
    model, x = white_gaussian(), torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.full_like(x, 1e-9)
    one[..., 0, 0] = 1e9
    for values, share in ((torch.full_like(x, 0.1), 1.0), (one, 48.0**-2)):
        cov = Covariance(values, "fourier")
        plain, less = (dual_score_loss(model, x, cov, noise, config=LossConfig.plain(discount=d)) for d in (0.0, 2.0))
        assert torch.allclose(less.total - less.a_dsm.mean(), share * (plain.total - plain.a_dsm.mean()), rtol=1e-3)


def noisy_gaussians(c: float, n: int):
    """n images of independent N(0, c) under white noise of three levels in three bases: (λ, Σ, the noise drawn, coordinates of y)."""
    g = torch.Generator().manual_seed(0)
    for basis in ("pixel", "fourier", "dct2"):
        for variance in (0.003, 0.3, 30.0):
            x = c**0.5 * torch.randn(n, 1, 6, 8, generator=g, dtype=torch.float64)
            noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
            cov = Covariance.white(variance, x.shape, basis, like=x)
            yield variance, cov, noise, cov.basis.forward(x) + variance**0.5 * noise


def test_the_one_call_variance_predicts_the_squared_error_of_the_exact_energy():
    """The sum of the difference over an image has mean 0 and variance 2a²d; a prior with twice the variance is seen to be off by its value.

    4000 images: tolerance 5 standard errors, false-alarm rate 1e-6 a comparison.
    """
    c, n = 0.3, 4000
    for variance, cov, noise, rho in noisy_gaussians(c, n):
        z, off = {}, {}
        for prior in (c, 2 * c):
            gradients = white_gaussian(prior).differentiable_gradients(rho, cov)
            excess = _excess_variance(gradients, cov, noise).flatten(1).sum(1)
            z[prior] = excess / (c / (c + variance) * (2 * 48) ** 0.5)
            a = prior / (prior + variance)  # D = a y, so the error is (1 − a)²c + a²λ
            off[prior] = 48 * (a - ((1 - a) ** 2 * c / variance + a**2))
            assert abs(excess.mean() - off[prior]) < 5 * excess.std() / n**0.5
        assert abs(z[c].mean()) < 5 / n**0.5 and abs(z[c].var() - 1) < 5 * (3 / n) ** 0.5
        assert abs(off[c]) < 1e-12 < abs(off[2 * c])


def test_calibration_is_a_bounded_function_of_what_is_off_and_leaves_the_error_alone():
    model, x = white_gaussian(), torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cov = Covariance.white(0.1, x.shape, like=x)
    plain, more = (dual_score_loss(model, x, cov, noise, config=LossConfig.plain(calibration=w)).total for w in (0.0, 0.5))
    a = model.statistics.variance_in(cov.basis, 6, 8, x) / (model.statistics.variance_in(cov.basis, 6, 8, x) + 0.1)
    gradients = model.differentiable_gradients(0.1**0.5 * noise, cov)
    z2 = _excess_variance(gradients, cov, noise).sum() ** 2 / (2 * (a**2).sum())
    assert torch.allclose(more - plain, 2 * 0.5 * 9 * torch.log1p(z2 / 9))  # white noise: both weightings are the same

    score = torch.full_like(x, 0.7, requires_grad=True)
    held = TrainingGradients(torch.zeros(1, dtype=torch.float64), score, torch.zeros_like(x))
    (slope,) = torch.autograd.grad(_excess_variance(held, cov, noise).sum(), score)
    assert torch.allclose(slope, -2 * 0.1 * score.detach())  # that of −λ(∇U)², without the error's


def test_what_is_left_of_the_noise_is_at_right_angles_to_the_best_prediction():
    """Its product with the prediction has mean 0 and variance Σ s²a; a prior of twice the variance predicts too little, by a known amount.

    4000 images: tolerance 5 standard errors, false-alarm rate 1e-6 a comparison.
    """
    c, n = 0.3, 4000
    for variance, cov, noise, rho in noisy_gaussians(c, n):
        for prior in (c, 2 * c):
            s = variance**0.5 * white_gaussian(prior).differentiable_gradients(rho, cov).grad_coordinates
            left = (s * (noise - s)).flatten(1).sum(1)
            off = 48 * variance * (prior - c) / (prior + variance) ** 2
            assert abs(left.mean() - off) < 5 * left.std() / n**0.5
            if prior == c:
                z = left / (s.square().flatten(1).sum(1) * c / (c + variance)).sqrt()
                assert abs(z.mean()) < 5 / n**0.5 and abs(z.var() - 1) < 5 * (2 / n) ** 0.5
            else:
                assert left.mean() > 0


def test_projection_is_a_bounded_square_along_a_direction_held_fixed():
    model, x = white_gaussian(), torch.zeros(1, 1, 6, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cov = Covariance.white(0.1, x.shape, like=x)
    plain, more = (dual_score_loss(model, x, cov, noise, config=LossConfig.plain(projection=w)).total for w in (0.0, 0.5))
    c = model.statistics.variance_in(cov.basis, 6, 8, x)
    a = c / (c + 0.1)
    s = 0.1**0.5 * model.differentiable_gradients(0.1**0.5 * noise, cov).grad_coordinates
    z2 = (s * (noise - s)).sum() ** 2 / (s.square() * a).sum()
    assert torch.allclose(more - plain, 2 * 0.5 * 9 * torch.log1p(z2 / 9))  # white noise: both weightings are the same

    scores = torch.randn(3, 1, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    share = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (slope,) = torch.autograd.grad(_misprojection(scores, noise, share).sum(), scores)
    wanted = torch.zeros_like(slope)
    for u in (scores.detach(), scores.detach() / (share + 0.01)):
        product, scale = ((u * (noise - scores.detach())).sum((1, 2, 3), True), (u * u * share).sum((1, 2, 3), True))
        wanted -= 2 * product / scale / (1 + product.square() / (9 * scale)) * u
    torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize("basis", ["pixel", "dct2"])
def test_projection_counts_an_image_by_the_evenness_of_its_noise(basis):
    """Half of the λ nine times the others: √(1 · 9)/((1 + 9)/2) = 0.6, whatever their size; two images, so that it is one number each."""
    model, x = white_gaussian(), torch.zeros(2, 1, 6, 8, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.full_like(x, 0.05)
    values[1, :, :3] *= 9
    cov = Covariance(values, basis)
    plain, more = (dual_score_loss(model, x, cov, noise, config=LossConfig.plain(projection=w)).total for w in (0.0, 0.5))
    c = model.statistics.variance_in(cov.basis, 6, 8, x)
    s = values.sqrt() * model.differentiable_gradients(values.sqrt() * noise, cov).grad_coordinates
    each = _misprojection(s, noise, c / (c + values))
    assert torch.allclose(more - plain, 0.5 * (each[0] + 0.6 * each[1]) / 2)


def test_the_bound_changes_nothing_below_it_and_divides_the_pull_of_a_useless_image_by_its_excess():
    model, x = white_gaussian(), torch.zeros(2, 1, 6, 8, dtype=torch.float64)
    cov = Covariance.white(0.1, x.shape, like=x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[1] *= 20  # as far off as if the network were useless there
    parts = [dual_score_loss(model, x[i : i + 1], cov.replace(cov.values[i : i + 1]), noise[i : i + 1]).total for i in range(2)]
    assert parts[0] < 5 < 100 < parts[1]
    for bound in (5.0, 50.0):
        both = dual_score_loss(model, x, cov, noise, config=LossConfig.plain(bound=bound)).total
        assert torch.allclose(both, (parts[0] + bound * (1 + (parts[1] / bound).log())) / 2)
    assert torch.equal(
        dual_score_loss(model, x, cov, noise, config=LossConfig.plain(bound=1e9)).total, dual_score_loss(model, x, cov, noise).total
    )

    network = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(torch.rand(32, 1, 8, 8)))
    pulls = []
    for bound in (0.0, 1e-3):  # every loss is above the second
        network.zero_grad()
        y = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        total = dual_score_loss(network, y, Covariance.white(0.1, y.shape), torch.ones_like(y), config=LossConfig.plain(bound=bound))
        total.total.backward()
        pulls.append((total.total.detach(), network.unet.enter.weight.grad.clone()))
    assert torch.allclose(pulls[1][1], pulls[0][1] * 1e-3 / pulls[0][0], rtol=1e-4)
