"""Telling Σ from its twin: the twins' law, the loss at exact and wrong energies, and the way through training."""

import math

import pytest
import torch
from training_fakes import Images

from anem.corruptions import NOISE_FAMILIES, NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.data import DataConfig
from anem.gaussian import Gaussian
from anem.losses import LossConfig, dual_score_loss
from anem.network import EnergyNetwork, NetworkConfig, TrainingGradients
from anem.statistics import DataStatistics
from anem.train import TrainConfig, train
from anem.train.config import CheckpointConfig, EvaluationConfig, LogConfig, ModelConfig
from anem.train.parts import build_parts
from anem.train.step import CompiledStep, LossModule
from anem.variates import Variates

SHAPE = (1, 8, 8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Exact:
    """The energy of white Gaussian data of variance c behind what the loss asks for; ``scale`` and ``normalised`` make it wrong."""

    def __init__(self, c: float = 0.3, scale: float = 1.0, normalised: bool = True):
        self.statistics = DataStatistics(*SHAPE).double()
        data = Covariance(torch.full((1, *SHAPE), c, dtype=torch.float64), "pixel")
        self.gaussian = Gaussian(torch.zeros(SHAPE, dtype=torch.float64), data)
        self.c, self.scale, self.normalised = c, scale, normalised

    def differentiable_energy(self, rho, cov):
        energy = self.gaussian.energy(cov.basis.inverse(rho), cov)
        if not self.normalised:
            energy = energy - 0.5 * (2 * math.pi * (self.c + cov.values)).log().flatten(1).sum(1)
        return self.scale * energy

    def differentiable_gradients(self, rho, cov):
        zero = torch.zeros_like(rho)
        return TrainingGradients(self.differentiable_energy(rho, cov), zero, zero)


def white_data(n: int, c: float = 0.3, seed: int = 0):
    """Images of variance c in every pixel, covariances with their twins, and noise."""
    g = seeded(seed)
    statistics = DataStatistics(*SHAPE)
    x = c**0.5 * torch.randn(n, *SHAPE, generator=g, dtype=torch.float64)
    batch = draw_covariances((n, *SHAPE), statistics, NoiseConfig(lambda_min=1e-3, lambda_max=30.0), g, twins=True)
    return x, batch.cov.to(torch.float64), torch.randn(x.shape, generator=g, dtype=torch.float64), batch.twin.to(torch.float64)


def contrast_of(model, x, cov, noise, twin) -> torch.Tensor:
    """The term alone."""
    with_it, without = (dual_score_loss(model, x, cov, noise, 0.0, LossConfig.plain(contrast=w), twin=twin).total for w in (1.0, 0.0))
    return with_it - without


def differences(model, x, cov, noise, twin) -> torch.Tensor:
    """U(y, Σ) − U(y, Σ′), (B,)."""
    rho = model.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise
    return model.differentiable_energy(rho, cov) - model.differentiable_energy(rho, twin)


def network() -> EnergyNetwork:
    """A small one with every weight in use."""
    torch.manual_seed(0)
    config = NetworkConfig(channels=(4, 8), blocks=(1, 1), stem=1, embedding=4, rounds=1)
    model = EnergyNetwork(config, DataStatistics.fit(torch.rand(32, *SHAPE))).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


# --- twins ---


def test_moved_numbers_keep_their_law_and_are_exchangeable():
    """100,000 pairs: E[u²v − uv²] = 0 and moments of the law, 5 standard errors each (false alarms 1e-5 in all)."""
    n, g = 100_000, seeded(0)
    step = torch.full((n,), 0.3)
    for draw, moments in (("uniform", (1 / 2, 1 / 3)), ("stratified", (1 / 2, 1 / 3)), ("normal", (0.0, 1.0))):
        source = Variates(g, keep=True)
        u = getattr(source, draw)((n, 1)).double()
        v = getattr(source.moved(step, g), draw)((n, 1)).double()
        for power, moment in enumerate(moments, 1):
            assert abs((v**power).mean() - moment) < 5 * (v**power).std() / n**0.5
        odd = u * u * v - u * v * v
        assert abs(odd.mean()) < 5 * odd.std() / n**0.5
        assert (u - v).abs().max() > 0.25
        if draw != "normal":
            assert (u - v).abs().max() <= 0.3 + 1e-6 and v.min() >= 0 and v.max() < 1


def test_a_shift_to_one_side_would_be_found():
    """What the test above must be able to see: numbers moved upwards only."""
    n = 100_000
    u = torch.rand(n, generator=seeded(0), dtype=torch.float64)
    v = (u + 0.3 * torch.rand(n, generator=seeded(1), dtype=torch.float64)) % 1
    odd = u * u * v - u * v * v
    assert abs(odd.mean()) > 5 * odd.std() / n**0.5


def test_numbers_that_were_not_kept_cannot_be_moved():
    with pytest.raises(ValueError, match="moved: wanted a source that keeps its numbers"):
        Variates(seeded(0)).moved(torch.ones(1), seeded(0))


@pytest.mark.parametrize("family", [f.name for f in NOISE_FAMILIES])
def test_a_covariance_and_its_twin_are_exchangeable(family):
    """Antisymmetric functions of mean and spread of log λ average to 0 over 4000 pairs: 5 standard errors."""
    n = 4000
    batch = draw_covariances((n, *SHAPE), DataStatistics(*SHAPE), NoiseConfig(only=(family,)), seeded(0), twins=True)
    assert batch.twin.basis is batch.cov.basis
    a, b = (cov.values.double().log().flatten(1) for cov in (batch.cov, batch.twin))
    for f in (lambda z: z.mean(1) / 10 + 0.5, lambda z: z.std(1, correction=0) / 10):
        p, q = f(a), f(b)
        odd = p * p * q - p * q * q
        assert abs(odd.mean()) <= 5 * odd.std() / n**0.5
    moved = (a - b).abs().mean(1)
    assert moved.max() > 1 and moved.min() < 0.05  # far ones and near ones


def test_twins_change_nothing_else_that_is_drawn():
    one, other = seeded(3), seeded(3)
    a = draw_covariances((16, *SHAPE), DataStatistics(*SHAPE), NoiseConfig(), one)
    b = draw_covariances((16, *SHAPE), DataStatistics(*SHAPE), NoiseConfig(), other, twins=True)
    assert a.twin is None and torch.equal(a.cov.values, b.cov.values) and torch.equal(a.family, b.family)
    assert torch.equal(torch.randn(5, generator=one), torch.randn(5, generator=other))
    again = draw_covariances((16, *SHAPE), DataStatistics(*SHAPE), NoiseConfig(), seeded(3), twins=True)
    assert torch.equal(b.twin.values, again.twin.values) and not torch.equal(b.twin.values, b.cov.values)


# --- the loss ---


def identity(difference: torch.Tensor) -> tuple[float, float]:
    """Mean and standard error of t + t², t = tanh(½(U − U′)): its mean is 0 for exchangeable pairs and an exact energy."""
    t = torch.tanh(0.5 * difference)
    z = t + t * t
    return float(z.mean()), float(z.std()) / len(z) ** 0.5


def test_the_exact_energy_tells_twins_apart_as_often_as_it_says():
    """A wrong sign, a factor 2 and a missing normaliser are each seen; 8000 pairs of all families, 4 standard errors."""
    data = white_data(8000)
    mean, error = identity(differences(Exact(), *data))
    assert abs(mean) < 4 * error
    for wrong in (Exact(scale=-1.0), Exact(scale=2.0), Exact(scale=0.5), Exact(normalised=False)):
        mean, error = identity(differences(wrong, *data))
        assert abs(mean) > 4 * error


def test_the_exact_energy_has_the_smallest_contrast():
    data = white_data(8000)
    least = contrast_of(Exact(), *data)
    for wrong in (Exact(c=0.25), Exact(c=0.36), Exact(scale=1.3), Exact(scale=0.7), Exact(normalised=False), Exact(scale=-1.0)):
        assert contrast_of(wrong, *data) > least + 1e-3


@pytest.mark.parametrize("believed", [0.3, 0.45])
def test_of_near_twins_it_is_the_squared_residual(believed):
    """For Σ′ = e^δ Σ it is log 2 + δ² (E[g²] − 2 E[g g*])/8 + O(δ³), g = Σ_k ∂U/∂ℓ_k and g* that of the exact energy.

    Of white Gaussian data of variance c, where the energy is one of variance c′: with t = c + λ, t′ = c′ + λ, q = t/t′ and d pixels
    E[g²] = (λ/t′)² (2dq² + d²(1 − q)²)/4 and E[g g*] = λ²/(t t′) dq/2. 60,000 images, 4 standard errors.
    """
    n, c, variance, move = 60_000, 0.3, 0.5, 0.1
    g = seeded(0)
    x = c**0.5 * torch.randn(n, *SHAPE, generator=g, dtype=torch.float64)
    cov = Covariance.white(variance, x.shape, like=x)
    sign = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, -1.0, 1.0)
    noise = torch.randn(x.shape, generator=g, dtype=torch.float64)
    mean = contrast_of(Exact(believed), x, cov, noise, cov.replace(cov.values * (move * sign).exp()))
    t, other, d = c + variance, believed + variance, 64
    q = t / other
    square = (variance / other) ** 2 * (2 * d * q**2 + d**2 * (1 - q) ** 2) / 4
    product = variance**2 / (t * other) * d * q / 2
    assert float(mean - math.log(2)) == pytest.approx(move**2 * (square - 2 * product) / 8, abs=0.0032)
    assert min(square, product) * move**2 / 8 > 2 * 0.0032  # either coefficient off by one would show


def test_far_mistakes_grow_as_their_logarithm():
    x, cov, noise, twin = (part[:1] for part in white_data(2))
    for mistake, want in ((-50.0, 0.0), (4.0, math.log1p(math.exp(4.0))), (10.0 * math.e, 20.0), (10.0 * math.e**2, 30.0)):

        class Told(Exact):
            def differentiable_energy(self, rho, at, cov=cov, mistake=mistake):
                return torch.full((1,), mistake if at is cov else 0.0, dtype=torch.float64)

        assert float(contrast_of(Told(), x, cov, noise, twin)) == pytest.approx(want, abs=1e-4)


def test_contrast_wants_twins():
    x, cov, noise, _ = white_data(2)
    with pytest.raises(ValueError, match="contrast: wanted a twin of every covariance, got none"):
        dual_score_loss(Exact(), x, cov, noise, config=LossConfig.plain(contrast=0.1))


def test_its_gradient_equals_finite_differences():
    model, data = network(), white_data(16)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def value() -> torch.Tensor:
        x, cov, noise, twin = data
        return dual_score_loss(model, x, cov, noise, 0.0, LossConfig.plain(contrast=1.0), twin=twin).total

    gradients = torch.autograd.grad(value(), parameters)
    slope = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))
    ends = []
    for side in (1e-6, -2e-6):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p.add_(side * v)
        ends.append(float(value().detach()))
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)


# --- training ---


def loss(model, x, cov, noise, weight, twin=None):
    return dual_score_loss(model, x, cov, noise, weight, LossConfig.plain(balance=1.0, contrast=0.1), twin=twin)


def test_a_recorded_step_takes_twins():
    model = network()
    module = LossModule(model.train(), loss, 1.0)
    step = CompiledStep(module, lambda graph, inputs: graph)
    basis = white_data(6)[1].basis
    for seed in (1, 2, 3):
        x, cov, noise, twin = white_data(6, seed=seed)
        cov, twin = Covariance(cov.values, basis, check=False), Covariance(twin.values, basis, check=False)
        got = step(x, cov, noise, twin)
        gradient = model.unet.leave.weight.grad.clone()
        module.zero_grad(set_to_none=True)
        want = module(x, cov, noise, twin)
        want[0].backward()
        torch.testing.assert_close(got[0], want[0].detach())
        torch.testing.assert_close(gradient, model.unet.leave.weight.grad)
        assert float(got[0]) != float(step(x, cov, noise, cov)[0])


def test_training_draws_twins_if_contrast_has_a_weight(tmp_path, monkeypatch):
    """The same batches with and without; held-out evaluation takes them too."""
    monkeypatch.setattr("anem.train.parts.load_dataset", lambda config: Images(64))
    trained = {}
    for contrast in (0.0, 0.5):
        config = TrainConfig(
            output=str(tmp_path / str(contrast)),
            images=16,
            batch_size=8,
            loss=LossConfig(contrast=contrast),
            statistics_images=64,
            device="cpu",
            model=ModelConfig("tiny", {"channels": [4, 8], "embedding": 4, "rounds": 1}),
            held_out=DataConfig(),
            evaluation=EvaluationConfig(steps=1, images=4, batch_size=4),
            checkpoint=CheckpointConfig(minutes=0),
            log=LogConfig(steps=1, progress=False, tensorboard=False),
        )
        parts = build_parts(config)
        assert (parts.draw((2, 1, 4, 4), DataStatistics(1, 4, 4), seeded(0)).twin is None) == (contrast == 0)
        trained[contrast] = train(config, parts=parts, callbacks=[])
    a, b = (trained[contrast].state_dict() for contrast in (0.0, 0.5))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="contrast: wanted a finite number >= 0, got -1"):
        LossConfig(contrast=-1.0)
