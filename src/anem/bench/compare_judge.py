"""By what a comparison judges restorations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.compare_problem import Problem
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.metrics import DISTS, LPIPS, DigitClassifier, Inception, Statistic, consistency, kernel_statistic, kernel_within, psnr, ssim
from anem.random import generators_for

__all__ = ["NOISE", "Judge"]


NOISE = 20_000_000
"""Added to the seeds of a problem: those of the noise under which energies are compared."""


class Judge:
    """All measures of quality, each a number an image; what needs absent weights is left out."""

    def __init__(self, data: Path, model: EnergyModel, reference: Tensor) -> None:
        self.model = model
        self.features: Callable[[Tensor], Tensor] | None = None
        self.distances: dict[str, LPIPS | DISTS] = {}
        self.missing: list[str] = []
        try:
            self.features = DigitClassifier.load().features if reference.shape[1:] == (1, 28, 28) else Inception(data)
            self.reference = torch.cat([self.features(part) for part in reference.split(500)])
            self.within = kernel_within(self.reference)
        except ValueError as error:
            self.missing.append(f"KID: {error}")
        for name, kind in (("LPIPS", LPIPS), ("DISTS", DISTS)):
            try:
                self.distances[name] = kind(data)
            except ValueError as error:
                self.missing.append(f"{name}: {error}")

    @torch.no_grad()
    def scores(self, x: Tensor, problem: Problem) -> dict[str, Tensor]:
        """By name, (B,) each, of restorations (B, C, H, W)."""
        shown = x.clamp(0, 1)
        out = {"PSNR": psnr(shown, problem.x), "SSIM": ssim(shown, problem.x)}
        out |= {name: distance(shown, problem.x) for name, distance in self.distances.items()}
        out["distance to m (σ)"] = consistency(x, problem.measurement, problem.operator, problem.task.sigma)
        cov = Covariance.white(1e-4, x.shape, like=x)
        noise = cov.sample(generators_for([seed + NOISE for seed in problem.seeds]))  # not that of the measurement
        energies = [-self.model.log_prob(z + noise, cov) for z in (shown, problem.x)]
        out["energy above the truth's (nats/dim)"] = (energies[0] - energies[1]) / x[0].numel()
        return out

    @torch.no_grad()
    def kernel(self, x: Tensor) -> Statistic | None:
        """KID to the reference as a statistic of image weights, in the features of the digit classifier or, for other images, Inception."""
        return None if self.features is None else kernel_statistic(self.features(x.clamp(0, 1)), self.reference, self.within)
