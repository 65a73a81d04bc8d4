"""The law of what a kernel draws along a path when the prior is Gaussian: a chain is then affine, so two moments are all of it.

Let y = x + n_T be random too. (y, x_t, x_before) is jointly Gaussian, and a step is an affine map of x_t, of the point before (for kernels
that look back) and of the numbers drawn. Its matrices are read off one batch of unit vectors, 1 + 3 d chains, and moments go through them:
no Monte Carlo error, and no error of the averaging over y either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.gaussian import GaussianMixture, basis_matrix
from anem.sample import Kernel, Noise, Schedule

__all__ = ["Law", "drawn_law", "exact_law"]


@dataclass(frozen=True, eq=False)
class Law:
    """x given y ~ N(offset + gain y, covariance), for y ~ N(mean, spread).

    Arguments:
        gain: (d, d). offset: (d,). covariance: (d, d). mean, spread: of y, (d,) and (d, d).
    """

    gain: Tensor
    offset: Tensor
    covariance: Tensor
    mean: Tensor
    spread: Tensor

    def squared_error(self, other: Law) -> float:
        """E‖E[x given y] − other's‖² over y."""
        gain, offset = self.gain - other.gain, self.offset - other.offset
        return float((gain @ self.spread @ gain.T).trace() + (offset + gain @ self.mean).square().sum())

    def wasserstein(self, other: Law) -> float:
        """E W₂² over y, the squared Wasserstein distance to another law given the same y.

        Source: Dowson and Landau 1982: ‖a − b‖² + tr (S + P − 2 (P^{1/2} S P^{1/2})^{1/2}), of which the last is a nuclear norm.
        """
        roots = [_root(law.covariance) for law in (self, other)]
        cross = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
        return self.squared_error(other) + max(0.0, float(self.covariance.trace() + other.covariance.trace() - 2 * cross))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def exact_law(prior: GaussianMixture, cov: Covariance) -> Law:
    """p(x given y) for y = x + n, n ~ N(0, Σ), under a prior of one component; Σ of one image, (1, C, H, W)."""
    noise = _in_image_space(cov)
    c, m = prior.covariances[0], prior.means[0].flatten()
    gain = torch.linalg.solve(c + noise, c).T
    rest = torch.eye(len(m), dtype=m.dtype) - gain
    return Law(gain, rest @ m, rest @ c @ rest.T + gain @ noise @ gain.T, m, c + noise)


def _in_image_space(cov: Covariance) -> Tensor:
    matrix = basis_matrix(cov.basis, cov.shape[1:])[0]
    return matrix.T @ (cov.values.reshape(-1, 1) * matrix)


class _Given(Noise):
    """The numbers a chain draws in a step, given."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = numbers

    def normal(self, like: Tensor) -> Tensor:
        return self.numbers.reshape(like.shape)


def drawn_law(prior: GaussianMixture, cov: Covariance, schedule: Schedule, kernel: Kernel) -> Law:
    """The law of a kernel's denoised draw given y.

    Arguments:
        prior: of one component.
        cov: Σ_T of one image, (1, C, H, W).
        schedule: a path that does not depend on where the chain is: geometric, or guided by the variance, which is the same at every x.
        kernel: with one draw a step.

    Raises:
        ValueError: a prior of several components.
    """
    if len(prior.weights) != 1:
        raise ValueError(f"prior: wanted one component, got {len(prior.weights)}")
    shape, d = cov.shape[1:], math.prod(cov.shape[1:])
    # Rows: the origin, then unit vectors of x_t, of the point before, and of the numbers drawn.
    rows = torch.cat([torch.zeros(1, 3 * d), torch.eye(3 * d)]).double()
    x, earlier, numbers = (part.reshape(-1, *shape) for part in rows.split(d, 1))
    start = prior.covariances[0] + _in_image_space(cov)
    mean, spread = prior.means[0].flatten().repeat(3), start.repeat(3, 3)  # of (y, x_t, before), all y at first
    end, before = schedule.end(cov), None
    for left in range(schedule.steps, 0, -1):
        now = prior(x, cov.expand(len(x)))
        target = schedule.next(now, end.expand(len(x)), left)
        last = None if before is None else prior(earlier, before.expand(len(x)))
        moved = (kernel if left > 1 else kernel.last).step(prior, now, target, _Given(numbers), last)
        origin, matrix = _affine(moved)
        step = torch.zeros(3 * d, 3 * d).double()
        step[:d, :d] = step[2 * d :, d : 2 * d] = torch.eye(d)
        step[d : 2 * d, d:] = matrix[:, : 2 * d]
        mean, spread = step @ mean, step @ spread @ step.T
        mean[d : 2 * d] += origin
        spread[d : 2 * d, d : 2 * d] += matrix[:, 2 * d :] @ matrix[:, 2 * d :].T
        cov, before = target[torch.tensor([0])], cov
    origin, matrix = _affine(prior(x[: d + 1], cov.expand(d + 1)).denoised)
    cross = matrix @ spread[d : 2 * d, :d]
    gain = torch.linalg.solve(start, cross.T).T
    covariance = matrix @ spread[d : 2 * d, d : 2 * d] @ matrix.T - gain @ cross.T
    return Law(gain, origin + matrix @ mean[d : 2 * d] - gain @ mean[:d], 0.5 * (covariance + covariance.T), mean[:d], start)


def _affine(values: Tensor) -> tuple[Tensor, Tensor]:
    """c (d,) and A (d, n) of a map v → c + A v from its values at 0 and at n unit vectors, (1 + n, …)."""
    flat = values.flatten(1)
    return flat[0], (flat[1:] - flat[0]).T
