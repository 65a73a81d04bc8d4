"""The baselines on a Gaussian prior: against the exact posterior, or against the law that their own equations give.

Pixels are independent, with variances of their own, and the operator multiplies each by its own h: every method then acts on each pixel
alone (DPS up to the norm of the residual, which is the same number for all), and its law follows in closed form (docs/baselines.md).
"""

import pytest
import scipy.stats
import torch

from anem.baselines import DAPS, DPS, Composition, PaperSampler, REDDiff
from anem.baselines.composition import _Composed
from anem.baselines.isotropic import alpha_bars, denoise, denoise_differentiably, each_sample, polynomial_levels
from anem.bases import as_basis
from anem.covariance import Covariance
from anem.gaussian import Gaussian, make_skewed
from anem.operators import GaussianBlur, Inpainting, SuperResolution
from anem.random import generators_for, normal
from anem.restorer import Restorer
from anem.sample import MALA, Geometric, Noise

SIGMA = 0.1


class World:
    """A prior N(m, c) of independent pixels, h in {0, ½, 1}, one measurement repeated N times, and its exact posterior."""

    def __init__(self, n: int, side: int = 8) -> None:
        g = torch.Generator().manual_seed(3)
        shape = (1, side, side)
        self.variance = 0.01 * 10 ** torch.rand(1, *shape, generator=g, dtype=torch.float64)
        self.mean = 0.3 + 0.4 * torch.rand(shape, generator=g, dtype=torch.float64)
        self.h = torch.randint(3, shape, generator=g).double() / 2
        self.seen = self.h > 0
        self.prior = Gaussian(self.mean, Covariance(self.variance, "pixel"))
        self.operator = Inpainting(self.h)
        self.one = self.operator.measure(self.prior.sample(1, g), SIGMA, g)
        self.measurement = self.one.expand(n, -1, -1, -1)
        precision = 1 / self.variance + self.h.square() / SIGMA**2
        self.posterior_variance = 1 / precision
        self.posterior_mean = (self.mean / self.variance + self.h * self.one / SIGMA**2) / precision

    def draws(self, restorer: Restorer, sigma: float = SIGMA) -> torch.Tensor:
        """One restoration by each of N generators, (N, 1, H, W)."""
        return restorer(self.measurement, self.operator, sigma, generators_for(range(len(self.measurement))))[0]


def assert_law(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, alarm: float = 1e-4) -> None:
    """Sample mean and variance of every pixel between quantiles of the normal and χ² laws; false alarms of rate ``alarm`` in all."""
    n, tail = len(x), alarm / (4 * x[0].numel())
    assert float(((x.mean(0) - mean[0]).abs() / variance[0].sqrt()).max()) < scipy.stats.norm.isf(tail) / n**0.5
    low, high = scipy.stats.chi2.ppf([tail, 1 - tail], n - 1) / (n - 1)
    ratio = x.var(0) / variance[0]
    assert low < float(ratio.min()) and float(ratio.max()) < high


# --- levels and denoising ---


def test_the_noise_levels_are_the_authors():
    bars = alpha_bars(1000)
    assert bars[0] == pytest.approx(4.0358e-5, rel=1e-4) and bars[-2:] == pytest.approx([1 - 1e-4, 1.0])
    few = alpha_bars(10)
    assert few[0] == bars[0] and few[-2] == bars[-2] and len(few) == 11 and set(few) <= set(bars)
    levels = polynomial_levels(100, 0.1, 200)
    assert levels[0] == pytest.approx(100) and levels[-1] == pytest.approx(0.1)
    assert levels[1] == pytest.approx((100 ** (1 / 7) + (0.1 ** (1 / 7) - 100 ** (1 / 7)) / 199) ** 7)
    with pytest.raises(ValueError, match="steps"):
        alpha_bars(1001)


def test_the_denoiser_with_a_graph_is_the_denoiser_and_its_jacobian_that_of_finite_differences(generator):
    prior = make_skewed(1, 4, 4)
    y = prior.sample(2, generator).requires_grad_()
    x = denoise_differentiably(prior, y, 0.3)
    torch.testing.assert_close(x.detach(), denoise(prior, y.detach(), 0.3))
    weights, direction = (torch.randn(y.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    (grad,) = torch.autograd.grad((weights * x).sum(), y)
    up, down = (denoise(prior, y.detach() + e * direction, 0.3) for e in (1e-5, -1e-5))
    torch.testing.assert_close((grad * direction).sum(), (weights * (up - down)).sum() / 2e-5, rtol=1e-6, atol=1e-9)


# --- DPS ---


def dps_law(world: World, scale: float, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each pixel by the linear recursion, the norm of the residual replaced by its root mean square."""
    bars, c, h = alpha_bars(steps), world.variance, world.h
    mean, variance = torch.full_like(c, 0.5), torch.full_like(c, 0.25 / bars[0])
    for now, then in zip(bars[:-1], bars[1:], strict=True):
        before, after = (1 - now) / now / 4, (1 - then) / then / 4
        a, ratio = c / (c + before), after / before
        offset = world.one - h * (world.mean + a * (mean - world.mean))
        norm = (offset.square() + (h * a).square() * variance).sum().sqrt()
        push = scale / (2 * (now * then) ** 0.5) * a * h / norm
        slope = a + ratio * (1 - a) - push * h * a
        mean = world.mean + (a + ratio * (1 - a)) * (mean - world.mean) + push * offset
        variance = slope.square() * variance + after * (1 - ratio)
    return mean, variance


def test_dps_has_the_bias_of_its_recursion():
    """The norm of some 680 residuals fluctuates by 1/√(2 · 680) of itself, which enters means and variances squared, by 1e-3 of a push.

    How far that law is from the posterior is computed, not drawn: about one standard deviation, and 1.7 times its variance.
    """
    world = World(250, side=32)
    mean, variance = dps_law(world, 0.5, 60)
    assert_law(world.draws(DPS(world.prior, scale=0.5, steps=60, clip=False)), mean, variance)
    off = (mean - world.posterior_mean) / world.posterior_variance.sqrt()
    assert float(off[0][world.seen].square().mean().sqrt()) == pytest.approx(1.0, abs=0.1)
    assert float((variance / world.posterior_variance)[0][world.seen].mean()) == pytest.approx(1.7, abs=0.1)


def test_dps_clips_only_if_asked():
    world = World(4)
    for shift, beyond in ((0.5, lambda x: float((x - 1).quantile(0.9))), (-0.5, lambda x: float((0 - x).quantile(0.9)))):
        prior = Gaussian(world.mean + shift, Covariance(world.variance, "pixel"))  # many pixels above 1, or below 0
        plain, clipped = (beyond(world.draws(DPS(prior, steps=5, clip=clip))) for clip in (False, True))
        assert plain > 0.1 > 0.02 > clipped


# --- RED-Diff ---


def test_red_diff_settles_where_its_two_gradients_cancel():
    """At one noise level s: μ − m = h(z − hm)/(h² + λ (n/d) s²/(s² + 4c)), with s and c for images in [−1, 1]; see docs/baselines.md."""
    world, bar, weight = World(64), 0.7, 0.25
    x = world.draws(REDDiff(world.prior, weight=weight, learning_rate=3e-3, bars=[bar] * 1500))
    level = (1 - bar) / bar
    share = float((world.h > 0).sum()) / world.h.numel()
    ridge = weight * share * level / (level + 4 * world.variance)
    expected = world.mean + world.h * (world.one - world.h * world.mean) / (world.h.square() + ridge)
    # The gradient is linear in μ and its noise symmetric, and so is where Adam settles: Student's t of the 64 draws, false alarms 1e-4.
    t = (x.mean(0) - expected[0]) / x.std(0) * len(x) ** 0.5
    assert float(t.abs().max()) < scipy.stats.t.isf(1e-4 / (2 * t.numel()), len(x) - 1)


def test_red_diff_is_adam_with_the_authors_betas_from_the_pseudo_inverse():
    """Three steps, by their formulas: the gradient for a Gaussian prior, moments 0.9 and 0.99, corrected for their start at 0."""
    world = World(1)
    bars, weight, lr = [0.2, 0.5, 0.7], 0.25, 0.1
    x = world.draws(REDDiff(world.prior, weight=weight, learning_rate=lr, bars=bars))[0]
    h, measured, d = world.h, int((world.h > 0).sum()), world.h.numel()
    target = 2 * (world.one[0] - 0.5 * h)
    mu, mean = h * target / (h.square() + 1e-3), 2 * world.mean - 1

    def every(g):
        return torch.stack([normal((1, *mu.shape), g, mu) for _ in bars])

    noise = each_sample(every, 1, generators_for([0]), world.measurement, world.operator)[0]
    first, second = torch.zeros_like(mu), torch.zeros_like(mu)
    for i, (bar, z) in enumerate(zip(bars, noise[:, 0], strict=True), 1):
        level = ((1 - bar) / bar) ** 0.5
        error = (1 - 4 * world.variance[0] / (4 * world.variance[0] + level**2)) * (mu + level * z - mean) / level
        grad = h * (h * mu - target) / measured + weight * level * (error - z) / d
        first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad.square()
        mu = mu - lr * first / (1 - 0.9**i) / ((second / (1 - 0.99**i)).sqrt() + 1e-8)
    torch.testing.assert_close(x, 0.5 * (mu + 1), rtol=1e-5, atol=1e-6)


def test_red_diff_ignores_the_noise_of_the_measurement_and_has_no_spread():
    """With noise falling to none, the regulariser fades: seen pixels end at the pseudo-inverse, and draws hardly differ."""
    world = World(40)
    x = world.draws(REDDiff(world.prior, learning_rate=0.05, steps=400))
    inverse = world.operator.pseudo_inverse(world.one)
    assert float((x.mean(0) - inverse[0])[world.seen].square().mean().sqrt()) < 0.01
    assert float((world.posterior_mean - inverse)[0][world.seen].square().mean().sqrt()) > 0.1
    spread = x.var(0) / world.posterior_variance[0]
    assert float(spread[world.seen].mean()) < 0.05 and float(spread[~world.seen].mean()) < 0.5
    hidden = ((x.mean(0) - world.mean) / world.variance[0].sqrt())[~world.seen]
    assert float(hidden.abs().max()) < 0.3


# --- DAPS ---


def daps_law(world: World, daps: DAPS, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each pixel: every operation of the method is linear in x, with Gaussian noise."""
    tau = sigma if daps.tau is None else 0.5 * daps.tau
    mean, variance = torch.full_like(world.variance, 0.5), torch.zeros_like(world.variance)
    for i, sigma_u in enumerate(polynomial_levels(daps.highest, daps.lowest, daps.levels)):
        s = 0.5 * sigma_u
        variance = variance + s**2
        levels = [*polynomial_levels(s, min(s, 0.005), daps.ode), 0.0]
        for now, then in zip(levels[:-1], levels[1:], strict=True):
            factor = 1 + (then / now - 1) * now**2 / (world.variance + now**2)
            mean, variance = world.mean + factor * (mean - world.mean), factor.square() * variance
        # Langevin for a Gaussian of precision p around the posterior of x̂₀ and m, from x̂₀: linear in x̂₀.
        eta = 0.25 * daps.learning_rate * (1 - 0.99 * i / daps.levels)
        p = world.h.square() / tau**2 + 1 / s**2
        keep = (1 - eta * p) ** daps.langevin
        on_start = keep + (1 - keep) / (s**2 * p)
        mean = on_start * mean + (1 - keep) * world.h * world.one / tau**2 / p
        variance = on_start.square() * variance + 2 * eta * (1 - keep.square()) / (1 - (1 - eta * p).square())
    return mean, variance


def test_daps_has_the_law_of_its_recursion():
    world = World(150)
    for tau in (None, 0.1):
        daps = DAPS(world.prior, levels=20, langevin=30, learning_rate=4e-4, tau=tau)
        assert_law(world.draws(daps), *daps_law(world, daps, SIGMA))


def test_daps_tends_to_the_posterior_under_a_prior_of_twice_the_variance():
    """With many levels and steps; near the exact posterior where the measurement says more than the prior. See docs/baselines.md."""
    world, sigma = World(1), 0.03
    daps = DAPS(world.prior, levels=500, ode=60, langevin=4000, learning_rate=2e-3, highest=0.5, lowest=0.03, tau=None)
    mean, variance = daps_law(world, daps, sigma)

    def posterior(prior_variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision = 1 / prior_variance + world.h.square() / sigma**2
        return (world.mean / prior_variance + world.h * world.one / sigma**2) / precision, 1 / precision

    doubled, exact = posterior(2 * world.variance), posterior(world.variance)
    assert float(((mean - doubled[0]).abs() / doubled[1].sqrt()).max()) < 0.15
    assert float((variance / doubled[1] - 1).abs().max()) < 0.1
    clear = world.h == 1
    assert float(((mean - exact[0]).abs() / exact[1].sqrt())[0][clear].max()) < 0.2
    assert float((variance / exact[1] - 1)[0][clear].abs().max()) < 0.1
    torch.testing.assert_close(mean[0][~world.seen], world.mean[~world.seen])


def test_daps_stays_stable_however_small_the_noise_it_is_told():
    world = World(4)
    daps = DAPS(world.prior, levels=10, ode=2, langevin=50, tau=None)
    x = daps(world.measurement, world.operator, 1e-3, generators_for(range(4)))[0]
    assert bool(torch.isfinite(x).all()) and float((x - world.one / world.h.clamp(min=0.5))[:, world.seen].abs().max()) < 0.01


def test_the_step_of_daps_is_that_of_the_image_and_not_of_its_batch():
    """One image with little noise does not slow the others down."""
    world = World(2)
    daps = DAPS(world.prior, levels=4, ode=2, langevin=20, learning_rate=4e-4, tau=None)
    both = daps(world.measurement, world.operator, torch.tensor([1e-3, 0.1], dtype=torch.float64), generators_for([1, 2]))[0]
    alone = daps(world.measurement[:1], world.operator, 0.1, generators_for([2]))[0]
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-9)


def test_daps_with_the_authors_tau_believes_the_measurement_more_than_it_should():
    world = World(1)
    mean, variance = daps_law(world, DAPS(world.prior), SIGMA)
    assert float((variance / world.posterior_variance)[0][world.seen].mean()) < 0.1
    inverse = world.operator.pseudo_inverse(world.one)
    assert float((mean - inverse)[0][world.seen].square().mean().sqrt()) < 0.05


# --- composition ---


def composition_law(world: World, lowest: float, added: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of E[x given x_t] for x_t of the composed law at the last level: a little narrower than the posterior."""
    c, h = world.variance, world.h
    likelihood = h.square() / (SIGMA**2 + h.square() * added * lowest**2)
    precision = 1 / (c + lowest**2) + likelihood
    inverse = torch.where(h > 0, world.one / torch.where(h > 0, h, 1.0), 0.0)
    mean = (world.mean / (c + lowest**2) + likelihood * inverse) / precision
    gain = c / (c + lowest**2)
    return world.mean + gain * (mean - world.mean), gain.square() / precision


def test_composition_draws_from_the_law_of_its_last_level():
    world = World(250)
    mean, variance = composition_law(world, 0.02)
    assert_law(world.draws(Composition(world.prior, levels=30, corrector=MALA(steps=8), lowest=0.02)), mean, variance)
    # The last denoising counts where noise of the last level is left: 0.1² there is as much as the prior's least variance.
    wide = Composition(world.prior, levels=20, corrector=MALA(steps=8), lowest=0.1)
    assert_law(world.draws(wide), *composition_law(world, 0.1))
    for added in (0.0, 0.1):
        stiff = Composition(world.prior, levels=20, corrector=MALA(steps=8), lowest=0.1, added=added)
        assert_law(world.draws(stiff), *composition_law(world, 0.1, added))
    with pytest.raises(ValueError, match="added: wanted a number >= 0, got -1"):
        world.draws(Composition(world.prior, added=-1))
    # Which tends to the posterior, by λ/c at worst: 0.02²/0.01.
    assert float((variance / world.posterior_variance - 1).abs().max()) < 0.08
    assert float(((mean - world.posterior_mean).abs() / world.posterior_variance.sqrt()).max()) < 0.08


def test_composition_draws_from_the_posterior_of_a_blur_too():
    """In frequencies, where nothing of it is diagonal in pixels: moments of every coordinate within 5 standard errors and 8 %."""
    n, g, shape = 400, torch.Generator().manual_seed(5), (1, 8, 8)
    basis = as_basis("fourier")
    values = basis.symmetrise(0.01 * 10 ** torch.rand(1, *shape, generator=g, dtype=torch.float64))
    prior = Gaussian(torch.full(shape, 0.5, dtype=torch.float64), Covariance(values, "fourier"))
    operator = GaussianBlur(5, 0.6)
    one = operator.measure(prior.sample(1, g), SIGMA, g)
    seen = operator.observe(one, SIGMA, prior.statistics, g)
    assert bool(seen.observed.all()) and float(seen.cov.values.max() / seen.cov.values.min()) > 3
    posterior = prior.posterior(seen.y, seen.cov)
    mean, variance = basis.forward(posterior.mean), basis.forward(posterior.sample(20_000, g)[:, 0]).var(0)
    restorer = Composition(prior, levels=30, corrector=MALA(steps=8), lowest=0.02)
    x = basis.forward(restorer(one.expand(n, -1, -1, -1), operator, SIGMA, generators_for(range(n)))[0])
    assert float(((x.mean(0) - mean[0]).abs() / variance.sqrt()).max()) < 5 / n**0.5 + 0.08
    assert float((x.var(0) / variance - 1).abs().max()) < 5 * (2 / n) ** 0.5 + 0.08
    assert float(((x.mean(0) - basis.forward(prior.mean)).abs() / variance.sqrt()).max()) > 1  # the measurement says something


class Unit(Noise):
    """The same number for every coordinate."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.full_like(like, self.number)


@pytest.mark.parametrize("ratio", [1.1, 4.0, 400.0])
@pytest.mark.parametrize("level", [0.03, 0.3, 30.0])
def test_a_reverse_step_of_the_composition_goes_past_no_mode_however_long(ratio, level):
    """Distances between chains shrink by a factor in [e′/e, 1]; with a prior that knows x, by e′/e, and the variance is the law's e′."""
    before, after = level**2, (level / ratio) ** 2
    for c in (1e-18, 1e-3, 1.0):
        world = World(1)
        prior = Gaussian(world.mean, Covariance.white(c, (1, 1, 8, 8), like=world.mean))
        target = _Composed(world.operator.observe(world.one, SIGMA, world.prior.statistics, torch.Generator().manual_seed(0)))
        cov, start, end = Covariance.white(before, (1, 1, 8, 8), like=world.mean), target.spread(before), target.spread(after)

        def step(shift, number, target=target, prior=prior, cov=cov, world=world):
            return target.reverse(prior(world.mean[None] + shift, cov), before, after, Unit(number))

        origin = step(0.0, 0.0)
        shrunk, noise = (step(1.0, 0.0) - origin), (step(0.0, 1.0) - origin)
        assert bool((shrunk >= end / start - 1e-9).all() and (shrunk <= 1).all())
        if c == 1e-18:
            torch.testing.assert_close(shrunk, end / start, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(shrunk.square() * start + noise.square(), end, rtol=1e-6, atol=1e-12)


def test_three_levels_of_the_composition_spread_no_more_than_its_law():
    """Levels apart by a factor of about 14 in σ. A step (σ² − σ′²) ∇log π goes past the mode there, to five times the variance.

    Too narrow is what so few corrections leave, too wide is the overshoot: no pixel above the χ² quantile of false alarm 1e-4 in all.
    """
    world = World(60)
    mean, variance = composition_law(world, 0.02)
    x = world.draws(Composition(world.prior, levels=3, corrector=MALA(steps=8), lowest=0.02))
    most = scipy.stats.chi2.isf(1e-4 / 64, 59) / 59
    assert float((x.var(0) / variance[0]).max()) < most
    assert float(((x.mean(0) - mean[0]) / variance[0].sqrt()).square().mean().sqrt()) < 0.5


def test_the_composed_gradient_is_that_of_the_composed_density(generator):
    prior, operator, variance = make_skewed(1, 4, 4), GaussianBlur(3, 0.8), 0.04
    observation = operator.observe(operator.measure(prior.sample(2, generator), 0.1, generator), 0.1, prior.statistics, generator)
    target = _Composed(observation)
    x = prior.sample(2, generator)
    cov = Covariance.white(variance, x.shape, like=x)
    state, direction = target.state(prior(x, cov)), torch.randn(x.shape, generator=generator, dtype=torch.float64)
    up, down = (target.state(prior(x + e * direction, cov)).log_density for e in (1e-5, -1e-5))
    torch.testing.assert_close((state.gradient * direction).flatten(1).sum(1), (up - down) / 2e-5, rtol=1e-6, atol=1e-6)
    expected = operator.coordinates(operator.measure(x, 0.0)) - observation.cov.basis.forward(x) * operator.response(x.shape, x).abs()
    torch.testing.assert_close(expected, torch.zeros_like(expected), rtol=0, atol=1e-9)


# --- the paper's sampler ---


def paper_law(world: World, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each pixel by the linear recursion of Euler steps along the geometric path, then one denoising."""
    statistics, c = world.prior.statistics, world.variance
    seen = world.operator.observe(world.one, SIGMA, statistics, torch.Generator().manual_seed(0))
    start, end = seen.cov.values, Geometric(levels).end(seen.cov).values
    mean = torch.where(seen.observed, seen.y, statistics.mean_image(seen.y).expand_as(seen.y))
    variance = torch.where(seen.observed, 0.0, start + statistics.variance_in(seen.cov.basis, *seen.y.shape[-2:], seen.y))
    for i in range(levels):
        before, after = (start * (end / start) ** (j / levels) for j in (i, i + 1))
        keep = 1 - (before - after) / (c + before)
        mean, variance = world.mean + keep * (mean - world.mean), keep.square() * variance + before - after
    gain = c / (c + end)
    return world.mean + gain * (mean - world.mean), gain.square() * variance


def test_the_papers_predictor_alone_has_the_law_of_its_recursion_and_tends_to_the_posterior():
    """Euler steps are of first order: twice the levels, half the error of the variance."""
    world = World(150)
    assert_law(world.draws(PaperSampler(world.prior, levels=40, corrections=0, regularised=0.0)), *paper_law(world, 40))
    errors = [float((paper_law(world, n)[1] / world.posterior_variance - 1).abs().max()) for n in (500, 1000, 2000)]
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1) and errors[2] == pytest.approx(errors[1] / 2, rel=0.1)


def test_the_papers_corrector_forgets_the_measurement():
    """Its target is the prior at that level. The more it corrects, the wider the seen pixels, up to the prior's own variance."""
    world = World(120)
    spread = []
    for corrections in (0, 1, 10):
        x = world.draws(PaperSampler(world.prior, levels=50, corrections=corrections, snr=0.1, regularised=0.0))
        spread.append(float((x.var(0) / world.posterior_variance[0])[world.seen].mean()))
    assert spread[0] < 1.3 and spread[1] > 1.3 * spread[0] and spread[2] > 1.3 * spread[1]
    # 5 standard errors of 120 draws of every seen pixel, and snr² for the corrector's steps ε = 2 snr², whose variance is 1 + ε/2 at most.
    tolerance = 5 * (2 / (120 * int(world.seen.sum()))) ** 0.5 + 0.1**2
    assert spread[2] == pytest.approx(float((world.variance / world.posterior_variance)[0][world.seen].mean()), rel=tolerance)


def test_temperature_scales_the_noise_that_is_added():
    world = World(60)
    everything = Inpainting(torch.ones(1, 8, 8))  # nothing hidden, so that nothing is drawn at the start
    measurement = everything.measure(world.prior.sample(1, torch.Generator().manual_seed(0)), SIGMA).expand(60, -1, -1, -1)
    for corrections, exact in ((0, True), (1, False)):
        spread = []
        for temperature in (0.0, 0.5, 1.0):
            sampler = PaperSampler(world.prior, levels=20, corrections=corrections, temperature=temperature)
            spread.append(float(sampler(measurement, everything, SIGMA, generators_for(range(60)))[0].std(0).mean()))
        assert spread[0] < (1e-9 if exact else 0.1 * spread[2])  # the corrector's step size depends on the noise's norm
        # Two means of 64 standard deviations of 60 draws: 5 standard errors of their ratio are 5/√(60 · 64).
        assert spread[1] == pytest.approx(0.5 * spread[2], rel=1e-6 if exact else 5 / (60 * 64) ** 0.5)


# --- all of them ---

ALL = [
    lambda prior: DPS(prior, steps=4, samples=2),
    lambda prior: REDDiff(prior, steps=4, samples=2),
    lambda prior: DAPS(prior, levels=3, ode=2, langevin=3, samples=2),
    lambda prior: Composition(prior, levels=3, samples=2),
    lambda prior: PaperSampler(prior, levels=40, samples=2),
]
NAMES = ["DPS", "RED-Diff", "DAPS", "composition", "paper"]


@pytest.mark.parametrize("make", ALL, ids=NAMES)
@pytest.mark.parametrize(
    "operator", [Inpainting.random((8, 8), 0.5, seed=[1, 2, 3]), GaussianBlur(3, 0.8), SuperResolution(2)], ids=lambda o: o.name
)
def test_a_restoration_does_not_depend_on_its_batch_mates(make, operator, generator):
    prior = make_skewed()
    restorer = make(prior)
    m = operator.measure(prior.sample(3, generator), 0.05, generator)
    every = restorer(m, operator, 0.05, generators_for([5, 6, 7]))
    assert isinstance(restorer, Restorer) and every.shape == (2, 3, 1, 8, 8) and every.dtype == m.dtype
    one = Inpainting(operator.mask[1]) if isinstance(operator, Inpainting) else operator
    alone = restorer(m[1:2], one, 0.05, generators_for([6]))
    torch.testing.assert_close(alone, every[:, 1:2], rtol=0, atol=1e-9)
    assert float((every[0] - every[1]).abs().max()) > 1e-4
    assert bool(torch.isfinite(every).all())


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_no_samples_are_refused(make):
    world = World(1)
    restorer = type(make(world.prior))(world.prior, samples=0)
    with pytest.raises(ValueError, match="samples"):
        restorer(world.measurement, world.operator, SIGMA)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_measurements_and_noise_that_are_none_are_refused(make):
    world = World(1)
    restorer = make(world.prior)
    for sigma in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma: wanted"):
            restorer(world.measurement, world.operator, sigma)
    with pytest.raises(ValueError, match="finite"):
        restorer(world.measurement * float("nan"), world.operator, SIGMA)
    with pytest.raises(ValueError, match="wanted"):
        restorer(world.measurement[..., :6], world.operator, SIGMA)
    with pytest.raises(ValueError, match="measurement"):
        restorer(world.measurement[0], world.operator, SIGMA)


def test_settings_that_make_no_sense_are_refused():
    world = World(1)
    with pytest.raises(ValueError, match="ode: wanted at least 1"):
        DAPS(world.prior, ode=0)
    with pytest.raises(ValueError, match="scale"):
        DPS(world.prior, scale=-1.0)
    with pytest.raises(ValueError, match="levels"):
        Composition(world.prior, levels=1)(world.measurement, world.operator, SIGMA)
    with pytest.raises(ValueError, match="sigma"):
        DAPS(world.prior, tau=None)(world.measurement, world.operator, 0.0)
