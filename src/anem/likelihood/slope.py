"""How E[U] grows with the noise, against the denoising error (I-MMSE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.likelihood.chunks import chunks, rows_of
from anem.random import Generators

__all__ = ["Slope", "immse_slope"]


@dataclass(frozen=True, eq=False)
class Slope:
    """dU/d log σ² of every image along y = x + σz, and ½(1 − |x − D|²/dσ²), averaged over draws, both (B,), nats/dim.

    Their means over images agree for the energy of a noisy density (the I-MMSE identity; Guo, Shamai, Verdú 2005). They check how U
    changes with σ, not its constant.
    """

    measured: Tensor
    predicted: Tensor


@torch.no_grad()
def immse_slope(model: EnergyModel, images: Tensor, variance: float, generators: Generators = None, draws: int = 1) -> Slope:
    """Both sides of dE[U]/d log σ² = ½ (1 − mmse/σ²) per dimension, for white noise, from the same calls.

    The left one is Σ_k ∂U/∂ℓ_k + ½ σ zᵀ∇U, the derivative of U(x + σz, σ²I) with z fixed.

    Arguments:
        images: x, (B, C, H, W), in [0, 1], dequantised as in training.
        variance: σ².
        generators: source of z, one an image or one for all.
        draws: of z for each image.
    """
    x = images.double()
    sums = torch.zeros(2, len(x), dtype=torch.float64, device=x.device)
    for rows in chunks(len(x), x.shape[1:]):
        own = rows_of(generators, rows)
        cov = Covariance.white(variance, x[rows].shape, like=x)
        for _ in range(draws):
            noise = cov.sample(own)
            at = model(x[rows] + noise, cov)
            measured = (at.grad_logvar + 0.5 * noise * at.grad_y).flatten(1).mean(1)
            error = (x[rows] - at.denoised).square().flatten(1).mean(1)
            sums[:, rows] += torch.stack([measured, 0.5 * (1 - error / variance)]) / draws
    return Slope(sums[0], sums[1])
