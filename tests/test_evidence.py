"""log p(m) from U(y, Σ) and an observation's terms, against the dense Gaussian density of m = H x + σ v."""

import math

import pytest
import torch

from anem.bases import Fourier
from anem.blind import FAMILIES, Evidence
from anem.gaussian import make_power_law_gaussian
from anem.likelihood import log_evidence, score
from anem.operators import GaussianBlur, Identity, Inpainting, KernelBlur, MotionBlur, SuperResolution, inside_box
from anem.statistics import DataStatistics

SHAPE = (2, 4, 8)
RANDOM = torch.Generator().manual_seed(3)


def rand(*shape):
    return torch.rand(shape, generator=RANDOM, dtype=torch.float64)


def matrix(function, shape):
    """A linear function of images (1, C, H, W) as a matrix (outputs, inputs)."""
    return function(torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)).flatten(1).T


def log_normal(value, mean, covariance):
    """log N(value; mean, covariance) for vectors, dense."""
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(value)


def make_statistics(shape, eigenvalue):
    """A mean a channel and random variances in every basis; λ_max = 30 × ``eigenvalue``."""
    statistics = DataStatistics(*shape).double()
    statistics.mean.copy_(rand(shape[0]))
    statistics.variance.copy_(0.1 + rand(shape[0]))
    for name in ("spectrum", *(f"dct{f}" for f in statistics.dct)):
        buffer = statistics.get_buffer(name)
        values = 0.1 + rand(*buffer.shape)
        buffer.copy_(values + values.flip(-2, -1).roll((1, 1), (-2, -1)) if name == "spectrum" else values)
    statistics.largest_eigenvalue.fill_(eigenvalue)
    return statistics


class Dense:
    """x ~ N(μ, C) with a constant mean a channel: the exact U(y, Σ) and the exact density of a measurement."""

    def __init__(self, statistics, covariance, shape):
        self.shape, self.covariance = shape, covariance
        self.mean = statistics.mean_image(covariance).expand(1, *shape).flatten()

    def energy(self, y, cov):
        """U(y, Σ), (B,)."""
        basis = matrix(cov.basis.forward, self.shape)
        noise = basis.T @ (cov.values.flatten(1)[:, :, None] * basis)
        return -log_normal(y.flatten(1), self.mean, self.covariance + noise)

    def log_evidence(self, operator, m, sigma):
        """log p(m) of one measurement (1, C, h, w) on the entries that were measured; σ a number or a map."""
        forward = matrix(operator, self.shape)
        kept = torch.ones_like(m, dtype=torch.bool).flatten()
        if isinstance(operator, Inpainting):
            kept = operator.measured(self.shape, m).expand_as(m).flatten()
        noise = torch.diag((torch.as_tensor(sigma, dtype=m.dtype) ** 2).expand_as(m).flatten())
        covariance = (forward @ self.covariance @ forward.T + noise)[kept][:, kept]
        return log_normal(m.flatten()[kept], (forward @ self.mean)[kept], covariance)


def independent(statistics, basis, shape):
    """A Gaussian with the statistics' variances, independent in ``basis``: unobserved coordinates are then treated exactly."""
    b = matrix(basis.forward, shape)
    return Dense(statistics, b.T @ (statistics.variance_in(basis, *shape[1:], b).flatten()[:, None] * b), shape)


def correlated(statistics, shape):
    """Any covariance whatever."""
    root = rand(math.prod(shape), math.prod(shape)) - 0.5
    return Dense(statistics, root @ root.T / len(root) + 0.05 * torch.eye(len(root), dtype=torch.float64), shape)


PARTLY_OBSERVED = {
    "identity": (Identity(), 0.3),
    "mask": (Inpainting.box(SHAPE, 1, 2, 2, 3), 0.3),
    "mosaic": (Inpainting((rand(*SHAPE) > 0.5).double()), 0.3),
    "noisy hidden pixels": (Inpainting.box(SHAPE, 1, 2, 2, 3, hidden_measured=True), 0.3),
    "noise beyond λ_max in a box": (Identity(), torch.where(inside_box(SHAPE, 0, 1, 2, 4), 20.0, 0.2)),
    "blur": (GaussianBlur(4, 0.8), 0.6),
    "asymmetric kernel": (KernelBlur(rand(2, 3, 4) / 6), 0.6),
    "motion": (MotionBlur(3.0, 40.0), 0.6),
    "box filter": (SuperResolution(2, form="fourier"), 0.6),
    "blocks of 2": (SuperResolution(2), 0.6),
    "blocks of 4": (SuperResolution(4), 0.6),
    "blocks, noise map": (SuperResolution(2), 0.1 + rand(1, 1, 2, 4)),
}


@pytest.mark.parametrize("operator, sigma", PARTLY_OBSERVED.values(), ids=PARTLY_OBSERVED.keys())
def test_exact_where_the_prior_is_independent_in_the_basis(operator, sigma):
    """Whatever is observed, measured or hidden, and however small λ_max."""
    statistics = make_statistics(SHAPE, eigenvalue=0.05)
    prior = independent(statistics, operator.basis, SHAPE)
    m = operator.measure(rand(1, *SHAPE), sigma, RANDOM)
    seen = operator.observe(m, sigma, statistics, RANDOM)
    torch.testing.assert_close(seen.log_evidence(prior.energy)[0], prior.log_evidence(operator, m, sigma), rtol=0, atol=1e-8)


FULLY_OBSERVED = {
    "identity": (Identity(), 0.3),
    "noise map": (Identity(), 0.1 + rand(1, 2, 4, 8)),
    "vignette": (Inpainting(0.3 + 0.7 * rand(4, 8)), 0.2),
    "vignette and noise map": (Inpainting(0.3 + 0.7 * rand(2, 4, 8)), 0.1 + rand(1, 1, 4, 8)),
    "odd blur": (GaussianBlur(3, 0.6), 0.2),
    "even blur with a hole": (KernelBlur(torch.tensor([[0.7, 0.1], [0.2, 0.05]], dtype=torch.float64)), 0.2),
    "kernel a channel": (KernelBlur(torch.tensor([[[0.1, 0.8, 0.2]], [[0.0, 0.6, 0.1]]], dtype=torch.float64)), 0.2),
}


@pytest.mark.parametrize("operator, sigma", FULLY_OBSERVED.values(), ids=FULLY_OBSERVED.keys())
def test_exact_for_any_prior_where_all_is_observed(operator, sigma):
    """A change of variables and nothing else: the Jacobian −Σ log |h_k| is right."""
    statistics = make_statistics(SHAPE, eigenvalue=10.0)
    prior = correlated(statistics, SHAPE)
    m = operator.measure(rand(1, *SHAPE), sigma, RANDOM)
    seen = operator.observe(m, sigma, statistics)
    assert bool(seen.observed.all())
    torch.testing.assert_close(seen.log_evidence(prior.energy)[0], prior.log_evidence(operator, m, sigma), rtol=0, atol=1e-8)


@pytest.mark.parametrize("operator", [Inpainting.box(SHAPE, 1, 2, 2, 3), SuperResolution(2)], ids=["mask", "blocks"])
def test_unbiased_over_the_draws_of_what_was_never_measured(operator):
    """E exp(log evidence) over y_unobserved is p(m) for any prior and any λ_max: within 4.5 standard errors (false alarm 1e-5)."""
    statistics, draws = make_statistics(SHAPE, eigenvalue=0.1), 1000
    prior = correlated(statistics, SHAPE)
    m = operator.measure(rand(1, *SHAPE), 0.2, RANDOM)
    seen = operator.observe(m.expand(draws, -1, -1, -1), 0.2, statistics, RANDOM)
    ratio = (seen.log_evidence(prior.energy) - prior.log_evidence(operator, m, 0.2)).exp()
    assert float(ratio.std()) > 0.05
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(draws)


def test_sigma_gradient_is_that_of_the_dense_density():
    statistics = make_statistics(SHAPE, eigenvalue=10.0)
    prior, operator = correlated(statistics, SHAPE), GaussianBlur(3, 0.6)
    m = operator.measure(rand(1, *SHAPE), 0.2, RANDOM)
    sigma = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(operator.observe(m, sigma, statistics).log_evidence(prior.energy).sum(), sigma)
    (exact,) = torch.autograd.grad(prior.log_evidence(operator, m, sigma), sigma)
    torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)


def test_blur_width_where_frequencies_are_lost():
    """Argmax over the width: the exact one with all terms (24 of 24 measurements), not without the sum over lost frequencies.

    The prior is not stationary, so that no term is exact for it.
    """
    shape, sigma, count, generator = (1, 10, 10), 0.05, 24, torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(10, dtype=torch.float64)
    root = 0.1 / (0.02 + frequency[:, None].square() + frequency[None, :].square()).sqrt()
    envelope = 0.5 + torch.hann_window(10, periodic=False, dtype=torch.float64)[:, None]
    root = matrix(lambda e: envelope * torch.fft.ifft2(torch.fft.fft2(e) * root).real, shape)
    statistics = DataStatistics(*shape).double()
    statistics.spectrum.copy_(Fourier().power(root.T.reshape(-1, *shape)).sum(0))
    statistics.largest_eigenvalue.copy_(torch.linalg.matrix_norm(root, 2) ** 2)
    prior = Dense(statistics, root @ root.T, shape)

    stds = torch.arange(0.6, 2.2, 0.1, dtype=torch.float64)
    candidates = GaussianBlur(9, stds)
    x = (root @ torch.randn(100, count, generator=generator, dtype=torch.float64)).T.reshape(count, *shape)
    truth = stds[torch.randint(2, 14, (count,), generator=generator)]
    forward = torch.stack([candidates(e[None]).flatten(1) for e in torch.eye(100, dtype=torch.float64).reshape(100, *shape)], 2)
    noise = sigma**2 * torch.eye(100, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(forward @ prior.mean, forward @ prior.covariance @ forward.mT + noise)
    variance = candidates.response(shape, x).abs().square() * statistics.spectrum + sigma**2
    agree, agree_without = 0, 0
    for m in GaussianBlur(9, truth).measure(x, sigma, generator).split(1):
        seen = candidates.observe(m, sigma, statistics, generator)
        assert not bool(seen.observed[-1].all())
        lost = -0.5 * (candidates.coordinates(m).square() / variance + (2 * math.pi * variance).log())
        evidence = seen.log_evidence(prior.energy)
        without = evidence - (lost * ~seen.observed).flatten(1).sum(1)
        best = exact.log_prob(m.flatten()).argmax()
        agree += int(evidence.argmax() == best)
        agree_without += int(without.argmax() == best)
    assert agree == count
    assert agree_without < count // 2


# --- averaged over draws ---

PRIOR = make_power_law_gaussian(1, 8, 8)


def test_log_evidence_is_the_density_where_all_is_observed():
    """A change of variables: of blurred measurements, and of one measurement under several σ."""
    x = PRIOR.sample(3, torch.Generator().manual_seed(0))
    blur = GaussianBlur(3, 0.6)
    m = blur.measure(x, 0.1, torch.Generator().manual_seed(1))
    found = log_evidence(PRIOR, m, blur, 0.1)
    variance = (blur.response(m.shape, m).abs().square() * PRIOR.variance + 0.01).expand(1, 1, 8, 8)
    z = Fourier().forward(m - PRIOR.statistics.mean_image(m))  # the kernel sums to 1
    exact = -0.5 * (z.square() / variance + (2 * math.pi * variance).log()).flatten(1).sum(1)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-5)
    several = log_evidence(PRIOR, m[:1], blur, torch.tensor([0.05, 0.1, 0.2]))
    assert several.shape == (3,) and float(several[1]) == pytest.approx(float(found[0]))


def test_log_evidence_is_that_of_estimates_and_of_scores_and_of_each_image_alone():
    x, operator = PRIOR.sample(3, torch.Generator().manual_seed(0)), GaussianBlur(8, 2.5)
    m = operator.measure(x, 0.8, torch.Generator().manual_seed(1))
    assert not bool(operator.observe(m, 0.8, PRIOR.statistics).observed.all())
    found = log_evidence(PRIOR, m, operator, 0.8, draws=3, seed=4)
    assert torch.equal(score(PRIOR, x, m, operator, 0.8, draws=3, seed=4).evidence, found)
    for b in range(3):
        alone = log_evidence(PRIOR, m[b].numpy()[0], operator, 0.8, draws=3, seed=4 + b)
        family = FAMILIES["blur"](m.shape)
        u = family.coordinates(torch.tensor([[2.5, 0.8]], dtype=torch.float64))
        estimated = Evidence(PRIOR, m[b : b + 1], family, draws=3, seed=4 + b).grid(u)
        assert float(alone) == pytest.approx(float(found[b]), rel=1e-6) == float(estimated[0])
    hidden = Inpainting.half((8, 8))  # Fourier has no unobserved coordinate that matters to this prior, pixels have
    once, thrice = (log_evidence(PRIOR, m, hidden, 0.1, draws=draws) for draws in (1, 3))
    assert float((once - thrice).abs().min()) > 1e-9


@pytest.mark.parametrize(("settings", "message"), [({"draws": 0}, "draws: wanted at least 1, got 0"), ({"seed": -1}, "seed: wanted whole")])
def test_log_evidence_refuses_what_means_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        log_evidence(PRIOR, torch.rand(1, 1, 8, 8), Identity(), 0.1, **settings)
