"""Markov chains at one level against exact laws, and convergence diagnostics against known processes."""

import math
import sys

import pytest
import torch

from anem.bench.samplers import random_covariance
from anem.covariance import Covariance
from anem.gaussian import basis_matrix, make_skewed
from anem.operators import Inpainting, Observation
from anem.sample import MALA, ULA, DualAveraging, Trace, effective_sample_size, end_of_path, sample_mcmc, split_rhat

SHAPE = (1, 4, 2)
PRIOR = make_skewed(*SHAPE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def observation(basis: str, images: int = 1, high: float = 0.5) -> Observation:
    g = generator(5)
    covs = [random_covariance(basis, SHAPE, 0.02, high, g) for _ in range(images)]
    cov = Covariance(torch.cat([c.values for c in covs]), basis)
    y = PRIOR.sample(images, g) + cov.sample(g)
    return Observation(y, cov, torch.ones_like(y, dtype=torch.bool), torch.zeros(images))


def exact_moments(seen: Observation, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and covariance (d, d) of x_0 given y: x from the posterior, n_0 given n_T = y − x by the bridge."""
    posterior = PRIOR.posterior(seen.y, seen.cov)
    matrix, values = basis_matrix(seen.cov.basis, SHAPE)[0], seen.cov.values.flatten()
    level = end_of_path(seen.cov, variance).values.flatten()
    ratio = matrix.T @ (level / values).diag() @ matrix
    rest = torch.eye(len(values), dtype=values.dtype) - ratio
    mean = rest @ posterior.mean.flatten() + ratio @ seen.y.flatten()
    return mean, rest @ posterior.covariance[0] @ rest.T + matrix.T @ (level * (1 - level / values)).diag() @ matrix


def worst_t(trace: Trace, mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """Greatest |t| of 8 means and 36 second moments, each a one-sample t-test over the independent chains of one image."""
    x = trace.draws.flatten(2) - mean
    rows, columns = torch.triu_indices(len(mean), len(mean))
    errors = torch.cat([x.mean(1), (x[..., rows] * x[..., columns]).mean(1) - covariance[rows, columns]], 1)
    return float((errors.mean(0) / errors.std(0) * len(x) ** 0.5).abs().max())


LIMIT = 5.0
"""With 64 chains, 63 degrees of freedom, P(|t| > 5) = 5e-6, so that one of 44 exceeds it with probability below 3e-4."""


@pytest.mark.parametrize("basis", ["pixel", "fourier"])
def test_mala_draws_a_skewed_target_and_ula_at_its_step_does_not(basis):
    seen, variance = observation(basis), 0.01
    mean, covariance = exact_moments(seen, variance)
    mala = sample_mcmc(PRIOR, seen, chains=64, warmup=300, draws=1000, variance=variance, seed=3)
    assert mala.draws.shape == (64, 1000, 1, *SHAPE) and mala.draws.dtype == torch.float64
    assert mala.log_density.shape == mala.acceptance.shape == (64, 1000, 1) and mala.calls == 1301
    assert worst_t(mala, mean, covariance) < LIMIT
    assert 0.45 < float(mala.acceptance.mean()) < 0.7
    assert 1.0 <= float(mala.rhat.max()) < 1.05  # about 1 + τ/(2 · 500), τ the autocorrelation time in draws
    ess = mala.effective_sample_size
    assert bool((ess > 64 * 10).all()) and bool((ess < 64 * 1000).all())
    ula = sample_mcmc(
        PRIOR, seen, corrector=ULA(step_size=float(mala.step_size)), chains=64, warmup=300, draws=1000, variance=variance, seed=3
    )
    assert float(ula.step_size) == pytest.approx(float(mala.step_size))
    assert worst_t(ula, mean, covariance) > 2 * LIMIT


def test_standard_errors_from_the_effective_sample_size_are_honest():
    """(mean − exact)/(std/√ESS) of 8 chains' pixels, 16 observations: mean square near 1 (128 dependent terms, wide band)."""
    variance, z = 0.01, []
    seen = observation("pixel", images=16)
    trace = sample_mcmc(PRIOR, seen, chains=2, warmup=150, draws=300, variance=variance, seed=1)
    error = trace.std / trace.effective_sample_size.sqrt()
    for b in range(16):
        mean, _ = exact_moments(seen[torch.tensor([b])], variance)
        z.append((trace.mean[b].flatten() - mean) / error[b].flatten())
    assert 0.5 < float(torch.stack(z).square().mean()) < 2.0


def test_chains_that_have_not_met_are_noticed():
    start = PRIOR.sample(4, generator(1))[:, None] + torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(4, 1, 1, 1, 1)
    trace = sample_mcmc(PRIOR, observation("pixel"), corrector=ULA(step_size=1e-5), chains=4, warmup=0, draws=20, start=start)
    assert float(trace.rhat.min()) > 1.5
    torch.testing.assert_close(trace.draws[:, 0], start, rtol=0.0, atol=0.1)


def test_coordinates_measured_better_than_the_level_keep_their_value():
    seen = observation("pixel", high=10.0)
    pinned = seen.cov.values <= 0.2
    assert 0 < int(pinned.sum()) < 8
    trace = sample_mcmc(PRIOR, seen, chains=3, warmup=20, draws=20, variance=0.2)
    moved = (trace.draws - seen.y).abs().amax((0, 1))
    assert float(moved[pinned].max()) == 0.0 and float(moved[~pinned].min()) > 1e-3
    assert torch.equal(trace.rhat.isnan(), pinned) and torch.equal(trace.effective_sample_size.isnan(), pinned)


def test_what_was_not_observed_follows_the_prior_given_the_rest():
    """Inpainting, the right half hidden: the hidden pixels' mean within 6 standard errors of the exact conditional on the seen ones."""
    operator, sigma = Inpainting.half((4, 2), "right"), 0.1
    m = operator.measure(PRIOR.sample(1, generator(2)), sigma, generator(3))
    trace = sample_mcmc(PRIOR, operator.observe(m, sigma, PRIOR.statistics, generator(4)), chains=32, warmup=200, draws=200, variance=0.005)
    exact = PRIOR.posterior(m, Covariance(torch.where(operator.mask > 0, sigma**2, 1e6).double().expand(m.shape)))
    chains = trace.draws.mean(1)[:, 0, 0, :, 1]
    error = (chains.mean(0) - exact.mean[0, 0, :, 1]) / (chains.std(0) / 32**0.5)
    assert float(error.abs().max()) < 6


def test_an_image_does_not_depend_on_its_batch_mates():
    seen = observation("fourier", images=3)
    together = sample_mcmc(PRIOR, seen, corrector=MALA(steps=2), chains=2, warmup=12, draws=8, variance=0.01, seed=[7, 8, 9])
    alone = sample_mcmc(PRIOR, seen[torch.tensor([1])], corrector=MALA(steps=2), chains=2, warmup=12, draws=8, variance=0.01, seed=8)
    torch.testing.assert_close(together.draws[:, :, 1:2], alone.draws, rtol=1e-9, atol=1e-10)
    assert alone.calls == 1 + 20 * 2


def test_dual_averaging_finds_the_step_of_a_known_acceptance():
    """Acceptance e^{−ε/2}, with noise: the aim 0.574 is met at ε = −2 log 0.574; every image for itself."""
    tuner, g = DualAveraging(torch.tensor([0.01, 50.0], dtype=torch.float64)), generator()
    for _ in range(2000):
        noise = 0.1 * torch.randn(2, generator=g, dtype=torch.float64)
        tuner.update(((-tuner.step_size / 2).exp() + noise).clamp(0, 1))
    torch.testing.assert_close(tuner.average, torch.full((2,), -2 * math.log(0.574), dtype=torch.float64), rtol=0.1, atol=0.0)


def test_wrong_arguments_are_refused():
    seen = observation("pixel")
    with pytest.raises(ValueError, match="chains"):
        sample_mcmc(PRIOR, seen, chains=0)
    with pytest.raises(ValueError, match="seed"):
        sample_mcmc(PRIOR, seen, seed=[1, 2])
    with pytest.raises(ValueError, match="start"):
        sample_mcmc(PRIOR, seen, chains=2, start=seen.y[None])
    with pytest.raises(ValueError, match="diverged"):
        sample_mcmc(PRIOR, seen, corrector=ULA(step_size=1e6), warmup=0, draws=100)


# --- diagnostics ---


def autoregression(phi: float, chains: int, n: int, quantities: int) -> torch.Tensor:
    """x_t = φ x_{t−1} + √(1 − φ²) z, stationary, (S, N, Q)."""
    z = torch.randn(n, chains, quantities, generator=generator(3), dtype=torch.float64)
    x = [z[0]]
    for noise in z[1:]:
        x.append(phi * x[-1] + (1 - phi**2) ** 0.5 * noise)
    return torch.stack(x, 1)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_effective_sample_size_of_an_autoregression(phi):
    """N (1 − φ)/(1 + φ), averaged over 200 quantities, within 10 %."""
    chains, n = 4, 2000
    ess = effective_sample_size(autoregression(phi, chains, n, 200))
    assert float(ess.mean()) == pytest.approx(chains * n * (1 - phi) / (1 + phi), rel=0.1)


def test_rhat_of_shifted_chains_is_its_closed_form():
    """Independent unit-variance draws about means with (halves') variance v: R̂² = 1 − 1/N + (v + 1/N) up to sampling error."""
    x = torch.randn(4, 4000, 50, generator=generator(), dtype=torch.float64)
    assert float((split_rhat(x) - 1).abs().max()) < 0.01
    shift = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)[:, None, None]
    assert float(split_rhat(x + shift).mean()) == pytest.approx((1 + 8 / 7) ** 0.5, rel=0.01)


def test_a_drift_within_chains_is_noticed():
    x = torch.randn(4, 1000, generator=generator(), dtype=torch.float64)
    assert float(split_rhat(x + torch.linspace(-2, 2, 1000))) > 1.2


def test_ranked_rhat_sees_spread_and_bears_heavy_tails_and_ties():
    x = torch.randn(4, 2000, 3, generator=generator(), dtype=torch.float64)
    spread = x * torch.tensor([1.0, 1.0, 1.0, 4.0], dtype=torch.float64)[:, None, None]
    assert float(split_rhat(spread).max()) < 1.01 < 1.1 < float(split_rhat(spread, ranked=True).min())
    cauchy = x / x.roll(1, 2)
    assert float((split_rhat(cauchy, ranked=True) - 1).abs().max()) < 0.01
    assert float((split_rhat(x.round(), ranked=True) - 1).abs().max()) < 0.01


def test_few_draws_are_refused():
    with pytest.raises(ValueError, match="at least 8"):
        split_rhat(torch.zeros(4, 7))


# --- ArviZ ---


def small_trace() -> Trace:
    return sample_mcmc(PRIOR, observation("pixel", images=2), chains=3, warmup=10, draws=12, variance=0.01)


def test_arviz_has_the_same_draws_and_diagnostics():
    arviz = pytest.importorskip("arviz")
    trace = small_trace()
    data = trace.to_arviz()
    assert data.posterior["x"].dims == ("chain", "draw", "image", "channel", "row", "column")
    assert torch.equal(torch.from_numpy(data.posterior["x"].values), trace.draws)
    assert data.sample_stats["lp"].shape == (3, 12, 2)
    rhat = torch.from_numpy(arviz.rhat(data.posterior, method="split")["x"].values)
    torch.testing.assert_close(trace.rhat, rhat, rtol=1e-6, atol=1e-6)
    noise = torch.randn(4, 400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for phi in (0.0, 0.5, 0.9):  # chains of an autoregression; pairs of lags are cut off a little differently
        chains = [noise[:, 0]]
        for step in range(1, 400):
            chains.append(phi * chains[-1] + (1 - phi**2) ** 0.5 * noise[:, step])
        x = torch.stack(chains, 1)
        theirs = torch.from_numpy(arviz.ess(arviz.convert_to_dataset(x.numpy()), method="mean")["x"].values)
        torch.testing.assert_close(effective_sample_size(x), theirs, rtol=0.06, atol=0)


def test_arviz_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ValueError, match=r"pip install 'anem\[mcmc\]'"):
        small_trace().to_arviz()
