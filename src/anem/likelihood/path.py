"""Paths of covariances up to the anchor: white noise of variance λ_max, where p(y) is close to N(μ, c + λ_max), exactly normalised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.statistics import DataStatistics

__all__ = ["anchor", "anchor_log_prob", "geometric_path"]


def anchor(statistics: DataStatistics, cov: Covariance) -> Covariance:
    """White noise of variance λ_max in the basis of ``cov``, which must not exceed it."""
    if not bool((cov.values <= statistics.lambda_max * (1 + 1e-6)).all()):
        raise ValueError(f"cov: wanted variances up to λ_max = {statistics.lambda_max:.4g}, got {float(cov.values.max()):.4g}")
    return cov.replace(torch.maximum(torch.full_like(cov.values, statistics.lambda_max), cov.values))


def anchor_log_prob(statistics: DataStatistics, z: Tensor, cov: Covariance) -> Tensor:
    """log N(z; Bμ, c + λ) of coordinates z, (B,)."""
    return -statistics.gaussian_energy(z - cov.basis.forward(statistics.mean_image(z).expand_as(z)), cov)


def geometric_path(waypoints: Sequence[Covariance], steps: int) -> tuple[list[Covariance], list[int]]:
    """Σ at steps + 1 levels, straight in log λ between ``waypoints``, and the level of every waypoint.

    Steps are shared out by the mean change of log λ. The waypoints have one basis and shape.

    Raises:
        ValueError: fewer steps than pieces.
    """
    pieces = len(waypoints) - 1
    if not 1 <= pieces <= steps:
        raise ValueError(f"steps: wanted at least one for each of {pieces} pieces (at least 1), got {steps}")
    lengths = [float((a.values / b.values).log().abs().mean()) for a, b in pairwise(waypoints)]
    total, at = sum(lengths) or 1.0, [0]
    for i in range(1, pieces):
        wanted = round(steps * sum(lengths[:i]) / total)
        at.append(min(max(wanted, at[-1] + 1), steps - pieces + i))
    at.append(steps)
    levels = [waypoints[0]]
    for (a, b), (start, stop) in zip(pairwise(waypoints), pairwise(at), strict=True):
        ratio, n = b.values / a.values, stop - start
        levels += [a.replace(a.values * ratio ** (j / n)) for j in range(1, n)] + [b]
    return levels, at
