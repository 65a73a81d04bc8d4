"""A small world to train in: Gaussian images, white noise in two families, an energy with a few parameters, an exact loss."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.random import uniform
from anem.statistics import DataStatistics
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, OptimiserConfig, TrainConfig
from anem.train.parts import Parts

FAMILIES = ("low", "high")


class LearnedGaussian(EnergyModel):
    """White Gaussian data with a learned mean and log variance; dropout on the mean makes training steps random."""

    def __init__(self, statistics: DataStatistics, dropout: float = 0.0) -> None:
        super().__init__()
        self.statistics = statistics
        self.mean = nn.Parameter(torch.randn(statistics.mean.shape) * 0.1)
        self.log_variance = nn.Parameter(torch.zeros_like(statistics.mean))
        self.dropout = nn.Dropout(dropout)

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        mean = self.dropout(self.mean)[:, None, None].to(y)
        t = self.log_variance.exp()[:, None, None].to(y) + cov.values
        rho = cov.basis.forward(y - mean)
        return 0.5 * (rho.square() / t + (2 * math.pi * t).log()).flatten(1).sum(1)


class Occasional(LearnedGaussian):
    """A parameter that only some pieces of a batch use: those whose first image has little noise."""

    def __init__(self, statistics: DataStatistics) -> None:
        super().__init__(statistics, dropout=0.5)
        self.tilt = nn.Parameter(torch.ones(()))

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        energy = super().energy(y, cov)
        return energy + self.tilt * y.square().flatten(1).sum(1) if cov.values[0, 0, 0, 0] < 1e-2 else energy


class Images:
    """N white Gaussian images of mean 0.5 and standard deviation ``std``, with a little dequantisation noise."""

    def __init__(self, count: int, std: float = 0.2, seed: int = 0) -> None:
        self.images = 0.5 + std * torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.images)

    def indices(self, first: int, count: int, seed: int) -> Tensor:
        return torch.randint(len(self), (count,), generator=torch.Generator().manual_seed(1000 * seed + first // count))

    def batch(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        x = self.images[indices]
        return x + uniform(x.shape, generator, x) / 256


def draw(shape: tuple[int, ...], statistics: DataStatistics, generator: torch.Generator) -> SimpleNamespace:
    """White noise of variance 1e-4…1e-2 (family low) or 1e-2…1 (family high)."""
    like = statistics.mean
    family = (uniform(shape[:1], generator, like) < 0.5).long()
    variance = 10 ** (2 * uniform(shape[:1], generator, like) - 4 + 2 * family)
    return SimpleNamespace(cov=Covariance.white(variance, shape), family=family, twin=None)


def loss(model: EnergyModel, x: Tensor, cov: Covariance, noise: Tensor, weight: float) -> SimpleNamespace:
    """Both losses of design §3, for training (double backward) and evaluation."""
    leaf = (x + cov.color(noise)).requires_grad_()
    logvar = cov.values.log().requires_grad_()
    energy = model.energy(leaf, cov.replace(logvar.exp()))
    grad_y, grad_logvar = torch.autograd.grad(energy.sum(), (leaf, logvar), create_graph=True)
    score = cov.basis.forward(grad_y) * cov.values.sqrt() - noise
    change = grad_logvar - 0.5 * (1 - noise.square())
    a_dsm, a_csm = score.square().flatten(1).mean(1), change.square().flatten(1).mean(1)
    return SimpleNamespace(total=(a_dsm + weight * a_csm).mean(), a_dsm=a_dsm, a_csm=a_csm, energy=energy.detach())


def make_parts(dropout: float = 0.5, loss=loss, count: int = 64, held_out: int = 32, model=None) -> Parts:
    return Parts(
        model=model or (lambda statistics: LearnedGaussian(statistics, dropout)),
        data=Images(count),
        held_out=Images(held_out, seed=1) if held_out else None,
        draw=draw,
        families=FAMILIES,
        loss=loss,
    )


def make_config(output: Path, images: int = 48, **changes) -> TrainConfig:
    """Steps of 8 images on the CPU, everything quiet; ``changes`` replace fields of :class:`TrainConfig`."""
    fields = {
        "output": str(output),
        "images": images,
        "batch_size": 8,
        "accumulation": 2,
        "device": "cpu",
        "optimiser": OptimiserConfig(learning_rate=0.05, warmup_images=16, decay_start=24),
        "ema": EMAConfig(half_life=16),
        "evaluation": EvaluationConfig(steps=2, images=32, batch_size=10),
        "checkpoint": CheckpointConfig(steps=1, minutes=0, keep=3),
        "log": LogConfig(steps=1, progress=False, tensorboard=False),
    }
    return TrainConfig(**fields | changes)


__all__ = ["FAMILIES", "Images", "LearnedGaussian", "Occasional", "draw", "loss", "make_config", "make_parts"]
