"""Independent pixels with the data's own distribution of values, seen through any noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anem.bases import Pixel
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.propagation import propagate
from anem.statistics import DataStatistics

__all__ = ["IndependentPixels"]


class IndependentPixels(EnergyModel):
    """U(y, Σ) of pixels that are independent draws from the scalar mixture of the statistics; nothing is trained.

    Exact where Σ is diagonal in pixels or white; elsewhere by expectation propagation, see :mod:`anem.propagation`.

    Arguments:
        statistics: of the data. rounds: of the propagation. share: of the new site in its replacement, in (0, 1].
    """

    def __init__(self, statistics: DataStatistics, rounds: int = 3, share: float = 0.35) -> None:
        super().__init__()
        if rounds < 0 or not 0 < share <= 1:
            raise ValueError(f"independent pixels: wanted rounds >= 0 and 0 < share <= 1, got {rounds} and {share}")
        self.statistics, self.rounds, self.share = statistics, rounds, share

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), differentiable in y and cov.values."""
        rho = self.statistics.residual(y, cov.basis)
        level = self.statistics.variance.to(rho)[None, :, None, None].expand_as(cov.values)
        share = torch.full_like(rho[:, :1, :1, :1], self.share)
        rounds = 0 if cov.basis == Pixel() else self.rounds  # in pixels cavities do not depend on the sites
        found = propagate(rho, cov.values, level, cov.basis, self.statistics, rounds, share)
        t = level + cov.values
        return 0.5 * (rho.square() / t + torch.log(2 * math.pi * t)).flatten(1).sum(1) + found.energies[-1]
