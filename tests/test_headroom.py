"""The bound on how far below its base a learned energy may be: nothing changes where the model knows, and beyond it is the bound."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from anem.bases import Mixed, as_basis
from anem.corruptions import NoiseConfig
from anem.covariance import Covariance
from anem.gaussian import IndependentPixels
from anem.headroom import ADDED, ROOM, Headroom, fit_headroom
from anem.hub import load, locate
from anem.images import read_image
from anem.likelihood import audit_strangers, strange_images
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics

X = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()
TABLE = Headroom((math.log(1e-4), math.log(1e-2), math.log(1.0)), (0.8, 0.4, 0.1), 3.0)


class Fooled(EnergyNetwork):
    """Ten nats a dimension below its base wherever there is a bright pixel in the corner, and a tenth of one elsewhere."""

    def _network(self, features, ratio, summary, split):
        field, density, gate = (torch.zeros_like(ratio[:, :1]) for _ in split)
        strange = features[2][:, :1, :2, :2].mean((1, 2, 3), keepdim=True) > 1.5
        return field, density - torch.where(strange, 10.0, 0.1), gate


def fooled() -> EnergyNetwork:
    return Fooled(NetworkConfig.preset("tiny"), DataStatistics.fit(X)).eval().requires_grad_(False)


def white(variance: float, count: int = 1, basis: str = "pixel") -> Covariance:
    return Covariance.white(variance, (count, 1, 8, 8), basis, torch.zeros((), dtype=torch.float64))


def test_the_table_is_read_at_the_least_variance():
    cov = white(1.0)
    cov.values[0, 0, 3, 3] = 1e-3
    assert float(TABLE(cov.values.log(), cov.basis)) == pytest.approx(0.6)  # half-way between 1e-4 and 1e-2
    for variance, rho in ((1e-9, 0.8), (1e-4, 0.8), (0.1, 0.25), (1.0, 0.1), (1e5, 0.1)):
        assert float(TABLE(white(variance).values.log(), as_basis("pixel"))) == pytest.approx(rho)
    assert float(Headroom((0.0,), (0.5,))(cov.values.log(), cov.basis)) == 0.5


def test_the_factor_is_for_what_is_neither_white_nor_diagonal_in_pixels():
    logvar = white(1e-3, 4).values.log()
    logvar[1:3, 0, 3, 3] += 1.0
    mixed = Mixed([as_basis("pixel"), as_basis("dct2")], torch.tensor([0, 0, 1, 1]))
    uneven = 4 * (1 / 64) * (1 - 1 / 64)  # four times the variance of log λ; the factor grows with it from 1
    other = 0.6 * (1 + 2 * uneven / (1 + uneven))
    torch.testing.assert_close(TABLE(logvar, mixed), torch.tensor([0.6, 0.6, other, 0.6], dtype=torch.float64))
    logvar[2, 0, :4] += 20.0
    assert float(TABLE(logvar, mixed)[2]) == pytest.approx(1.8, rel=0.01)
    torch.testing.assert_close(TABLE(logvar[2:], as_basis("dct2")), TABLE(logvar, mixed)[2:])


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_it_is_differentiable_in_the_variances(basis):
    logvar = -4 + 0.5 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: TABLE(v, as_basis(basis)), logvar.requires_grad_())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (((), ()), "wanted increasing log variances"),
        (((0.0, 1.0), (0.5,)), "wanted increasing log variances"),
        (((1.0, 0.0), (0.5, 0.4)), "wanted increasing log variances"),
        (((0.0, 1.0), (0.4, 0.5)), "and nats that do not"),
        (((0.0, 1.0), (0.4, 0.0)), "wanted finite numbers, and above 0"),
        (((0.0,), (math.inf,)), "wanted finite numbers, and above 0"),
        (((0.0,), (0.5,), 0.0), "wanted finite numbers, and above 0"),
    ],
)
def test_what_is_no_table_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        Headroom(*table)


def test_inside_nothing_changes_and_below_it_is_the_bound():
    """Energy and gradients; the base is that of independent pixels here, and the least variance decides."""
    model, base = fooled(), IndependentPixels(DataStatistics.fit(X))
    known, strange = X[:3].double().clamp_max(0.3), torch.ones(3, 1, 8, 8, dtype=torch.float64)
    cov = white(1e-3, 3)
    cov.values[:, :, 5] = 0.5
    free = copy.copy(model)
    model.headroom = Headroom((math.log(1e-3), 0.0), (0.5, 0.01))
    torch.testing.assert_close(model.energy(known, cov), free.energy(known, cov))
    assert float((base.energy(strange, cov) - free.energy(strange, cov)).min()) > 3 * 64
    torch.testing.assert_close(model.energy(strange, cov), base.energy(strange, cov) - 0.5 * 64)
    seen, alone = model(strange, cov), base(strange, cov)
    torch.testing.assert_close(seen.grad_y, alone.grad_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.energy, -model.log_prob(strange, cov))
    # ρ falls in the least variance: those entries alone have its slope, which autograd shares among equals
    extra = seen.grad_logvar - alone.grad_logvar
    assert float(extra[:, :, 5].abs().max()) < 1e-6
    assert extra.flatten(1).sum(1).tolist() == pytest.approx(3 * [64 * 0.49 / math.log(1e3)], rel=1e-4)


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_no_density_is_above_that_of_its_noise(basis):
    model = fooled()
    model.headroom = Headroom((0.0,), (1e3,))
    strange = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    cov = white(1e-3, 2, basis)
    cov.values[..., :4] = 1e-2
    cov = Covariance(cov.basis.symmetrise(cov.values), cov.basis)
    highest = -0.5 * (2 * math.pi * cov.values).log().flatten(1).sum(1)
    torch.testing.assert_close(model.log_prob(strange, cov), highest)


def test_it_is_kept_by_copies_and_other_devices_and_files(tmp_path):
    model = fooled()
    model.headroom = TABLE
    strange, cov = torch.ones(1, 1, 8, 8, dtype=torch.float64), white(1e-3)
    found = model.energy(strange, cov)
    model.compute_on("cpu")
    torch.testing.assert_close(model.energy(strange, cov), found)
    torch.testing.assert_close(model.limited(1e9).energy(strange, cov), found)
    plain = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(X))
    plain.save_pretrained(tmp_path / "without")
    plain.headroom = TABLE
    plain.save_pretrained(tmp_path / "with")
    assert EnergyNetwork.from_pretrained(tmp_path / "without").headroom is None
    assert EnergyNetwork.from_pretrained(tmp_path / "with").headroom == TABLE
    card = json.loads((tmp_path / "with" / "card.json").read_text())
    for broken in ({"nats": [1.0]}, {"log_variances": [0.0], "nats": [-1.0], "elsewhere": 1.0}):
        (tmp_path / "with" / "card.json").write_text(json.dumps(card | {"headroom": broken}))
        with pytest.raises(ValueError, match="not a model of this package"):
            EnergyNetwork.from_pretrained(tmp_path / "with")


def test_it_is_what_held_out_images_show(monkeypatch):
    model, asked = fooled(), []

    def below(y, cov):
        asked.append((y, cov))
        least = cov.values.flatten(1).amin(1)
        uneven = 4 * cov.values.log().flatten(1).var(1, correction=0)
        return 0.5 / (1 + least) * (1 + 3 * uneven / (1 + uneven))

    monkeypatch.setattr(model, "below_base", below)
    found = fit_headroom(model, X, NoiseConfig(lambda_min=1e-6, lambda_max=100.0, only=("white",)))
    assert found.log_variances[0] == pytest.approx(math.log(1e-6), abs=1e-3)
    assert found.log_variances[-1] == pytest.approx(math.log(100.0), abs=1e-3) and len(found.nats) == 18
    assert found.nats[0] == pytest.approx(ROOM * 0.5 + ADDED, abs=1e-3) and found.nats[-1] == pytest.approx(
        ROOM * 0.5 / 101 + ADDED, abs=1e-3
    )
    assert 4 * 0.95 < found.elsewhere < 4 * 1.1  # of all families, by single draws; ρ is linear between levels
    y, cov = asked[0]
    torch.testing.assert_close((y - X[: len(y)]).std(), torch.tensor(1e-3, dtype=torch.float64), rtol=0.2, atol=0)
    assert float(cov.values.max()) == pytest.approx(1e-6)
    assert fit_headroom(model, X, NoiseConfig(lambda_min=1e-6, lambda_max=100.0, only=("white",))) == found
    with pytest.raises(ValueError, match="wanted at least 64 images, got 63"):
        fit_headroom(model, X[:63], NoiseConfig())
    monkeypatch.setattr(model, "below_base", lambda y, cov: below(y, cov) * math.nan)
    with pytest.raises(ValueError, match="wanted finite energies of images"):
        fit_headroom(model, X, NoiseConfig())
    inner = EnergyNetwork(NetworkConfig.preset("tiny").override(form="inner"), DataStatistics.fit(X)).eval()
    with pytest.raises(ValueError, match="wanted the form 'anchored', which has a base, got 'inner'"):
        fit_headroom(inner, X, NoiseConfig())


def test_below_base_is_the_difference_of_the_energies():
    model, base = fooled(), IndependentPixels(DataStatistics.fit(X))
    y, cov = X[:3].double(), white(1e-3, 3)
    expected = (base.energy(y, cov) - model.energy(y, cov)) / 64
    model.headroom = Headroom((0.0,), (1e-6,))
    with torch.no_grad():
        torch.testing.assert_close(model.below_base(y, cov), expected)


def test_strangers_find_what_a_network_is_fooled_by_and_headroom_mends_it():
    model, strangers = fooled(), strange_images(X[:2])
    cov = white(1e-3)
    bad = audit_strangers(model, strangers, cov, generator=torch.Generator().manual_seed(0))
    assert bad.verdict == "FAIL" and bad.value > 1
    model.headroom = fit_headroom(model, X.clamp_max(0.3), NoiseConfig())
    assert audit_strangers(model, strangers, cov, generator=torch.Generator().manual_seed(0)).verdict == "pass"


def test_the_bundled_model_is_as_it_was_on_images_like_its_own():
    model = load("digits")
    assert model.headroom is not None and model.headroom.nats[0] > 0.9 and model.headroom.elsewhere > 1.5
    free = copy.copy(model)
    free.headroom = None
    folder = Path(locate("digits")) / "examples"
    x = torch.cat([read_image(file) for file in sorted(folder.glob("*.png"))[:4]]).double()
    g = torch.Generator().manual_seed(0)
    hidden = white_of(x, 1e-3)
    hidden.values[..., 7:21, 7:21] = 30.0
    strange = strange_images(x[:1], g)["unblurred noise"]
    for cov in (white_of(x, 1e-6), white_of(x, 1e-2), hidden, white_of(x, 1e-3, "fourier")):
        y = x + cov.sample(g)
        torch.testing.assert_close(model.energy(y, cov), free.energy(y, cov), rtol=0, atol=0)
        assert float((free.energy(strange, cov[:1]) - model.energy(strange, cov[:1])).max()) <= 0
    assert float((model.energy(strange, white_of(strange, 1e-3)) - free.energy(strange, white_of(strange, 1e-3))).max()) > 784


def white_of(x: torch.Tensor, variance: float, basis: str = "pixel") -> Covariance:
    return Covariance.white(variance, x.shape, basis, x)


@pytest.mark.parametrize("basis", ["fourier", "dct2"])
def test_the_factor_counts_in_energies_and_gradients_outside_pixels(basis):
    model = fooled()
    free, strange = copy.copy(model), torch.ones(2, 1, 8, 8, dtype=torch.float64)
    values = white(1e-3, 2, basis).values
    values[:, :, ::2, 1::2] = 30.0
    cov = Covariance(as_basis(basis).symmetrise(values), as_basis(basis))
    gap = free.below_base(strange, cov)
    assert float(gap.min()) > 2
    energies = {}
    for factor in (1.0, 2.0):
        model.headroom = Headroom((0.0,), (0.5,), factor)
        energies[factor] = model.energy(strange, cov)
    room = 64 * (Headroom((0.0,), (0.5,), 2.0)(cov.values.log(), cov.basis) - 0.5)
    torch.testing.assert_close(energies[1.0] - energies[2.0], room)
    assert float(room.min()) > 20
    leaf = cov.values.log().requires_grad_()
    slopes = torch.autograd.grad(model.energy(strange, Covariance(leaf.exp(), cov.basis, check=False)).sum(), leaf, create_graph=True)[0]
    (second,) = torch.autograd.grad(slopes.square().sum(), leaf)
    assert bool(second.isfinite().all())


def test_a_new_bound_is_heeded_by_what_was_made_before_it():
    model = fooled()
    strange, cov = torch.ones(1, 1, 8, 8, dtype=torch.float64), white(1e-3)
    model.compute_on("cpu")
    before = model.energy(strange, cov)
    model.headroom = Headroom((0.0,), (0.5,))
    assert float(model.energy(strange, cov) - before) > 64
    other = copy.copy(model)
    other.headroom = None
    assert other.headroom is None and float(model.energy(strange, cov) - other.energy(strange, cov)) > 64
    assert not any(name in model.state_dict() for name in ("_levels", "_nats"))
