"""Bootstrap intervals over images, paired when two methods restored the same images.

A statistic is a function of image weights, (R, N) to (R,): how often each of N images was drawn, in each of R resamples. A mean of
scores and the kernel distance of a set both have this form, so one bootstrap serves all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Interval", "Statistic", "bootstrap", "kernel_statistic", "kernel_within", "mean_statistic"]

Statistic = Callable[[Tensor], Tensor]
"""Weights of the images (R, N), float64, to values (R,)."""


@dataclass(frozen=True)
class Interval:
    """An estimate with bounds that enclose the true value in a fraction ``level`` of repetitions."""

    value: float
    low: float
    high: float
    level: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is settled."""
        return self.low > 0 or self.high < 0


def bootstrap(
    first: Statistic,
    count: int,
    second: Statistic | None = None,
    *,
    generator: torch.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic over images, or of the difference first − second on the same resamples (paired).

    Arguments:
        first, second: statistics of the same ``count`` images.
        draws: resamples.
        level: rate at which the interval covers the true value.

    Source: Efron and Tibshirani 1993, ch. 13.
    """
    if count < 2:
        raise ValueError(f"count: wanted at least 2 images, got {count}")
    drawn = torch.randint(count, (draws, count), generator=generator)
    weights = torch.zeros(draws + 1, count, dtype=torch.float64)
    weights[0] = 1
    weights[1:].scatter_add_(1, drawn, torch.ones(draws, count, dtype=torch.float64))
    values = first(weights) if second is None else first(weights) - second(weights)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values[1:].quantile(tails).tolist()
    return Interval(float(values[0]), low, high, level)


def mean_statistic(scores: Tensor) -> Statistic:
    """The mean of per-image scores (N,)."""
    if scores.ndim != 1 or not bool(torch.isfinite(scores).all()):
        raise ValueError(f"scores: wanted finite scores (N,), got shape {tuple(scores.shape)}")
    scores = scores.double().cpu()
    return lambda weights: weights @ scores / weights.sum(1)


def kernel_within(reference: Tensor) -> float:
    """Mean kernel of two different rows of a set (M, F): what :func:`kernel_statistic` needs to know of its reference."""
    r = reference.double().cpu()
    total = sum(float(_kernel(part, r).sum()) for part in r.split(1000)) - float(_kernel_diagonal(r).sum())
    return total / (len(r) * (len(r) - 1))


def kernel_statistic(features: Tensor, reference: Tensor, within_reference: float | None = None) -> Statistic:
    """The kernel distance (KID) of a weighted set to a fixed reference set: the unbiased squared MMD, k(a, b) = (a·b/F + 1)³.

    Pairs of an image with itself are left out, resampled copies included. Memory N² + N M.

    Arguments:
        features: (N, F).
        reference: (M, F).
        within_reference: :func:`kernel_within` of it, where that is at hand.

    Source: Bińkowski et al. 2018, arXiv 1801.01401, eq. 4.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1] or min(len(features), len(reference)) < 2:
        raise ValueError(f"features: wanted (N, F) and (M, F) with N, M >= 2, got {tuple(features.shape)} and {tuple(reference.shape)}")
    x, r = features.double().cpu(), reference.double().cpu()
    within = _kernel(x, x).fill_diagonal_(0)
    across = _kernel(x, r).mean(1)
    constant = kernel_within(r) if within_reference is None else within_reference

    def statistic(weights: Tensor) -> Tensor:
        total = weights.sum(1)
        pairs = total.square() - weights.square().sum(1)
        return ((weights @ within) * weights).sum(1) / pairs - 2 * (weights @ across) / total + constant

    return statistic


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1).pow(3)


def _kernel_diagonal(a: Tensor) -> Tensor:
    return (a.square().sum(1) / a.shape[1] + 1).pow(3)
