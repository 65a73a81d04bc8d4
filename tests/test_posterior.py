"""Posterior and prior samples: against exact posteriors, and independent of batch mates, chunks and the number of samples."""

import pytest
import torch

from anem.bench.samplers import draw_chains, permutation_p_values, random_covariance
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.gaussian import GaussianMixture, make_mixture, make_skewed
from anem.operators import GaussianBlur, Identity, Inpainting, SuperResolution
from anem.restorer import EnergyRestorer, Restorer, seeds_from
from anem.sample import (
    MALA,
    ULA,
    Geometric,
    Listed,
    Sampler,
    WaterFilling,
    as_kernel,
    sample_posterior,
    sample_prior,
    steps_within,
)

OPERATORS = [Inpainting.centre_box((8, 8), 4), GaussianBlur(3, 0.8), SuperResolution(2, "block"), Identity()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def measured(prior: GaussianMixture, operator, sigma: float = 0.05, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator(1)
    x = prior.sample(n, g)
    return x, operator.measure(x, sigma, g)


@pytest.fixture(scope="module")
def prior() -> GaussianMixture:
    return make_mixture(4)


# --- the law ---


@pytest.mark.parametrize("basis", ["pixel", "fourier", "dct2"])
def test_many_steps_draw_from_the_exact_posterior(basis):
    """Mean, second moments and energy distance by permutation tests, false-alarm rate 1e-3 each; a few steps are rejected."""
    prior, n, g = make_skewed(1, 4, 4), 500, generator(11)
    cov = random_covariance(basis, (1, 4, 4), 0.01, 1.0, g)
    y = prior.sample(1, g) + cov.sample(g)
    posterior = prior.posterior(y, cov)
    exact = posterior.sample(n, g)[:, 0].flatten(1)
    for steps, agree in ((150, True), (4, False)):
        x = draw_chains(prior, y, cov, Geometric(steps), as_kernel("ancestral"), n, g)
        p = permutation_p_values(x, exact, posterior.mean[0].flatten(), posterior.covariance[0], 999, g)
        assert (min(p.values()) > 0.001) == agree


def test_inpainting_agrees_with_the_exact_conditional():
    """Posterior given the seen pixels only (not the drawn y): mean and std of the hidden ones within 5 standard errors + 5 %."""
    prior, sigma, samples = make_skewed(), 0.1, 400
    operator = Inpainting.half((8, 8), "right")
    _, m = measured(prior, operator, sigma, 1)
    seen = operator.mask.expand(1, 1, 8, 8)
    exact = prior.posterior(m, Covariance(torch.where(seen > 0, sigma**2, 1e6).double()))
    restored = sample_posterior(prior, m, operator, sigma, samples=samples, steps=60, kernel="sde-2m")
    std = exact.covariance[0].diagonal().sqrt().reshape(8, 8)
    assert float(((restored.mean - exact.mean)[0, 0].abs() / std).max()) < 5 / samples**0.5 + 0.05
    assert float((restored.std[0, 0] / std - 1).abs().max()) < 5 / (2 * samples) ** 0.5 + 0.05


def test_prior_samples_have_the_moments_of_the_prior():
    """Overall mean and variance within 5 standard errors over independent images, plus 3 % for the steps."""
    prior, n = make_skewed(), 600
    for basis in ("pixel", "fourier"):
        x = sample_prior(prior, (n, 1, 8, 8), steps=60, kernel="sde-2m", basis=basis, like=torch.zeros((), dtype=torch.float64)).samples[0]
        assert x.shape == (n, 1, 8, 8)
        means, squares = x.mean((1, 2, 3)), (x - prior.statistics.mean).square().mean((1, 2, 3))
        assert abs(float(means.mean() - prior.statistics.mean)) < 5 * float(means.std()) / n**0.5 + 0.01
        variance = float(prior.statistics.variance)
        assert abs(float(squares.mean()) - variance) < 5 * float(squares.std()) / n**0.5 + 0.03 * variance


@pytest.mark.parametrize("corrector", [ULA(steps=4, step_size=0.2), MALA(steps=2)], ids=["ULA", "MALA"])
def test_correctors_bring_few_steps_closer_to_the_posterior(corrector):
    prior, n, g = make_skewed(1, 4, 4), 500, generator(12)
    cov = random_covariance("pixel", (1, 4, 4), 0.05, 1.0, g)
    y = prior.sample(1, g) + cov.sample(g)
    exact, operator = prior.posterior(y, cov), Identity()
    error = {}
    for name, c in (("without", None), ("with", corrector)):
        restored = sample_posterior(prior, y, operator, cov.values.sqrt(), samples=n, steps=12, corrector=c)
        covariance = restored.samples[:, 0].flatten(1).T.cov()
        error[name] = float((covariance - exact.covariance[0]).norm())
        if c is not None:
            assert restored.acceptance.shape == (12, n, 1)
            assert bool(((restored.acceptance >= 0) & (restored.acceptance <= 1)).all())
    assert error["with"] < 0.7 * error["without"]


# --- independence ---


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
@pytest.mark.parametrize("corrector", [None, MALA()], ids=["alone", "MALA"])
def test_a_sample_does_not_depend_on_its_batch_mates(prior, operator, corrector):
    _, m = measured(prior, operator)
    options = {"steps": 6, "corrector": corrector}
    every = sample_posterior(prior, m, operator, 0.05, samples=4, seed=10, **options).samples
    in_chunks = sample_posterior(prior, m, operator, 0.05, samples=3, seed=10, chunk=2, **options).samples
    alone = sample_posterior(prior, m[1:2], operator, 0.05, samples=3, seed=11, **options).samples
    by_list = sample_posterior(prior, m[[2, 1]], operator, 0.05, samples=3, seed=[12, 11], **options).samples
    torch.testing.assert_close(in_chunks, every[:3], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(alone, every[:3, 1:2], rtol=0.0, atol=1e-5)
    torch.testing.assert_close(by_list, every[:3, [2, 1]], rtol=0.0, atol=1e-5)
    spread = every.std(0)
    assert float(spread.amax()) > 1e-3 and float((every[0] - every[1]).abs().max()) > 1e-3


def test_per_image_noise_and_masks_follow_their_image(prior):
    masks = Inpainting.random((8, 8), 0.5, seed=[1, 2, 3])
    _, m = measured(prior, masks)
    sigma = torch.tensor([0.02, 0.1, 0.5])
    every = sample_posterior(prior, m, masks, sigma, samples=3, steps=5, chunk=4).samples
    for b in range(3):
        one = Inpainting(masks.mask[b])
        alone = sample_posterior(prior, m[b : b + 1], one, float(sigma[b]), samples=3, steps=5, seed=b).samples
        torch.testing.assert_close(alone, every[:, b : b + 1], rtol=0.0, atol=1e-5)


def test_listed_schedule_is_per_image(prior):
    _, m = measured(prior, Identity())
    levels = [Covariance(torch.tensor([1e-3, 5e-4, 1e-4]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8) * f) for f in (1.0, 0.01)]
    every = sample_posterior(prior, m, Identity(), 0.05, samples=2, schedule=Listed(levels), chunk=2).samples
    alone = sample_posterior(prior, m[2:], Identity(), 0.05, samples=2, schedule=Listed([level[2:] for level in levels]), seed=2).samples
    torch.testing.assert_close(alone, every[:, 2:], rtol=0.0, atol=1e-5)


class Recorder(EnergyModel):
    """Passes calls on, records their batch sizes and dtypes, and runs out of memory above ``limit`` images."""

    def __init__(self, inner: EnergyModel, limit: int = 10**9) -> None:
        super().__init__()
        self.inner, self.limit, self.batches, self.dtypes = inner, limit, [], set()
        self.statistics = inner.statistics

    def energy(self, y: torch.Tensor, cov: Covariance) -> torch.Tensor:
        return self.inner.energy(y, cov)

    def forward(self, y: torch.Tensor, cov: Covariance) -> Evaluation:
        self.batches.append(len(y))
        self.dtypes |= {y.dtype, cov.values.dtype}
        if len(y) > self.limit:
            raise torch.OutOfMemoryError("no room")
        return self.inner(y, cov)


def test_running_out_of_memory_halves_the_chunk_and_changes_nothing(prior):
    _, m = measured(prior, Identity(), n=5)
    model = Recorder(prior, limit=3)
    restored = sample_posterior(model, m, Identity(), 0.05, samples=2, steps=4)
    assert model.batches[:3] == [10, 5, 2] and max(model.batches[2:]) <= 2
    reference = sample_posterior(prior, m, Identity(), 0.05, samples=2, steps=4)
    torch.testing.assert_close(restored.samples, reference.samples, rtol=0.0, atol=1e-9)
    with pytest.raises(torch.OutOfMemoryError):
        sample_posterior(Recorder(prior, limit=0), m, Identity(), 0.05, steps=4)


def test_states_are_float64_and_results_are_as_the_measurement(prior):
    _, m = measured(prior, Identity())
    model = Recorder(prior)
    restored = sample_posterior(model, m.float(), Identity(), 0.05, samples=2, steps=4)
    assert model.dtypes == {torch.float64}
    assert {t.dtype for t in (restored.samples, restored.mean, restored.std, restored.denoised, restored.variance)} == {torch.float32}


# --- the result ---


def test_restoration_holds_what_it_says(prior):
    _, m = measured(prior, Identity())
    restored = sample_posterior(prior, m, Identity(), 0.2, samples=5, steps=4, kernel="sandwich")
    observation = Identity().observe(m, 0.2, prior.statistics)
    exact = prior.posterior(observation.y, observation.cov)
    assert restored.samples.shape == (5, 3, 1, 8, 8) and restored.energy.shape == (5, 3)
    torch.testing.assert_close(restored.mean, restored.samples.mean(0))
    torch.testing.assert_close(restored.std, restored.samples.std(0))
    torch.testing.assert_close(restored.denoised, exact.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(restored.variance, exact.variance, rtol=1e-7, atol=1e-9)
    assert restored.calls == 1 + 4 * 4 and restored.acceptance is None and restored.sampler.schedule == WaterFilling(4)
    blurred = GaussianBlur(3, 0.8)
    assert sample_posterior(prior, blurred(m), blurred, 0.2, steps=2).variance is None
    assert sample_posterior(prior, m, Identity(), 0.2, steps=2).std is None


def test_final_denoise_is_the_denoised_noisy_end(prior):
    _, m = measured(prior, Identity())
    noisy, denoised = (sample_posterior(prior, m, Identity(), 0.2, schedule=Geometric(4, 1e-3), final=f) for f in ("noisy", "denoise"))
    end = Covariance.white(1e-3, m.shape, like=m)
    torch.testing.assert_close(denoised.samples[0], prior.denoise(noisy.samples[0], end), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noisy.energy[0], prior.energy(noisy.samples[0], end), rtol=1e-9, atol=1e-9)


def test_callback_sees_every_step_of_every_chunk(prior):
    _, m = measured(prior, Identity())
    seen = []

    def callback(step, state, cov, evaluation) -> None:
        assert state.x is evaluation.y and evaluation.cov is cov and state.total == 6
        seen.append((step, state.steps, state.chains, state.calls))

    sample_posterior(prior, m, Identity(), 0.1, samples=2, steps=2, chunk=4, callback=callback)
    assert seen == [(k, 2, chains, 1 + k) for chains in (range(4), range(4, 6)) for k in (0, 1, 2)]


def test_steps_within_a_budget_of_calls(prior):
    _, m = measured(prior, Identity())
    for calls, kernel, corrector in (
        (50, "ancestral", None),
        (50, "sandwich", None),
        (50, "ancestral", MALA(steps=3)),
        (2, "sde-2m", None),
    ):
        steps = steps_within(calls, kernel, corrector)
        used = sample_posterior(prior, m, Identity(), 0.1, steps=steps, kernel=kernel, corrector=corrector).calls
        assert used <= calls < used + as_kernel(kernel).calls + (corrector.steps if corrector else 0)
    with pytest.raises(ValueError, match="at least 5"):
        steps_within(4, "sandwich")


def test_integers_are_no_measurement():
    """They would be taken as intensities up to 255; images of integers are for :func:`anem.sample_posterior`."""
    measurement = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match="measurement: wanted a tensor of floats, got torch.uint8"):
        sample_posterior(make_mixture(2, 1, 4, 4), measurement, Identity(), 0.1, steps=2)


def test_energy_restorer_is_a_restorer(prior):
    _, m = measured(prior, Identity())
    restorer = EnergyRestorer(prior, Sampler(schedule=Geometric(4)), samples=2)
    assert isinstance(restorer, Restorer)
    generators = [generator(s) for s in (5, 6, 7)]
    every = restorer(m, Identity(), 0.1, generators)
    alone = restorer(m[2:], Identity(), 0.1, [generator(7)])
    assert every.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(alone, every[:, 2:], rtol=0.0, atol=1e-5)
    assert len(set(seeds_from(generator(0), 4))) == 4 and len(set(seeds_from(None, 4))) == 4


def test_wrong_arguments_are_named(prior):
    x, m = measured(prior, Identity())
    for match, options in (
        ("final", {"final": "clean"}),
        ("kernel", {"kernel": "pc"}),
        ("chunk", {"chunk": 0}),
        ("samples", {"samples": 0}),
        ("seed", {"seed": [1, 2]}),
        ("steps", {"steps": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            sample_posterior(prior, m, Identity(), 0.1, **options)
    with pytest.raises(ValueError, match="expand"):
        masks = Inpainting.random((8, 8), 0.5, seed=[1, 2])
        sample_posterior(prior, x[:1], masks, 0.1)
    with pytest.raises(ValueError, match="generators"):
        seeds_from([generator()], 2)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (0, 1, 8, 8), (1, 3, 8, 8), (1, 1, 8.0, 8)])
def test_a_prior_sample_of_another_shape_is_refused(prior, shape):
    with pytest.raises(ValueError, match=r"shape: wanted \(B, .* got"):
        sample_prior(prior, shape, steps=1)
