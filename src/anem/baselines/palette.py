"""Palette: diffusion from noise by a network that sees the measurement, trained for one task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anem.baselines.conditional import ConditionalNetwork, restore_each
from anem.baselines.isotropic import alpha_bars
from anem.operators import Inpainting, LinearOperator
from anem.random import Generators, normal

__all__ = ["Palette", "levels", "loss"]


def levels(batch: int, generator: torch.Generator) -> Tensor:
    """(1 − ᾱ)/ᾱ of steps drawn uniformly from the linear β schedule, (B,)."""
    bars = torch.tensor(alpha_bars(1000)[:-1])
    return ((1 - bars) / bars)[torch.randint(len(bars), (batch,), generator=generator)]


def loss(model: ConditionalNetwork, x: Tensor, seen: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """(ε̂ − ε)², on the missing pixels only where some are missing, (B, C, H, W)."""
    noisy = (2 * x - 1 + level.sqrt() * noise) / (1 + level).sqrt()
    start = 2 * seen - 1
    error = (model(start, pasted(model.operator, start, noisy), level.flatten().log()) - noise).square()
    if isinstance(model.operator, Inpainting):
        missing = (model.operator.mask == 0).to(error)
        error = error * missing / missing.mean()
    return error


def pasted(operator: LinearOperator, seen: Tensor, x: Tensor) -> Tensor:
    """x with the measured pixels as they were seen, where pixels are what is measured: the authors' way to inpaint."""
    return torch.where(operator.mask.to(x.device) != 0, seen, x) if isinstance(operator, Inpainting) else x


@dataclass(frozen=True)
class Palette:
    """Ancestral sampling with x̂₀ clamped to the range of images. Measured pixels, if that is what is measured, are pasted in at every step
    and stay as noisy as they are: the network learns the missing ones only.

    Arguments:
        network: trained by :func:`loss` for the task.
        steps: network calls for a sample, up to 1000.
        samples: S.
        clamp: x̂₀ to the range of images.

    References: Palette: Image-to-Image Diffusion Models (Saharia et al. 2022), arXiv 2111.05826.
    """

    network: ConditionalNetwork
    steps: int = 1000
    samples: int = 1
    clamp: bool = True

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restorer.Restorer`. σ is that of the training, whatever is given."""
        x = restore_each(self.network, self._sample, self.samples, measurement, operator, generators)
        return pasted(operator, operator.pseudo_inverse(measurement), x)

    @torch.no_grad()
    def _sample(self, seen: Tensor, generators: Generators) -> Tensor:
        bars = alpha_bars(self.steps)
        y = bars[0] ** -0.5 * normal(seen.shape, generators, seen)  # y = u + √level ε, with u = 2x − 1
        for now, then in zip(bars[:-1], bars[1:], strict=True):
            before, after = (1 - now) / now, (1 - then) / then
            level = y.new_full((len(y),), before).log()
            clean = y - before**0.5 * self.network(seen, pasted(self.network.operator, seen, now**0.5 * y), level)
            clean = clean.clamp(-1, 1) if self.clamp else clean
            ratio = after / before
            y = clean + ratio * (y - clean)
            if after > 0:
                y = y + (after * (1 - ratio)) ** 0.5 * normal(y.shape, generators, y)
        return 0.5 * (y + 1)
