"""The bound on a learned energy in a search: nothing changes where the model is in its place, and nothing outweighs the pixels."""

import copy
import sys

import pytest
import torch

from anem.blind import FAMILIES, bounded, estimate
from anem.blind.bounded import ROOM, BoundedEnergy, largest_correlation
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import IndependentPixels, make_mixture
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics

X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()


class Fooled(EnergyModel):
    """Right at the noise that is there, and thousands of nats too low where told that there is little."""

    def __init__(self, base: IndependentPixels) -> None:
        super().__init__()
        self.base, self.statistics = base, base.statistics

    def energy(self, y, cov):
        tempting = torch.where(cov.values.mean((1, 2, 3)) < 1e-3, 1e6, 0.0)
        return self.base.energy(y, cov) - 0.1 * y[0].numel() - tempting


def network() -> EnergyNetwork:
    torch.manual_seed(0)
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(X)).eval().requires_grad_(False)
    for p in model.unet.leave.parameters():
        p.add_(0.01 * torch.randn_like(p))
    return model


def test_a_search_is_not_drawn_to_where_the_energy_is_beyond_reason(generator):
    base = IndependentPixels(DataStatistics.fit(X))
    family = FAMILIES["white"](X.shape)
    y = X[:1].double() + 0.3 * torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    fooled = Fooled(base)
    assert float(estimate(fooled, y, family).theta) < 0.04
    found = estimate(BoundedEnergy(fooled, 0.2), y, family)
    assert float(found.theta) == pytest.approx(float(estimate(base, y, family).theta), rel=0.05)
    assert 0.2 < float(found.theta) < 0.45


def test_inside_the_bound_nothing_changes_and_outside_it_is_the_bound(generator):
    base = IndependentPixels(DataStatistics.fit(X))
    y = X[:3].double()
    loud, quiet = (Covariance.white(v, y.shape, like=y) for v in (0.1, 1e-4))
    limited = BoundedEnergy(Fooled(base), 0.2)
    torch.testing.assert_close(limited.energy(y, loud), Fooled(base).energy(y, loud))
    torch.testing.assert_close(limited.energy(y, quiet), base.energy(y, quiet) - 0.2 * 64)
    leaf = y.clone().requires_grad_()
    (grad,) = torch.autograd.grad(limited.energy(leaf, loud).sum(), leaf)
    torch.testing.assert_close(grad, base(y, loud).grad_y)
    with pytest.raises(ValueError, match="limit: wanted a number > 0, got 0"):
        BoundedEnergy(base, 0)


def test_the_bound_is_what_samples_show_and_they_are_drawn_once(monkeypatch):
    model = network()
    judged = bounded(model, (1, 8, 8))
    expected = ROOM * largest_correlation(model, (1, 8, 8))
    assert isinstance(judged, BoundedEnergy) == (expected > 0)
    monkeypatch.setattr(sys.modules["anem.blind.bounded"], "largest_correlation", lambda *a: 2.0)
    assert expected <= 0 or bounded(model, (1, 8, 8)).limit == judged.limit == pytest.approx(expected)
    assert bounded(copy.deepcopy(model), (1, 8, 8)).limit == 2.0 * ROOM


def test_exact_energies_and_those_without_a_base_are_left_alone():
    prior = make_mixture(2)
    assert bounded(prior, (1, 8, 8)) is prior
    inner = EnergyNetwork(NetworkConfig.preset("tiny").override(form="inner"), DataStatistics.fit(X)).eval()
    assert bounded(inner, (1, 8, 8)) is inner
