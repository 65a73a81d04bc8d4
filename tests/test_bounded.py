"""The bound on a learned energy in a search: nothing changes where the model is in its place, and nothing outweighs the pixels."""

import copy
import math
import sys

import pytest
import torch

from anem.blind import FAMILIES, bounded, estimate
from anem.blind.bounded import ROOM, largest_correlation, searchable
from anem.covariance import Covariance
from anem.gaussian import IndependentPixels, make_mixture, make_power_law_gaussian
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics

DOUBLE = torch.zeros((), dtype=torch.float64)
X = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()


class Fooled(EnergyNetwork):
    """Sensible at the noise that is there, and thousands of nats too low where told that there is little."""

    def _network(self, features, ratio, summary, split):
        field, density, gate = (torch.zeros_like(ratio[:, :1]) for _ in split)
        return field, density - torch.where(ratio.mean((1, 2, 3), keepdim=True) < -4, 1e4, 0.1), gate


def network() -> EnergyNetwork:
    torch.manual_seed(0)
    model = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(X)).eval().requires_grad_(False)
    for p in model.unet.leave.parameters():
        p.add_(0.01 * torch.randn_like(p))
    return model


def fooled() -> EnergyNetwork:
    return Fooled(NetworkConfig.preset("tiny"), DataStatistics.fit(X)).eval().requires_grad_(False)


def test_a_search_is_not_drawn_to_where_the_energy_is_beyond_reason(generator):
    family = FAMILIES["white"](X.shape)
    y = X[:1].double() + 0.3 * torch.randn(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    model = fooled()
    known = model.limited(1e9)  # as it is, and bounded already
    assert float(estimate(known, y, family).theta) < 0.06
    found, alone = (float(estimate(m, y, family).theta) for m in (model.limited(0.3), IndependentPixels(model.statistics)))
    assert found == pytest.approx(alone, rel=0.1) and 0.2 < found < 0.45


@pytest.mark.parametrize("remote", [False, True])
def test_inside_the_bound_nothing_changes_and_outside_it_is_the_bound(remote):
    model = fooled()
    if remote:
        model.compute_on("cpu")
    y, base = X[:3].double(), IndependentPixels(model.statistics)
    loud, quiet = (Covariance.white(v, y.shape, like=y) for v in (0.1, 1e-5))
    limited = model.limited(0.2)
    assert limited.limit == 0.2 and model.limit is None
    torch.testing.assert_close(limited.log_prob(y, loud), model.log_prob(y, loud))
    torch.testing.assert_close(limited.log_prob(y, quiet), base.log_prob(y, quiet) + 0.2 * 64)
    torch.testing.assert_close(limited.energy(y, quiet), -limited.log_prob(y, quiet))
    torch.testing.assert_close(limited(y, quiet).grad_y, base(y, quiet).grad_y, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="limit: wanted a number > 0 and the form 'anchored', got 0"):
        model.limited(0)


def test_weights_are_shared_with_the_bounded_network():
    model = network()
    limited, y = model.limited(1e9), X[:2].double()
    cov = Covariance.white(0.01, y.shape, like=y)
    before = limited.log_prob(y, cov)
    for p in model.parameters():
        p.mul_(1.5)
    assert not torch.allclose(limited.log_prob(y, cov), before)
    torch.testing.assert_close(limited.log_prob(y, cov), model.log_prob(y, cov))


def test_the_bound_is_what_samples_show_and_they_are_drawn_once(monkeypatch):
    model, asked = network(), []
    module = sys.modules["anem.blind.bounded"]
    monkeypatch.setattr(module, "largest_correlation", lambda *a: asked.append(a) or largest_correlation(*a))
    judged, samples = searchable(model, (1, 8, 8))
    assert samples.shape == (32, 1, 8, 8) and samples.dtype == torch.float64
    ((_, y, cov),) = asked
    gap = (IndependentPixels(model.statistics).energy(y, cov) - model.energy(y, cov)) / 64
    assert y is samples and float(cov.values.max()) < 1e-3 * float(model.statistics.variance.mean())
    assert float(gap.max()) > 0 and judged.limit == pytest.approx(ROOM * float(gap.max()))
    assert searchable(model, (1, 8, 8))[1] is samples
    found = iter([2.0, -1.0, float("nan"), float("nan")])
    monkeypatch.setattr(module, "largest_correlation", lambda *a: next(found))
    assert bounded(model, (1, 8, 8)) is judged and bounded(judged, (1, 8, 8)) is judged
    model.compute_on("cpu")  # a search after that computes there too
    assert bounded(model, (1, 8, 8)).limit == judged.limit and bounded(model, (1, 8, 8))._use.remote is not None
    with torch.no_grad():
        model.unet.leave.weight.mul_(2)
    assert bounded(model, (1, 8, 8)).limit == 2.0 * ROOM  # measured again for other weights
    other = copy.deepcopy(model)
    assert bounded(other, (1, 8, 8)) is other  # its samples say nothing against independent pixels
    broken = network()
    for _ in range(2):  # the second time as well
        with pytest.raises(ValueError, match="model: wanted finite energies of its own samples, got nan"):
            bounded(broken, (1, 8, 8))


def test_exact_energies_and_those_without_a_base_are_left_alone():
    prior = make_mixture(2)
    assert bounded(prior, (1, 8, 8)) is prior and searchable(prior, (1, 8, 8)) == (prior, None)
    inner = EnergyNetwork(NetworkConfig.preset("tiny").override(form="inner"), DataStatistics.fit(X)).eval()
    assert bounded(inner, (1, 8, 8)) is inner


def test_noise_lowers_the_total_correlation_whose_mean_the_bound_is_about(generator):
    """E[U₀ − U] of a Gaussian in closed form, ½ Σ log var(y_p) − ½ log det Cov(y), against energies of draws; falling in the noise."""
    prior = make_power_law_gaussian(1, 4, 4)
    c = prior.posterior(torch.zeros(1, 1, 4, 4, dtype=torch.float64), Covariance.white(1e9, (1, 1, 4, 4), like=DOUBLE)).covariance[0]
    x, exact = prior.sample(4000, generator), []
    for variance in (0.001, 0.01, 0.1, 1.0):
        cov = Covariance.white(variance, x.shape, like=x)
        y, total = x + cov.sample(generator), c + variance * torch.eye(16, dtype=torch.float64)
        alone = 0.5 * (
            (y - prior.statistics.mean_image(y)).flatten(1).square() / total.diagonal() + (2 * math.pi * total.diagonal()).log()
        ).sum(1)
        gap = alone - prior.energy(y, cov)
        exact.append(float(0.5 * (total.diagonal().log().sum() - torch.logdet(total))))
        assert abs(float(gap.mean()) - exact[-1]) < 5 * float(gap.std()) / 4000**0.5
    assert exact == sorted(exact, reverse=True) and exact[0] > 2 * exact[-1]
