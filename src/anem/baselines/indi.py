"""InDI: small steps from the measurement to the image, each towards what a regression sees in x_t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anem.baselines.conditional import ConditionalNetwork, restore_each
from anem.operators import LinearOperator
from anem.random import Generators, normal

__all__ = ["NOISE", "InDI", "levels", "loss"]

NOISE = 0.01
"""ε: x_t holds noise of standard deviation ε √t, for images in [−1, 1]."""


def levels(batch: int, generator: torch.Generator) -> Tensor:
    """t uniform in (0, 1], (B,)."""
    return 1 - torch.rand(batch, generator=generator)


def predict(model: ConditionalNetwork, seen: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """F(x_t, t), (B, C, H, W): x_t plus what the network corrects."""
    return x + model(seen, x, t.log())


def loss(model: ConditionalNetwork, x: Tensor, seen: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """(F(x_t, t) − x)² of x_t = (1 − t) x + t m̂ + ε √t z in u = 2x − 1, (B, C, H, W)."""
    clean, start = 2 * x - 1, 2 * seen - 1
    mixed = (1 - level) * clean + level * start + NOISE * level.sqrt() * noise
    return (predict(model, start, mixed, level.flatten()) - clean).square()


@dataclass(frozen=True)
class InDI:
    """x_{t−δ} = (δ/t) F(x_t, t) + (1 − δ/t) x_t + (t − δ) √(ε²/(t − δ) − ε²/t) z, from t = 1 to 0.

    Arguments:
        network: trained by :func:`loss` for the task.
        steps: network calls for a sample; δ = 1/steps.
        samples: S.

    References: Inversion by Direct Iteration (Delbracio & Milanfar 2023), arXiv 2303.11435.
    """

    network: ConditionalNetwork
    steps: int = 100
    samples: int = 1

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`. σ is that of the training, whatever is given."""
        if self.steps < 1:
            raise ValueError(f"steps: wanted at least 1, got {self.steps}")
        return restore_each(self.network, self._sample, self.samples, measurement, operator, generators)

    @torch.no_grad()
    def _sample(self, seen: Tensor, generators: Generators) -> Tensor:
        x = seen + NOISE * normal(seen.shape, generators, seen)
        for i in range(self.steps, 0, -1):
            t, then = i / self.steps, (i - 1) / self.steps
            x = x + (1 - then / t) * (predict(self.network, seen, x, x.new_full((len(x),), t)) - x)
            if then > 0:
                x = x + NOISE * then * (1 / then - 1 / t) ** 0.5 * normal(x.shape, generators, x)
        return 0.5 * (x + 1)
