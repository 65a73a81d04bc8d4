"""The evidence log p(m) of a measurement, averaged over draws of what it does not tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.images import to_tensor
from anem.likelihood.chunks import energies
from anem.operators import LinearOperator, Observation
from anem.random import generator_of, seeds_for

__all__ = ["average_evidence", "draw_observations", "log_evidence"]


@torch.no_grad()
def log_evidence(
    model: EnergyModel,
    measurement: Any,
    operator: LinearOperator,
    sigma: float | Tensor,
    *,
    draws: int = 4,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """log p(m given H, σ) of every measurement m = H x + σ v, in nats, (B,), float64: comparable between degradations of one measurement.

    >>> import anem
    >>> model = anem.load("digits")  # doctest: +SKIP
    >>> log_evidence(model, picture, anem.GaussianBlur(8, 0.8), 0.05)  # doctest: +SKIP

    Where something was not observed it is log mean_k exp(−U(y_k, Σ) + terms_k) over draws y_k of that (see :mod:`anem.operators.base`),
    whose random numbers depend on the measurement's seed alone. Of one measurement, P settings of the operator or of σ give P values.

    Arguments:
        measurement: m, as of :func:`anem.sample_posterior`.
        operator: H. sigma: standard deviation of the noise in m, as there.
        draws: K. Where everything was observed there is one y, whatever K.
        seed: of measurement b, seed + b, or one a measurement.

    Raises:
        ValueError: draws < 1, seeds that do not fit, or what :meth:`~anem.LinearOperator.observe` refuses.
    """
    statistics = model.statistics
    m = to_tensor(measurement, len(statistics.mean), bounded=False)[0].to(statistics.mean.device).double()
    own = seeds_for(seed, len(m))

    def observe(k: int) -> Observation:
        return operator.observe(m, sigma, statistics, [generator_of(s, "unobserved", k, device=m.device) for s in own])

    return average_evidence(partial(energies, model), draw_observations(observe, draws))


def draw_observations(observe: Callable[[int], Observation], draws: int) -> list[Observation]:
    """``observe(k)`` for the draws k = 0 … K − 1 of what was not observed, or the first alone if everything was.

    Raises:
        ValueError: draws < 1.
    """
    if draws < 1:
        raise ValueError(f"draws: wanted at least 1, got {draws}")
    first = observe(0)
    return [first, *(observe(k) for k in range(1, draws) if not bool(first.observed.all()))]


def average_evidence(energy: Callable[[Tensor, Covariance], Tensor], seen: Sequence[Observation]) -> Tensor:
    """log mean_k p(m given what was drawn), in nats, (B,), with ``energy(y, cov)`` such as ``model.energy``; the graph is kept."""
    cov = seen[0].cov.replace(torch.cat([s.cov.values for s in seen]))
    u = energy(torch.cat([s.y for s in seen]), cov)  # in one batch: single images cost a multiple each
    values = torch.stack([s.log_evidence_terms for s in seen]) - u.unflatten(0, (len(seen), -1))
    return values.logsumexp(0) - math.log(len(seen))
