"""p(Σ): every draw is a valid covariance, reproducible, and of the family it says."""

import math
from itertools import pairwise

import pytest
import torch

from anem.bases import Mixed
from anem.corruptions import NOISE_FAMILIES, NoiseConfig, NoiseDraw, NoiseFamily, box_filter, draw_covariances, gaussian_blur, motion_blur
from anem.covariance import Covariance
from anem.operators import GaussianBlur, MotionBlur, SuperResolution
from anem.statistics import VARIANCE_FLOOR, DataStatistics
from anem.variates import Variates

STATISTICS = DataStatistics(1, 12, 16)


def draw(only=(), shape=(32, 1, 12, 16), seed=0, **config):
    return draw_covariances(shape, STATISTICS, NoiseConfig(only=tuple(only), **config), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", NOISE_FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_family_is_valid_and_in_range(family, channels):
    batch = draw([family.name], (16, channels, 12, 16))
    values = batch.cov.values
    Covariance(values, batch.cov.basis)  # positive, finite, even
    assert batch.cov.basis.rows(torch.arange(16)).name == family.basis
    assert values.min() >= 1e-8 * (1 - 1e-4) and values.max() <= STATISTICS.lambda_max * (1 + 1e-4)
    assert values.log().flatten(1).mean(1).std() > 0.1


def test_draws_depend_on_the_generator_alone():
    a, b, c = draw(seed=3), draw(seed=3), draw(seed=4)
    assert torch.equal(a.cov.values, b.cov.values) and torch.equal(a.family, b.family)
    assert not torch.equal(a.cov.values, c.cov.values)


def test_family_frequencies_follow_the_weights():
    """Counts of 16 families over 4096 draws: chi-square, false-alarm rate 1e-4."""
    weights = NoiseConfig().family_weights()
    family = draw(shape=(4096, 1, 12, 16)).family
    counts = torch.bincount(family, minlength=len(NOISE_FAMILIES)).float()
    expected = 4096 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 44.3  # 15 degrees of freedom


def test_weights_and_only_choose_families():
    names = NoiseConfig().family_names
    assert {names[i] for i in draw(["box", "white"]).family.tolist()} == {"box", "white"}
    assert "box" not in {names[i] for i in draw(weights={"box": 0.0}).family.tolist()}
    with pytest.raises(ValueError, match="unknown families"):
        NoiseConfig(only=("boxes",))
    with pytest.raises(ValueError, match="lambda_min"):
        NoiseConfig(lambda_min=-1.0)


def test_boxes_have_two_levels_and_centred_squares_occur():
    values = draw(["box"], (256, 1, 12, 16)).cov.values
    levels = [len(v.unique()) for v in values]
    assert max(levels) == 2
    middle = values[:, 0, 5:7, 7:9].flatten(1)
    corner = values[:, 0, 0, 0]
    assert ((middle == middle[:, :1]).all(1) & (middle[:, 0] != corner)).float().mean() > 0.3


def test_blur_start_has_the_gaussian_shape():
    """Even, and never below the variance of the mean, at the start and along either path."""
    values = draw(["gaussian-blur"], (64, 1, 16, 16)).cov.values.double()
    ratio = values / values[:, :, :1, :1]
    assert (ratio > 1 - 1e-3).all()  # high frequencies are never observed better than the mean
    assert torch.allclose(ratio[:, :, 1, 0], ratio[:, :, -1, 0], rtol=1e-4)
    assert (ratio[:, :, 8, 8] > ratio[:, :, 1, 1]).float().mean() > 0.5  # equal where the water-filling level is below all of them


class Told(NoiseDraw):
    """A draw of white noise of variance 1 at the start of the path, with random numbers that are told."""

    told: list

    def rand(self, *shape):
        return torch.as_tensor(self.told.pop(0)).expand(shape)

    def measured(self):
        return torch.zeros(self.shape[0], 1, 1, 1)

    def along_path(self, log_start):
        return log_start


def told(*numbers, size=28) -> NoiseDraw:
    draw = Told((1, 1, size, size), -20.0, 20.0, Variates(torch.Generator()))
    object.__setattr__(draw, "told", list(numbers))
    return draw


@pytest.mark.parametrize(
    ("drawn", "operator"),
    [
        (lambda: gaussian_blur(told(math.log10(0.8 / 0.3), 0.1)), GaussianBlur(8, 0.8)),  # the paper's, which hides a row and a column
        (lambda: gaussian_blur(told(math.log10(2.0 / 0.3), 0.9)), GaussianBlur(27, 2.0)),
        (lambda: gaussian_blur(told(math.log10(2.0 / 0.3), 0.9, size=9)), GaussianBlur(9, 2.0)),
        (lambda: motion_blur(told(0.3, 0.25)), MotionBlur(5.0, 45.0)),
        (lambda: motion_blur(told(0.0, 0.7, size=8)), MotionBlur(2.0, 126.0)),
        (lambda: box_filter(told(0.7)), SuperResolution(4, "fourier")),
        (lambda: box_filter(told(0.2)), SuperResolution(2, "fourier")),
    ],
)
def test_blurs_are_those_of_the_operators(drawn, operator):
    """λ = σ²/|h|² frequency by frequency, for σ = 1: a model is asked about measurements, not about blurs like them."""
    found = drawn()
    h = operator.response(found.shape).abs()
    wanted = -2 * h.clamp_min(1e-12).log().float()
    assert torch.allclose(found.clamp(max=14), wanted.clamp(max=14), atol=2e-3)  # beyond, float32 and λ_max decide


def test_paths_are_drawn_in_equal_shares_of_start_geometric_and_water_filling():
    n, low, high = 3000, math.log(1e-8), math.log(30.0)
    start = torch.linspace(math.log(1e-3), math.log(10.0), 64).view(1, 1, 8, 8)
    path = NoiseDraw((n, 1, 8, 8), low, high, Variates(torch.Generator().manual_seed(0))).along_path(start).flatten(1)
    same, ramp = path == start.flatten(), start.flatten()
    whole = same.all(1)  # the start itself, or a level above all of it
    filled = ((path == path[:, -1:]) | same).all(1) & ~whole
    straight = ((path[:, 1:] - path[:, :-1]) / (ramp[1:] - ramp[:-1])).sub(
        (path[:, -1] - path[:, 0])[:, None] / (ramp[-1] - ramp[0])
    ).abs().amax(1) < 1e-3
    above = 0.95 * math.log(30.0 / 10.0) / math.log(30.0 / VARIANCE_FLOOR)
    assert whole.float().mean() == pytest.approx((1 + above) / 3, abs=0.03)
    assert filled.float().mean() == pytest.approx((1 - above) / 3, abs=0.03)
    assert torch.allclose((straight & ~whole & ~filled).float().mean(), torch.tensor(1 / 3), atol=0.03)


@pytest.mark.parametrize(
    ("low", "high", "inside"),
    [
        (1e-8, 100.0, (0.05, 0.88, 0.07)),
        (1e-3, 100.0, (0.0, 0.88 / 0.95, 0.07 / 0.95)),
        (1e-3, 0.1, (0.0, 1.0, 0.0)),
        (1e-9, 1e-7, (1.0, 0.0, 0.0)),
    ],
)
def test_noise_of_measurements_is_mostly_where_measurements_have_it(low, high, inside):
    """Shares of the range below 8-bit rounding, up to 0.3 and above; log-uniform in each; one in every n-th of the whole."""
    n = 4000
    levels = NoiseDraw((n, 1, 4, 4), math.log(low), math.log(high), Variates(torch.Generator().manual_seed(0))).measured().flatten()
    edges = [min(max(e, low), high) for e in (low, VARIANCE_FLOOR, 0.3, high)]
    assert levels.min() >= math.log(low) - 1e-5 and levels.max() <= math.log(high) + 1e-5
    for (a, b), share in zip(pairwise(edges), inside, strict=True):
        here = levels[(levels > math.log(a)) & (levels <= math.log(b))]
        assert len(here) / n == pytest.approx(share, abs=0.002)
        if share:
            assert here.mean() == pytest.approx((math.log(a) + math.log(b)) / 2, abs=0.02)
            assert here.std() == pytest.approx(math.log(b / a) / 12**0.5, rel=0.02)


@pytest.mark.parametrize("shape", [(64, 1, 1, 16), (64, 1, 2, 2), (64, 3, 3, 5), (64, 1, 4, 9)])
def test_blurs_of_tiny_images_are_drawn(shape):
    values = draw(["gaussian-blur", "motion-blur", "box-filter"], shape).cov.values
    assert values.shape == shape and bool(values.isfinite().all())


def test_block_families_are_dropped_where_they_do_not_fit():
    names = NoiseConfig().family_names
    present = {names[i] for i in draw(shape=(512, 1, 9, 9)).family.tolist()}
    assert not any("dct" in n or "block" in n for n in present)


def test_a_user_adds_a_family_without_touching_anything():
    stripes = NoiseFamily("stripes", "pixel", 1.0, lambda d: torch.where(d.grid()[0] % 2 == 0, d.level(), torch.tensor(d.low)))
    batch = draw_covariances((4, 1, 8, 8), STATISTICS, NoiseConfig(weights={}), torch.Generator().manual_seed(0), (stripes,))
    rows = batch.cov.values.log()
    assert torch.allclose(rows[:, :, 1::2], torch.tensor(math.log(1e-8)), rtol=1e-5)


def test_a_stratified_batch_has_the_same_bases_every_time_and_nearly_the_weights():
    """So that every step has the same shapes; families are still drawn within their basis."""
    wanted = {basis: 64 * sum(f.weight for f in NOISE_FAMILIES if f.basis == basis) for basis in {f.basis for f in NOISE_FAMILIES}}
    batches = [draw(shape=(64, 1, 12, 16), seed=seed, stratified=True) for seed in range(8)]
    for batch in batches:
        basis = batch.cov.basis
        assert isinstance(basis, Mixed) and basis.name == batches[0].cov.basis.name
        counts = {part.name: n for part, n in basis.parts}
        assert sum(counts.values()) == 64 and all(abs(counts[name] - w) < 1 for name, w in wanted.items())
        assert all(NOISE_FAMILIES[f].basis == basis.bases[i].name for f, i in zip(batch.family.tolist(), basis.index.tolist(), strict=True))
    assert len({tuple(b.family.tolist()) for b in batches}) > 1
