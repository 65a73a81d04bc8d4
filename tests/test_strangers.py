"""The loss by images unlike the data: what it is at exact and wrong energies, what strangers are, and the way through training."""

import math

import pytest
import torch

from anem.covariance import Covariance
from anem.gaussian import Gaussian
from anem.losses import LossConfig, _beyond_noise, dual_score_loss, make_strangers
from anem.network import EnergyNetwork, NetworkConfig, TrainingGradients
from anem.statistics import DataStatistics
from anem.train.step import CompiledStep, LossModule

SHAPE = (1, 8, 8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Lowered:
    """The energy of Gaussian data of variance c, lowered by ``by`` nats a dimension."""

    def __init__(self, c: float = 0.3, by: float = 0.0):
        self.statistics, self.by = DataStatistics(*SHAPE).double(), by
        data = Covariance(torch.full((1, *SHAPE), c, dtype=torch.float64), "pixel")
        self.gaussian = Gaussian(torch.zeros(SHAPE, dtype=torch.float64), data)

    def differentiable_energy(self, rho, cov):
        return self.gaussian.energy(cov.basis.inverse(rho), cov) - self.by * rho[0].numel()

    def differentiable_gradients(self, rho, cov):
        zero = torch.zeros_like(rho)
        return TrainingGradients(self.differentiable_energy(rho, cov), zero, zero)


def batch(count: int = 6, variance: float = 0.01, basis: str = "pixel"):
    x = torch.rand(count, *SHAPE, generator=seeded(0), dtype=torch.float64)
    cov = Covariance.white(variance, x.shape, basis, x)
    return x, cov, torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_on_average_it_is_minus_the_divergence_in_closed_form(basis):
    """i of a Gaussian energy over n has the mean KL(N(s, λ) ‖ N(0, c + λ)): a wrong sign, factor or constant would show."""
    c, variance, n = 0.3, 0.1, 4000
    s = torch.full((n, *SHAPE), 0.7, dtype=torch.float64)
    cov, noise = Covariance.white(variance, s.shape, basis, s), torch.randn(s.shape, generator=seeded(2), dtype=torch.float64)
    kl = 0.5 * (variance / (c + variance) - 1 + math.log((c + variance) / variance) + 0.49 / (c + variance))
    low = 3.0  # so that nothing is cut off at 0
    found = _beyond_noise(Lowered(c, low), s, cov, noise)
    assert float(found.min()) > 0
    assert float(found.mean()) == pytest.approx(low - kl, abs=5 * float(found.std()) / n**0.5)
    assert float(_beyond_noise(Lowered(c), s, cov, noise).max()) == 0


def test_a_normalised_energy_pays_next_to_nothing_and_a_low_one_what_it_is_too_low():
    x, cov, noise = batch(64)

    def term(by: float) -> float:
        with_it, without = (dual_score_loss(Lowered(by=by), x, cov, noise, 0.0, LossConfig.plain(strangers=w)).total for w in (0.5, 0.0))
        return float(with_it - without)

    assert term(0.0) == 0
    low = _beyond_noise(Lowered(by=2.0), make_strangers(x, noise), cov, noise.roll(1, 0))
    slow = torch.where(low > 1, 1 + low.clamp_min(1e-9).log(), low)
    assert term(2.0) == pytest.approx(0.5 * float(slow.mean()), rel=1e-9) and float(low.mean()) > 0.3


def test_strangers_are_images_of_all_kinds_made_of_the_batch_alone():
    x = torch.rand(400, 1, 28, 28, generator=seeded(0)).pow(8)
    noise = torch.randn(x.shape, generator=seeded(1))
    s = make_strangers(x, noise)
    assert s.shape == x.shape and float(s.min()) == 0 and float(s.max()) == 1 and torch.equal(s, make_strangers(x, noise))
    around = s == x.roll(1, 0)
    whole, framed = (~around).flatten(1).all(1).double().mean(), around.flatten(1).double().mean(1).gt(0.3).double().mean()
    assert 0.4 < whole < 0.8 and 0.15 < framed < 0.6  # the first with those on black
    assert 0.1 < (s == 0).flatten(1).double().mean(1).gt(0.5).double().mean() < 0.7
    middle = s[:, 0, 10:18, 10:18] - 0.5
    checks = (middle[:, 1:] * middle[:, :-1]).sum((1, 2)), (middle[:, :, 1:] * middle[:, :, :-1]).sum((1, 2))
    assert all(float((c < -2).double().mean()) > 0.1 and float((c > 2).double().mean()) > 0.1 for c in checks)
    other = noise.clone()
    other[7] = 0  # the noise of an image changes other images' strangers, not its own
    assert torch.equal(make_strangers(x, other)[7], s[7]) and not torch.equal(make_strangers(x, other), s)


def test_a_recorded_step_has_the_term_too():
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics(*SHAPE)).double()
    with torch.no_grad():
        for p in model.unet.leave.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=seeded(3)))
        model.unet.leave.bias[1] -= 3.0
    x, cov, noise = batch(4, 1e-3)

    def loss(model, x, cov, noise, weight):
        return dual_score_loss(model, x, cov, noise, weight, LossConfig(strangers=0.5))

    module = LossModule(model, loss, 1.0)
    total = module(x, cov, noise)[0]
    total.backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    total = float(total.detach())
    assert total > float(dual_score_loss(model, x, cov, noise, 1.0, LossConfig()).total.detach()) + 0.01
    model.zero_grad()
    recorded = CompiledStep(module, compiler=lambda graph, inputs: lambda *given: graph(*given))
    assert float(recorded(x, cov, noise)[0]) == pytest.approx(total, rel=1e-9)
    for name, p in model.named_parameters():
        if name in want:
            torch.testing.assert_close(p.grad, want[name], rtol=1e-6, atol=1e-9)
