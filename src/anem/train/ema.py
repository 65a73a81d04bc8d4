"""Exponential and power-function averages of the weights, with lengths counted in images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from anem.train.config import EMAConfig

__all__ = ["EMA", "ema_decay"]


def _power_exponent(width: float) -> float:
    """γ of the profile t^γ whose relative standard deviation is ``width``: width² = (γ+1)/((γ+2)²(γ+3)), by bisection."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wide else (low, middle)
    return low


def ema_decay(config: EMAConfig, images: int, batch: int) -> float:
    """Share β of the old average kept by the update that ends at ``images`` images seen, ``batch`` of them new.

    Half-life: β = 2^{−batch/h}, h = min(half_life, ramp_up · images). Power: β = (1 − batch/images)^{γ+1}.
    Source: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models (2024), section 3 and appendix C.
    """
    if config.profile == "power":
        return (1 - batch / images) ** (_power_exponent(config.relative_width) + 1)
    half_life = min(config.half_life, config.ramp_up * images) if config.ramp_up > 0 else config.half_life
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class EMA:
    """A frozen copy of a model whose parameters follow the model's by ``average += (1 − β)(parameter − average)``.

    Buffers are copied. Use :attr:`model` like any other model; it is in evaluation mode and records no parameter gradients.
    """

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, images: int, batch: int) -> None:
        """Follow ``model`` after a step that brought the images seen to ``images``, ``batch`` of them new."""
        share = 1 - ema_decay(self.config, images, batch)
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in model.parameters()], share)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
