"""The constant of an energy that training leaves open."""

from __future__ import annotations

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.network import EnergyNetwork

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate(model: EnergyNetwork, images: Tensor, variance: float, generator: torch.Generator | None = None) -> float:
    """Shift ``model.offset`` so that E[U(y, σ²I)] = ½ Σ_k log 2πe(c_k + σ²), the entropy of Gaussian data, at a variance σ² ≫ c.

    Needed for the form "inner", which fixes U up to one number only; the form "anchored" is normalised there by construction. As σ² grows
    the target becomes the paper's ½ log det 2πeΣ. U is compared with the Gaussian energy of the same y, whose mean is the target: the
    difference varies far less than U.

    Arguments:
        images: x, (N, C, H, W), in [0, 1]. variance: σ². generator: source of the noise.

    Returns the shift, in nats.
    """
    statistics = model.statistics
    cov = Covariance.white(variance, images.shape, like=images)
    y = images + cov.sample(generator)
    gaussian = statistics.gaussian_energy(statistics.residual(y, cov.basis), cov)
    shift = (gaussian.double() - model.energy(y, cov).double()).mean()
    model.offset += shift
    return float(shift)
