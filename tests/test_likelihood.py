"""Likelihoods against closed forms: exact energies of discrete images, of Gaussians and of mixtures.

Random numbers are fixed, so every test gives the same result each time. The rates stated are those at which a right implementation
would fail with other seeds: 4.5 standard errors, 7e-6 two-sided for a normal estimate, and 1e-4 where the standard error itself comes
from 32 populations (Student's t with 31 degrees of freedom).
"""

import math

import pytest
import torch
from torch import Tensor

from anem.bases import as_basis
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import Gaussian, make_mixture, make_power_law_gaussian
from anem.likelihood import (
    Partition,
    anchor,
    bits_per_dim,
    choose_sigma,
    flow_log_prob,
    geometric_path,
    immse_slope,
    log_box_mixture,
    log_partition,
)
from anem.statistics import DataStatistics

BASES = ("pixel", "fourier", "dct2")
DOUBLE = torch.zeros((), dtype=torch.float64)


def white(variance: float, basis: str = "pixel", shape: tuple[int, ...] = (1, 1, 4, 4)) -> Covariance:
    return Covariance.white(variance, shape, basis, DOUBLE)


def uneven(basis: str, low: float, high: float, generator: torch.Generator, shape=(1, 1, 4, 4)) -> Covariance:
    """Log-uniform variances between ``low`` and ``high``."""
    logs = math.log(low) + math.log(high / low) * torch.rand(shape, generator=generator, dtype=torch.float64)
    return Covariance(as_basis(basis).symmetrise(logs.exp()), basis)


class Changed(EnergyModel):
    """U + f(Σ): the same score, another constant."""

    def __init__(self, inner: EnergyModel, change) -> None:
        super().__init__()
        self.inner, self.statistics, self.change = inner, inner.statistics, change

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        return self.inner.energy(y, cov) + self.change(cov)


class Histogram(EnergyModel):
    """Independent pixels with values v of probability P(v), dequantised uniformly: 256 boxes blurred by the noise, in closed form."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.probabilities = probabilities
        self.statistics = make_power_law_gaussian(1, 4, 4).statistics

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        sigma = float(cov.values[0, 0, 0, 0].sqrt())
        return -naive_mixture(y, sigma, self.probabilities).flatten(1).sum(1)

    @property
    def entropy(self) -> float:
        """Of a pixel, in bits."""
        return float(-(self.probabilities * self.probabilities.log2()).sum())

    def draw(self, n: int, generator: torch.Generator, shape=(1, 4, 4)) -> Tensor:
        flat = torch.multinomial(self.probabilities, n * math.prod(shape), replacement=True, generator=generator)
        return flat.reshape(n, *shape).to(torch.uint8)


def naive_mixture(y: Tensor, sigma: float, prior: Tensor) -> Tensor:
    """log Σ_v π(v) q(y given v) by plain differences of Φ, exact where y is within a few σ of [0, 1]."""
    edges = torch.arange(257, dtype=torch.float64) / 256
    cdf = torch.special.ndtr((y[..., None] - edges) / sigma)
    return (256 * (cdf[..., :-1] - cdf[..., 1:]) * prior).sum(-1).log()


def spiky(generator: torch.Generator) -> Tensor:
    """Probabilities of 256 values: four fifths are black."""
    p = torch.rand(256, generator=generator, dtype=torch.float64).pow(4) + 1e-4
    p[0] = 4 * p[1:].sum()
    return p / p.sum()


UNIFORM = torch.full((256,), 1 / 256, dtype=torch.float64)


# --- bits/dim ---


@pytest.mark.parametrize("sigma", [3e-4, 4e-3, 0.1])
@pytest.mark.parametrize("prior", [None, "spiky"])
def test_the_sum_over_all_values_is_the_plain_one(sigma, prior, generator):
    y = torch.cat([torch.linspace(-4 * sigma, 4 * sigma, 41), torch.rand(50, generator=generator), 1 + torch.linspace(-sigma, sigma, 9)])
    y, p = y.double(), None if prior is None else spiky(generator)
    got = log_box_mixture(y, sigma, p)
    torch.testing.assert_close(got, naive_mixture(y, sigma, UNIFORM if p is None else p), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prior", [None, UNIFORM])
def test_the_sum_over_all_values_has_no_cancellation_in_the_tails(prior):
    """Far outside [0, 1] the uniform density is that of the nearest edge, Φ(−t) ≈ φ(t)(1/t − 1/t³ + 3/t⁵ − 15/t⁷), on both sides."""
    sigma, t = 1e-3, 30.0
    y = torch.tensor([-t * sigma, 1 + t * sigma], dtype=torch.float64)
    series = 1 / t - 1 / t**3 + 3 / t**5 - 15 / t**7
    expected = -0.5 * t**2 - 0.5 * math.log(2 * math.pi) + math.log(series)
    torch.testing.assert_close(log_box_mixture(y, sigma, prior), torch.full_like(y, expected), rtol=1e-9, atol=1e-6)


def test_the_density_of_one_value_integrates_to_one():
    """Both normalisations: a missing factor 256 would give 1/256."""
    prior = torch.full((256,), 1e-12, dtype=torch.float64)
    prior[77] = 1 - 255e-12
    y = torch.linspace(0.25, 0.36, 20_001, dtype=torch.float64)
    assert torch.trapezoid(log_box_mixture(y, 1e-3, prior).exp(), y).item() == pytest.approx(1, abs=1e-8)
    y = torch.linspace(-0.1, 1.1, 20_001, dtype=torch.float64)
    assert torch.trapezoid(log_box_mixture(y, 1e-2).exp(), y).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("sigma", [2e-4, 3e-3, 0.05])
def test_with_the_true_prior_the_bound_is_the_code_length_itself(sigma, generator):
    """Energy and decoding then cancel draw by draw, at any σ: −log₂ P(v)/d of every image, which any wrong factor would spoil."""
    model = Histogram(spiky(generator))
    images = model.draw(6, generator)
    exact = -model.probabilities.log2()[images.long()].flatten(1).mean(1)
    bits = bits_per_dim(model, images, sigma, generator, draws=2, prior=model.probabilities)
    torch.testing.assert_close(bits.total, exact, rtol=0, atol=1e-8)


def gap_of_uniform_decoding(model: Histogram, sigma: float) -> float:
    """E log₂ [P(v given y)/(q(y given v)/Σ q)] by quadrature over y: what the bound exceeds the entropy by."""
    y = torch.linspace(-8 * sigma, 1 + 8 * sigma, 60_001, dtype=torch.float64)
    edges = torch.arange(257, dtype=torch.float64) / 256
    cdf = torch.special.ndtr((y[:, None] - edges) / sigma)
    q = 256 * (cdf[:, :-1] - cdf[:, 1:])
    p = model.probabilities
    ratio = (p * q.sum(1, keepdim=True) / (p * q).sum(1, keepdim=True)).log2()
    return float(torch.trapezoid((p * q * ratio).sum(1), y))


@pytest.mark.parametrize("sigma", [1e-4, 1e-3])
def test_the_uniform_bound_exceeds_the_entropy_by_the_computed_gap(sigma, generator):
    """False-alarm rate 7e-6."""
    model = Histogram(spiky(generator))
    images = model.draw(400, generator)
    bits = bits_per_dim(model, images, sigma, generator)
    exact = -model.probabilities.log2()[images.long()].flatten(1).mean(1)
    excess = bits.total - exact
    error = float(excess.std()) / len(images) ** 0.5
    gap = gap_of_uniform_decoding(model, sigma)
    assert 0 < gap < 1.3 * 256 * sigma
    assert abs(float(excess.mean()) - gap) < 4.5 * error
    assert error < 0.1 * gap, "the test would see nothing"


def test_images_do_not_depend_on_their_batch_mates(generator):
    model = Histogram(spiky(generator))
    images = model.draw(5, generator)
    seeds = [torch.Generator().manual_seed(i) for i in range(5)]
    together = bits_per_dim(model, images, 1e-3, seeds, draws=2)
    alone = bits_per_dim(model, images[3:4], 1e-3, [torch.Generator().manual_seed(3)], draws=2)
    torch.testing.assert_close(together.total[3:4], alone.total, rtol=1e-12, atol=0)


def test_sigma_is_chosen_where_the_bound_is_least(generator):
    """An energy that is worse by 0.002/(256σ) nats/dim at small noise, as learned ones are: the best σ lies inside."""
    model = Histogram(spiky(generator))
    worse = Changed(model, lambda cov: 0.002 / (256 * cov.values[:, 0, 0, 0].sqrt()) * cov.values[0].numel())
    sigmas = [1e-5, 1e-4, 1e-3, 1e-2]
    images = model.draw(50, generator)
    sigma, curve = choose_sigma(worse, images, sigmas, generator)
    assert sigma == sigmas[int(curve.argmin())] == 1e-4 or sigma == 1e-3
    assert sigmas[0] < sigma < sigmas[-1]
    again = bits_per_dim(worse, images, sigma, generator).total.mean()
    assert abs(float(again - curve.min())) < 0.05


def test_unusable_arguments_are_refused(generator):
    model = Histogram(UNIFORM)
    images = model.draw(2, generator)
    with pytest.raises(ValueError, match="uint8"):
        bits_per_dim(model, images.float() / 256, 1e-3)
    with pytest.raises(ValueError, match="sigma"):
        bits_per_dim(model, images, 0.0)
    with pytest.raises(ValueError, match="prior"):
        bits_per_dim(model, images, 1e-3, prior=torch.ones(256))
    with pytest.raises(ValueError, match="sigmas"):
        choose_sigma(model, images, [])


# --- paths ---


def test_a_path_is_straight_in_log_variance_and_meets_its_waypoints():
    waypoints = [white(100.0), white(1.0), white(1e-6)]
    levels, at = geometric_path(waypoints, 80)
    logs = torch.tensor([float(c.values.log().mean()) for c in levels])
    assert len(levels) == 81 and at == [0, 20, 80]
    assert [float(levels[i].values.mean()) for i in at] == [100.0, 1.0, 1e-6]
    torch.testing.assert_close(logs.diff(), torch.full((80,), math.log(1e-8) / 80), rtol=1e-5, atol=0)


def test_every_piece_of_a_path_has_a_step():
    waypoints = [white(1.0), white(0.999), white(0.998), white(1e-6), white(0.99e-6)]
    levels, at = geometric_path(waypoints, 4)
    assert at == [0, 1, 2, 3, 4] and len(levels) == 5
    levels, at = geometric_path(waypoints, 9)
    assert at == [0, 1, 2, 8, 9] and len(levels) == 10
    with pytest.raises(ValueError, match="steps"):
        geometric_path(waypoints, 3)


# --- log Z ---


@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_weights_are_constant_for_a_gaussian_diagonal_in_the_basis(shift, generator):
    """There the bridge is the exact reverse kernel and the anchor exact, so every path weighs e^{−δ} for U + δ, without any error."""
    prior = Changed(make_power_law_gaussian(1, 4, 4), lambda cov: shift)
    targets = [white(1.0, "fourier"), uneven("fourier", 1e-6, 1.0, generator)]
    result = log_partition(prior, targets, steps=6, chains=8, generator=generator)
    torch.testing.assert_close(result.log_weights, torch.full((2, 8), -shift, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(result.log_z, torch.full((2,), -shift, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kernel", ["ancestral", "bridge"])
@pytest.mark.parametrize("basis", BASES)
def test_log_z_of_a_mixture_is_zero_at_every_target(basis, kernel, generator):
    """A mixture, correlated noise variances and a kernel that is not exact: log Z = 0 within 4.5 standard errors, false alarms 1e-4 each.

    Coordinates at λ_max, like those of hidden pixels, stay where they are.
    """
    prior = make_mixture(3, 1, 4, 4)
    last = uneven(basis, 1e-3, 1.0, generator)
    hidden = as_basis(basis).symmetrise((torch.rand(1, 1, 4, 4, generator=generator) < 0.3).double()) > 0
    last = last.replace(torch.where(hidden, prior.statistics.lambda_max, last.values))
    first = last.replace((last.values * prior.statistics.lambda_max).sqrt())
    steps, chains = (12, 64) if kernel == "bridge" else (30, 128)
    result = log_partition(prior, [first, last], steps=steps, chains=chains, kernel=kernel, population=chains // 32, generator=generator)
    assert (result.log_z.abs() < 4.5 * result.standard_error).all()
    assert (result.standard_error < 0.3).all() and (result.effective > 8).all()


def test_a_shifted_energy_shows_in_log_z(generator):
    prior = Changed(make_mixture(3, 1, 4, 4), lambda cov: 1.0 - 0.5 * float(cov.values.mean() < 0.1))
    result = log_partition(prior, [white(1.0), white(1e-2)], steps=12, chains=64, generator=generator)
    assert (result.standard_error < 0.12).all()
    assert ((result.log_z - torch.tensor([-1.0, -0.5])).abs() < 4.5 * result.standard_error).all()


def test_resampling_keeps_the_estimate_and_makes_it_steadier(generator):
    """A chain far too coarse: independent weights fail, populations of 16 do not; still log Z = 0 (false alarms 1e-4)."""
    prior = make_mixture(3, 1, 4, 4)
    spread = {}
    for population in (1, 16):
        chains = 16 * population if population > 1 else 256
        result = log_partition(
            prior, [white(1e-2)], steps=16, chains=chains, population=population, kernel="ancestral", generator=generator
        )
        spread[population] = float(result.log_weights.std())
    assert spread[16] < 0.5 * spread[1]
    assert abs(float(result.log_z)) < 4.5 * float(result.standard_error)


def test_the_standard_error_is_the_jackknifes(generator):
    """By leaving out each population in turn; the delta method's where weights vary little, and no false comfort where one dominates."""
    log_weights = 2 * torch.randn(1, 5, generator=generator, dtype=torch.float64)
    result = Partition.of(log_weights)
    w = log_weights[0].exp()
    assert result.log_z.item() == pytest.approx(math.log(w.mean()))
    assert result.effective.item() == pytest.approx(float(w.sum() ** 2 / w.square().sum()))
    left_out = torch.stack([torch.cat([w[:i], w[i + 1 :]]).mean().log() for i in range(5)])
    assert result.standard_error.item() == pytest.approx(float((4 / 5 * (left_out - left_out.mean()).square().sum()).sqrt()))
    w = 1 + 0.01 * torch.randn(40, generator=generator, dtype=torch.float64)
    assert Partition.of(w.log()[None]).standard_error.item() == pytest.approx(float(w.std() / w.mean()) / 40**0.5, rel=0.01)
    assert Partition.of(torch.tensor([[0.0, 0.0, 0.0, 50.0]])).standard_error.item() > 20
    assert math.isnan(Partition.of(log_weights[:, :1]).standard_error.item())


def test_paths_that_cannot_be_followed_are_refused():
    prior = make_power_law_gaussian(1, 4, 4)
    with pytest.raises(ValueError, match="never increase"):
        log_partition(prior, [white(1e-2), white(1.0)], steps=4)
    with pytest.raises(ValueError, match="λ_max"):
        log_partition(prior, [white(1e6)], steps=4)
    with pytest.raises(ValueError, match="population"):
        log_partition(prior, [white(1.0)], chains=10, population=4)
    with pytest.raises(ValueError, match="kernel"):
        log_partition(prior, [white(1.0)], kernel="sde-2m")
    with pytest.raises(ValueError, match="targets"):
        log_partition(prior, [white(1.0).expand(3)])


# --- probability flow ---


@pytest.mark.parametrize("basis", BASES)
def test_the_flow_likelihood_of_a_gaussian_is_its_energy(basis, generator):
    """To second order in the step: four times closer at half the step, and close in absolute terms. The Gaussian is diagonal in the
    basis, so that the anchor is exact and the random signs give the exact trace."""
    prior = Gaussian(torch.zeros(1, 4, 4), uneven(basis, 0.03, 3.0, generator))
    prior.statistics = ExactStatistics(prior)
    cov = uneven(basis, 1e-4, 1.0, generator).expand(2)
    y = prior.sample(2, generator) + cov.sample(generator)
    exact = prior.log_prob(y, cov)
    coarse, fine = (flow_log_prob(prior, y, cov, steps=s, generators=generator).log_prob - exact for s in (32, 64))
    assert (fine.abs() < 0.04).all()
    assert float((coarse.norm() / fine.norm()).log2()) == pytest.approx(2, abs=0.3)


class ExactStatistics(torch.nn.Module):
    """Mean 0 and the very variances of a Gaussian in its own basis, where DataStatistics averages over pixels or blocks."""

    variance_of, gaussian_energy = DataStatistics.variance_of, DataStatistics.gaussian_energy

    def __init__(self, prior: Gaussian) -> None:
        super().__init__()
        self.variance, self.lambda_max = prior.variance, 300.0
        self.mean = torch.zeros(len(prior.variance[0]))

    def mean_image(self, like: Tensor) -> Tensor:
        return torch.zeros(1, 1, 1, 1).to(like)

    def variance_in(self, basis, height: int, width: int, like: Tensor) -> Tensor:
        return self.variance.to(like)


def test_random_probes_agree_with_the_exact_trace_within_their_standard_error(generator):
    """A Gaussian that is not diagonal in pixels; t with 15 degrees of freedom beyond 6: 2e-5 for each of three images."""
    prior = make_power_law_gaussian(1, 4, 4)
    cov = white(1e-2).expand(3)
    y = prior.sample(3, generator) + cov.sample(generator)
    exact = flow_log_prob(prior, y, cov, steps=6, probes=None)
    random = flow_log_prob(prior, y, cov, steps=6, probes=16, generators=generator)
    assert (exact.standard_error == 0).all() and (random.standard_error > 0).all()
    assert ((random.log_prob - exact.log_prob).abs() < 6 * random.standard_error).all()


def test_the_flow_does_not_see_a_constant_of_the_energy(generator):
    prior = make_mixture(3, 1, 2, 2)
    cov = uneven("pixel", 1e-3, 1.0, generator, (1, 1, 2, 2)).expand(2)
    y = prior.sample(2, generator) + cov.sample(generator)
    plain = flow_log_prob(prior, y, cov, steps=4, probes=None).log_prob
    changed = flow_log_prob(Changed(prior, lambda cov: 3.0 + cov.values.log().mean()), y, cov, steps=4, probes=None).log_prob
    torch.testing.assert_close(plain, changed, rtol=0, atol=1e-10)


def test_the_flow_likelihood_of_a_mixture_is_its_energy_up_to_the_anchor(generator):
    """What remains at fine steps is how far p at λ_max is from the Gaussian anchor, evaluated here by the exact energy."""
    prior = make_mixture(3, 1, 2, 2)
    cov = white(1e-2, shape=(1, 1, 2, 2)).expand(3)
    y = prior.sample(3, generator) + cov.sample(generator)
    error = flow_log_prob(prior, y, cov, steps=40, probes=None).log_prob - prior.log_prob(y, cov)
    end = anchor(prior.statistics, cov)
    far = prior.sample(2000, generator) + end[:1].expand(2000).sample(generator)
    spread = prior.statistics.variance_in("pixel", 2, 2, far) + end.values[:1]
    gaussian = -0.5 * ((far - prior.statistics.mean_image(far)).square() / spread + (2 * math.pi * spread).log()).flatten(1).sum(1)
    misfit = (gaussian - prior.log_prob(far, end[:1].expand(2000))).abs().max()
    assert (error.abs() < 0.02 + misfit).all()
    assert misfit < 0.5


# --- slope ---


@pytest.mark.parametrize("variance", [1e-3, 0.1, 10.0])
def test_the_slope_of_a_gaussian_is_the_closed_form(variance, generator):
    """½ mean_k λ/(c_k + λ) on both sides, within 4.5 standard errors (false-alarm rate 7e-6 each)."""
    prior = make_power_law_gaussian(1, 4, 4)
    slope = immse_slope(prior, prior.sample(400, generator), variance, generator, draws=2)
    exact = 0.5 * float((variance / (prior.variance + variance)).mean())
    for side in (slope.measured, slope.predicted, slope.measured - slope.predicted + exact):
        assert abs(float(side.mean()) - exact) < 4.5 * float(side.std()) / 20
        assert float(side.std()) / 20 < 0.01


def test_the_slope_is_the_derivative_of_the_energy_itself(generator):
    """By central differences of U(x + σz, σ²I) with z fixed, on a mixture."""
    prior, variance, step = make_mixture(3, 1, 4, 4), 0.05, 1e-4
    x = prior.sample(4, generator)
    state = generator.get_state()
    slope = immse_slope(prior, x, variance, generator)
    generator.set_state(state)
    z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    up, down = (prior.energy(x + v**0.5 * z, white(v).expand(4)) for v in (variance * math.exp(step), variance * math.exp(-step)))
    torch.testing.assert_close(slope.measured, (up - down) / (2 * step * 16), rtol=1e-6, atol=1e-8)


def test_an_energy_that_drifts_with_the_noise_is_noticed(generator):
    """U + 0.05 d log σ² has the right score at every σ and is wrong by 0.05 nats/dim for each e-fold of σ²."""
    prior = make_mixture(3, 1, 4, 4)
    drifting = Changed(prior, lambda cov: 0.05 * cov.logdet())
    slope = immse_slope(drifting, prior.sample(200, generator), 0.1, generator)
    difference = slope.measured - slope.predicted
    assert abs(float(difference.mean()) - 0.05) < 4.5 * float(difference.std()) / 200**0.5
    assert float(difference.std()) / 200**0.5 < 0.01
