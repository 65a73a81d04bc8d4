"""The learned energy: its base is exact, it is normalised at the anchor, and its gradients are what they say."""

import json
import math

import pytest
import torch

from anem.bases import BlockDCT, Fourier, Mixed, Pixel, as_basis, coherence
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig
from anem.propagation import propagate
from anem.statistics import DataStatistics

SIZE = (8, 8)


def images(n=200, channels=1, size=SIZE, seed=0):
    g = torch.Generator().manual_seed(seed)
    field = torch.rand(n, channels, *size, generator=g)
    smooth = field + field.roll(1, -1) + field.roll(1, -2)
    return (smooth / 3) * (torch.rand(n, 1, 1, 1, generator=g) < 0.6)


def network(perturb=0.1, colours=1, **changes):
    torch.manual_seed(0)
    model = EnergyNetwork(NetworkConfig.preset("tiny").override(**changes), DataStatistics.fit(images(channels=colours)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(perturb * torch.randn_like(p))
    return model.double()


def mixed(batch, channels=1, size=SIZE, seed=1):
    g = torch.Generator().manual_seed(seed)
    values = 10 ** (6 * torch.rand(batch, channels, *size, generator=g, dtype=torch.float64) - 4)
    basis = Mixed([Pixel(), Fourier(), BlockDCT(2), BlockDCT(4)], torch.arange(batch) % 4)
    return Covariance(basis.symmetrise(values), basis)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"rounds": 0}, {"base": "product"}, {"form": "inner"}, {"norm": 4}, {"attention": (1,), "channels": (32, 64)}]
)
def test_evaluation_equals_generic_differentiation(changes, colours):
    model, cov = network(colours=colours, **changes), mixed(4, colours)
    y = images(4, colours).double() + cov.sample(torch.Generator().manual_seed(2))
    fast, plain = model(y, cov), EnergyModel.forward(model, y, cov)
    for name in ("energy", "grad_y", "grad_logvar"):
        assert torch.allclose(getattr(fast, name), getattr(plain, name), rtol=1e-9, atol=1e-9), name
    assert torch.allclose(fast.relative_variance, plain.relative_variance, rtol=1e-6, atol=1e-6)


def test_gradients_equal_finite_differences():
    model, cov = network(), mixed(4)
    y = images(4).double() + cov.sample(torch.Generator().manual_seed(2))
    result, h = model(y, cov), 1e-5
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = [model.energy(y + s * h * direction, cov) for s in (1, -1)]
    slope = (result.grad_y * direction).flatten(1).sum(1)
    assert torch.allclose((moved[0] - moved[1]) / (2 * h), slope, rtol=1e-4, atol=1e-4)
    even = cov.basis.symmetrise(direction)
    moved = [model.energy(y, cov.replace(cov.values * torch.exp(s * h * even))) for s in (1, -1)]
    slope = (result.grad_logvar * even).flatten(1).sum(1)
    assert torch.allclose((moved[0] - moved[1]) / (2 * h), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["mixture", "product"])
@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_normalised_at_the_anchor_whatever_the_weights(basis, base):
    """U + log N(y; μ, λ) vanishes per dimension like √(c/λ)."""
    model = network(0.1, base=base)
    x = images(64, seed=5).double()
    gaps = []
    for variance in (1e3, 1e5, 1e7):
        cov = Covariance.white(variance, x.shape, basis, like=x)
        y = x + cov.sample(torch.Generator().manual_seed(1))
        exact = -torch.distributions.Normal(model.statistics.mean_image(y), variance**0.5).log_prob(y).flatten(1).sum(1)
        gaps.append(float((model.energy(y, cov) - exact).abs().mean().detach() / 64))
    assert gaps[2] < 3e-3 and gaps[2] < 0.2 * gaps[1] < 0.04 * gaps[0], gaps


@pytest.mark.parametrize("base", ["mixture", "product"])
def test_base_is_the_exact_energy_of_independent_pixels(base):
    """With F = e = g = 0 and noise diagonal in pixels, U is that of independent pixels of the fitted distribution, and of the mixture one
    part in five (the weights start equal) of Gaussian ones."""
    model = network(0.0, base=base)
    cov = mixed(4)
    cov = Covariance(cov.values, "pixel")
    y = images(4).double() + cov.sample(torch.Generator().manual_seed(2))
    m = model.statistics.marginal
    t = m.variances[0] + cov.values[..., None]
    log_p = (m.weights[0].log() + torch.distributions.Normal(m.means[0], t.sqrt()).log_prob(y[..., None])).logsumexp(-1).flatten(1).sum(1)
    gaussian = torch.distributions.Normal(model.statistics.mean_image(y), (model.statistics.variance + cov.values).sqrt()).log_prob(y)
    parts = torch.stack([gaussian.flatten(1).sum(1) + math.log(0.2), log_p + math.log(0.8)])
    assert torch.allclose(model.energy(y, cov), -log_p if base == "product" else -torch.logsumexp(parts, 0), rtol=1e-6)


def test_channels_are_independent_in_the_base_and_each_has_its_own_pixels():
    """Of colour images with different densities in every channel, noise diagonal in pixels, and F = e = g = 0."""
    torch.manual_seed(0)
    shades = images(channels=3) * torch.tensor([0.2, 0.6, 1.0])[:, None, None]
    model = EnergyNetwork(NetworkConfig.preset("tiny").override(base="product"), DataStatistics.fit(shades)).double()
    cov = Covariance(mixed(4, 3).values, "pixel")
    y = shades[:4].double() + cov.sample(torch.Generator().manual_seed(2))
    m, expected = model.statistics.marginal, 0.0
    for c in range(3):
        t = m.variances[c] + cov.values[:, c, ..., None]
        log_p = m.weights[c].log() + torch.distributions.Normal(m.means[c], t.sqrt()).log_prob(y[:, c, ..., None])
        expected = expected - log_p.logsumexp(-1).flatten(1).sum(1)
    assert torch.allclose(model.energy(y, cov), expected, rtol=1e-6)


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_what_the_network_adds_is_the_formula(basis, monkeypatch):
    """½ ⟨ρ/√t (1 + c/λ)^¼ √a, B F⟩ + Σ_p α_p e_p + (1 − h) Σ_p g_p b(δ_p + K_p), with F, e and g given."""
    model = network(0.0, base="product")
    y, generator = images(2).double() * 2, torch.Generator().manual_seed(3)
    cov = Covariance(as_basis(basis).symmetrise(mixed(2).values), basis)
    nothing = torch.zeros_like(y)
    field, density, gate = (torch.randn(y.shape, generator=generator, dtype=torch.float64) for _ in range(3))

    def energy(*outputs):
        monkeypatch.setattr(model, "_network", lambda *given: outputs)
        return model.energy(y, cov).detach()

    base = energy(nothing, nothing, nothing)
    level = model.statistics.variance_in("pixel", *SIZE, y)[:, :1, :1, :1]
    rho, values, share = (
        model.statistics.residual(y, cov.basis),
        cov.values,
        torch.full((2, 1, 1, 1), 1 / (1 + math.exp(0.6)), dtype=y.dtype),
    )
    pixels = propagate(rho, values, level.expand_as(y), cov.basis, model.statistics, model.config.rounds, share)
    unknown = torch.sigmoid(2 * ((pixels.noise / pixels.spread).log().mean((1, 2, 3)) + math.log(16)))[:, None, None, None]
    c = model.statistics.variance_of(cov)
    h = unknown * (1 - 1 / coherence(cov.basis, c))
    blend = c**h * level ** (1 - h)
    t = blend + values
    inner = rho / t.sqrt() * (1 + blend / values) ** 0.25 * (blend / t).sqrt() * cov.basis.forward(field)
    torch.testing.assert_close(energy(field, nothing, nothing) - base, 0.5 * inner.flatten(1).sum(1), rtol=1e-6, atol=1e-6)
    alpha = 1 / (1 + pixels.noise / pixels.spread)
    torch.testing.assert_close(energy(nothing, density, nothing) - base, (alpha * density).flatten(1).sum(1), rtol=1e-6, atol=1e-6)
    raw = pixels.delta + pixels.divergence
    fluctuation = (1 - h) * raw / (1 + (raw / 20) ** 2).sqrt()
    torch.testing.assert_close(energy(nothing, nothing, gate) - base, (gate * fluctuation).flatten(1).sum(1), rtol=1e-6, atol=1e-6)


def test_base_product_is_what_it_says():
    """U = s U_G + (1 − s) U_pixels with s = u w_G for every y: w_G a softmax weight, u near 1 where pixels are unknown."""
    model = network(0.0, base="product")
    y = images(6).double() * torch.linspace(0.2, 3, 6, dtype=torch.float64)[:, None, None, None]
    cov = Covariance.white(0.02, y.shape, "fourier", like=y)

    def energy(bias):
        torch.nn.init.constant_(model.weigh.bias[:1], bias)
        return model.energy(y, cov).detach()

    pixels, most, some = energy(-10.0), energy(10.0), energy(0.05)
    t = model.statistics.variance_in(cov.basis, *SIZE, y) + cov.values
    gaussian = 0.5 * (model.statistics.residual(y, cov.basis).square() / t + torch.log(2 * math.pi * t)).flatten(1).sum(1)
    # u is not quite 1, and Gaussian data have a spectrum that is a little flatter than theirs.
    assert float((pixels - gaussian).abs().min()) > 10 and float(((most - gaussian) / (pixels - gaussian)).abs().max()) < 0.15
    share = math.exp(0.5) / (math.exp(0.5) + model.config.rounds + 1)
    torch.testing.assert_close(some, pixels + share * (most - pixels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("form", "outer"), ("base", "sum")])
def test_unknown_parts_of_the_energy_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: wanted '.*' or '.*', got '{value}'"):
        NetworkConfig.preset("tiny").override(**{field: value})


@pytest.mark.parametrize("basis", ["fourier", "dct2", "dct4"])
@pytest.mark.parametrize("base", ["mixture", "product"])
def test_weak_white_noise_has_the_same_energy_in_any_basis_whatever_the_weights(basis, base):
    model, x = network(0.03, base=base), images(4).double()
    y = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pixel, other = (model(y, Covariance.white(1e-8, x.shape, b, like=x)) for b in ("pixel", basis))
    assert torch.allclose(pixel.energy, other.energy, rtol=1e-4)
    assert torch.allclose(pixel.grad_y, other.grad_y, rtol=1e-3, atol=1e-3 * float(pixel.grad_y.abs().max()))
    means = [e.grad_logvar.flatten(1).mean(1) for e in (pixel, other)]
    assert torch.allclose(*means, rtol=1e-2)


def test_gradient_is_the_same_in_any_batch():
    model, cov = network(), mixed(6)
    y = images(6).double() + cov.sample(torch.Generator().manual_seed(2))
    together, alone = model(y, cov), model(y[3:4], cov[3:4])
    assert torch.allclose(together.energy[3:4], alone.energy) and torch.allclose(together.grad_y[3:4], alone.grad_y)


@pytest.mark.parametrize("size", [(8, 8), (10, 14), (7, 9)])
def test_other_sizes_and_colours(size):
    model = network(colours=3)
    x = images(2, 3, size).double()
    for basis in ("pixel", "fourier", *(("dct2",) if size[0] % 2 == 0 else ())):
        cov = Covariance.white(0.01, x.shape, basis, like=x)
        result = model(x + cov.sample(torch.Generator().manual_seed(0)), cov)
        assert torch.isfinite(result.energy).all() and result.grad_y.shape == x.shape


def test_float32_energies_follow_float64_down_to_tiny_noise():
    model = network()
    single = network().float()
    x = images(4)
    for variance in (1e-8, 1e-4, 1.0, 300.0):
        cov = Covariance.white(variance, x.shape, like=x)
        y = x + cov.sample(torch.Generator().manual_seed(1))
        exact = model(y.double(), cov.to(torch.float64))
        rough = single(y, cov)
        assert ((rough.energy - exact.energy).abs() / 64 < 2e-3).all()


@pytest.mark.parametrize("form", ["anchored", "inner"])
def test_saved_and_loaded_is_the_same_model(tmp_path, form):
    model = network(form=form).float()
    model.save_pretrained(tmp_path / "m", {"data": "synthetic"})
    again = EnergyNetwork.from_pretrained(tmp_path / "m")
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    x, cov = images(2), Covariance.white(0.1, (2, 1, *SIZE))
    assert torch.equal(model.energy(x, cov), again.energy(x, cov))
    assert json.loads((tmp_path / "m" / "card.json").read_text())["data"] == "synthetic"


def test_a_card_from_before_there_was_a_choice_of_base_means_the_mixture(tmp_path):
    network(base="mixture").float().save_pretrained(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["network"].pop("base") == "mixture"
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert EnergyNetwork.from_pretrained(tmp_path).config.base == "mixture" != NetworkConfig().base


def test_foreign_and_damaged_files_are_refused(tmp_path):
    model = network().float()
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a model of this package"):
        EnergyNetwork.from_pretrained(tmp_path)
    with torch.no_grad():
        model.offset.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a model of this package: wanted finite weights, got others in offset"):
        EnergyNetwork.from_pretrained(tmp_path)
    (tmp_path / "card.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="wanted 'anem-energy-3'"):
        EnergyNetwork.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        EnergyNetwork.from_pretrained(tmp_path / "nowhere")


def test_presets():
    assert NetworkConfig.preset("small") == NetworkConfig()
    with pytest.raises(ValueError, match="preset: wanted one of"):
        NetworkConfig.preset("huge")
    with pytest.raises(ValueError, match="form"):
        NetworkConfig(form="other")
    small = EnergyNetwork(NetworkConfig.preset("small"), DataStatistics(1, 28, 28))
    assert 3e5 <= sum(p.numel() for p in small.parameters()) <= 1e6
    assert as_basis("pixel") == Pixel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": (0, 4)}, "channels: wanted >= 1"),
        ({"channels": (), "blocks": ()}, "channels: wanted >= 1"),
        ({"norm": 7}, "norm: wanted a divisor of the channels"),
        ({"stem": 0}, "stem: wanted >= 1"),
        ({"rounds": -2}, "rounds: wanted >= 0"),
        ({"attention": (3,)}, "attention: wanted levels between 0 and 1"),
        ({"dropout": 1.0}, "dropout: wanted a probability below 1"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig().override(**change)


def training_step(model, size, dtype, rate):
    """Losses of one image in colour before and after a step of gradient descent, with the same dropout."""
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(dtype)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    cov = Covariance.white(0.01, x.shape, like=x)
    torch.manual_seed(2)
    total = dual_score_loss(model, x, cov, noise).total
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    used = sum(g is not None and bool((g != 0).any()) for g in gradients)
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p -= 0 if g is None else rate * g
    return float(total.detach()), used


def test_the_largest_preset_takes_a_training_step_in_colour():
    model = EnergyNetwork(NetworkConfig.preset("paper"), DataStatistics(3, 64, 64)).train()
    assert sum(p.numel() for p in model.parameters()) > 2e7
    loss, used = training_step(model, (64, 64), torch.float32, 1e-3)
    assert math.isfinite(loss) and used > 0
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_network_like_the_largest_learns_where_its_strides_do_not_divide_the_image():
    """Four levels, attention, group norm and three channels on 20 × 36: a small step downhill."""
    torch.manual_seed(0)
    model = EnergyNetwork(NetworkConfig((8, 8, 64, 8), (1, 1, 1, 1), (2,), 1, 8, 4), DataStatistics(3, 20, 36)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    before, used = training_step(model, (20, 36), torch.float64, 1e-6)
    after, _ = training_step(model, (20, 36), torch.float64, 0.0)
    assert after < before and used > 0.9 * len(list(model.parameters()))


def test_untrained_energy_of_white_noise_has_one_description_at_small_noise():
    """Base and pixel marginals alone: pixels, frequencies and blocks agree where the noise is far below the data's variances."""
    model = network(0.0)
    x = images(8).double()
    cov = Covariance.white(1e-7, x.shape, like=x)
    y = x + cov.sample(torch.Generator().manual_seed(2))
    energies = [model.energy(y, cov.to_basis(b)) for b in ("pixel", "fourier", "dct2", "dct4")]
    assert all((energies[0] - e).abs().max() / 64 < 5e-3 for e in energies[1:])
