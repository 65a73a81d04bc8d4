"""log Z(Σ) = log ∫ e^{−U(y, Σ)} dy, wanted 0, by weighted paths from the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation
from anem.likelihood.chunks import chunks
from anem.likelihood.path import anchor, anchor_log_prob, geometric_path
from anem.random import normal, uniform
from anem.sample.kernels import Ancestral, Bridge, Kernel, as_kernel
from anem.sample.schedules import check_step

__all__ = ["Partition", "log_partition"]


@dataclass(frozen=True, eq=False)
class Partition:
    """log Z at each of W covariances, all (W,), float64.

    Arguments:
        log_z: log ∫ e^{−U(y, Σ)} dy in nats.
        standard_error: of ``log_z``, in nats, by the jackknife over populations; NaN for a single one. While the weights vary little it is
            the delta method's; where one population dominates (``effective`` near 1), it is about what leaving that one out would change.
        effective: effective number of populations, (Σ Ẑ)²/Σ Ẑ².
        log_weights: log Ẑ of every population, (W, P).
    """

    log_z: Tensor
    standard_error: Tensor
    effective: Tensor
    log_weights: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> Partition:
        """From the log Ẑ of P independent populations, (W, P): Ẑ has the mean Z, so Z is estimated by the average."""
        count = log_weights.shape[1]
        log_z = log_weights.logsumexp(1) - math.log(count)
        error = torch.full_like(log_z, math.nan)
        if count > 1:
            alone = torch.eye(count, dtype=torch.bool, device=log_weights.device)
            left_out = log_weights[:, None].masked_fill(alone, -math.inf).logsumexp(2) - math.log(count - 1)
            error = (count - 1) ** 0.5 * left_out.std(1, correction=0)
        return cls(log_z, error, _effective(log_weights), log_weights)


@torch.no_grad()
def log_partition(
    model: EnergyModel,
    targets: Sequence[Covariance],
    *,
    steps: int = 200,
    chains: int = 64,
    population: int = 1,
    kernel: Kernel | str = "bridge",
    generator: torch.Generator | None = None,
) -> Partition:
    """log Z(Σ) at every target, by importance weights along paths that start at the anchor.

    log w = −U(x_0, Σ_0) + Σ log N(x_t; x_s, Σ_t − Σ_s) − log p_T(x_T) − Σ log r(x_s given x_t), r the kernel and p_T the exactly
    normalised N(μ, c + λ_max): E[w] = Z for any energy, kernel and number of steps; a closer kernel and more steps make w vary less.
    At every level the same path gives the weight for that level, so that a decreasing row of targets costs no more than its last one.

    Arguments:
        targets: Σ (1, C, H, W), each nowhere above the one before, in one basis; the path goes straight in log λ from one to the next.
        steps: of the whole path. Network calls: chains · (steps + 1).
        chains: number of paths.
        population: chains in a population, a divisor of ``chains``. In a population of more than one, chains are resampled by their
            weights (systematically) when their effective number falls below half: Ẑ keeps the mean Z and varies far less on long paths.
        kernel: "ancestral", or "bridge", which has the variance that "ancestral" lacks and whose weights vary far less for it.
        generator: source of all random numbers.

    Source: Neal 2001 for annealed weights, Del Moral et al. 2006 for populations; with denoising kernels as proposals.
    """
    kernel = as_kernel(kernel)
    if not isinstance(kernel, Ancestral | Bridge):
        raise ValueError(f"kernel: wanted 'ancestral' or 'bridge', got {kernel.name!r}")
    if population < 1 or chains < 1 or chains % population:
        raise ValueError(f"population: wanted a divisor of chains >= 1, got {population} and {chains}")
    if not targets or any(len(t.values) != 1 for t in targets):
        raise ValueError(f"targets: wanted at least one Σ (1, C, H, W), got shapes {[tuple(t.shape) for t in targets]}")
    targets = [t.replace(t.values.double()) for t in targets]
    levels, at = geometric_path([anchor(model.statistics, targets[0]), *targets], steps)
    for now, then in pairwise(levels):
        check_step(now, then)
    groups = [piece.stop - piece.start for piece in chunks(chains, targets[0].shape[1:], population)]
    weights = [_population_weights(model, levels, kernel, n, population, generator)[at[1:]] for n in groups]
    return Partition.of(torch.cat(weights, 1))


def _population_weights(
    model: EnergyModel,
    levels: Sequence[Covariance],
    kernel: Ancestral | Bridge,
    chains: int,
    population: int,
    generator: torch.Generator | None,
) -> Tensor:
    """log Ẑ at every level, (levels, P)."""
    cov = levels[0].expand(chains)
    spread = cov.values + model.statistics.variance_of(cov)
    y = model.statistics.mean_image(cov.values) + cov.replace(spread).sample(generator)
    now = model(y, cov)
    log_w = (-now.energy - anchor_log_prob(model.statistics, cov.basis.forward(y), cov)).reshape(-1, population)
    settled = torch.zeros_like(log_w[:, 0])  # log Ẑ up to the last resampling
    rows = [log_w.logsumexp(1) - math.log(population)]
    for level in levels[1:]:
        tired = _effective(log_w) < population / 2
        if bool(tired.any()):
            now = _chosen(now, _systematic(log_w, tired, generator))
            settled = torch.where(tired, rows[-1], settled)
            log_w = torch.where(tired[:, None], 0.0, log_w)
        step, now = _weighted_step(model, now, level.expand(chains), kernel, generator)
        log_w = log_w + step.reshape(-1, population)
        rows.append(settled + log_w.logsumexp(1) - math.log(population))
    return torch.stack(rows)


def _effective(log_w: Tensor) -> Tensor:
    """Effective number (Σ w)²/Σ w² of the weights in each row, (R, N) to (R,)."""
    return (2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)).exp()


def _weighted_step(
    model: EnergyModel, now: Evaluation, target: Covariance, kernel: Ancestral | Bridge, generator: torch.Generator | None
) -> tuple[Tensor, Evaluation]:
    """Draw x_s ~ r(x_s given x_t); U_t − U_s + log N(x_t; x_s, Σ_t − Σ_s) − log r(x_s given x_t), (B,), and the model at x_s.

    Coordinates whose variance stays do not move and do not count.
    """
    basis, before, after = now.cov.basis, now.cov.values, target.values
    delta = before - after
    moving = delta > 0
    drift = delta * basis.forward(now.grad_y)
    variance = delta * (after + delta * kernel.relative_variance(now)) / before
    noise = normal(drift.shape, generator, drift)
    moved = variance.sqrt() * noise - drift
    safe = torch.where(moving, delta, 1.0)
    ratio = torch.where(moving, variance / safe, 1.0)
    terms = 0.5 * torch.where(moving, noise.square() - moved.square() / safe + ratio.log(), 0.0)
    then = model(basis.inverse(basis.forward(now.y) + moved), target)
    return now.energy - then.energy + terms.flatten(1).sum(1), then


def _systematic(log_w: Tensor, which: Tensor, generator: torch.Generator | None) -> Tensor:
    """Indices (P·S,) that resample the populations ``which`` (P,) by their weights (P, S) and leave the others, one uniform number each."""
    count, size = log_w.shape
    edges = log_w.softmax(1).cumsum(1)
    points = (torch.arange(size, dtype=log_w.dtype, device=log_w.device) + uniform((count, 1), generator, log_w)) / size
    chosen = torch.searchsorted(edges, points).clamp_max(size - 1)
    kept = torch.arange(size, device=log_w.device).expand(count, -1)
    offsets = size * torch.arange(count, device=log_w.device)[:, None]
    return (torch.where(which[:, None], chosen, kept) + offsets).flatten()


def _chosen(now: Evaluation, index: Tensor) -> Evaluation:
    """The evaluation of chains ``index``, all at the same Σ."""
    ratio = None if now.variance_ratio is None else now.variance_ratio[index]
    parts = {name: getattr(now, name)[index] for name in ("y", "energy", "grad_y", "grad_logvar")}
    return replace(now, variance_ratio=ratio, **parts)
