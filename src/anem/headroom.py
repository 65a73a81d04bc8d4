"""How far below its base a learned energy may be.

A network is trained on images with noise. Of other images it knows nothing and may call them probable, by ten nats a dimension: then they
are what its density integrates to. What is right everywhere is the base, the energy without a network (:mod:`anem.network`), which is
normalised in pixels. It differs from the truth by what pixels tell of each other and their places of them, on average the divergence of two
laws, which is the less the more noise there is on both. So what held-out images show under white noise is a bound under any Σ with no
variance below that noise's, and

    max(U, U_base − d · ρ(min_k λ_k), Σ_k ½ log 2πλ_k)

changes nothing where images are like those, and keeps log Z(Σ)/d below ρ(min λ) for every Σ that is diagonal in pixels. The last of the
three is true of any density: p(y given Σ) is a mean of Gaussians of covariance Σ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from anem.bases import Basis, Mixed, Pixel
from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.statistics import DataStatistics

__all__ = ["Headroom", "fit_headroom"]

ROOM, ADDED = 1.25, 0.002
"""ρ over the largest difference that was seen, and nats/dim beside."""

DRAWS = 8
"""Covariances an image that ``elsewhere`` is found on: where the base is bad is rare."""

_PART = 64
"""Images of one call."""


@dataclass(frozen=True)
class Headroom:
    """ρ by the noise, in nats a dimension.

    Arguments:
        log_variances: log λ of white noise, increasing.
        nats: ρ there, not increasing; linear in log λ between, constant beyond.
        elsewhere: factor for what is neither white nor diagonal in pixels, where the base is farther from the truth.

    Raises:
        ValueError: other tables, or numbers that are not finite and positive.
    """

    log_variances: tuple[float, ...]
    nats: tuple[float, ...]
    elsewhere: float = 1.0

    def __post_init__(self) -> None:
        x, y = torch.tensor(self.log_variances), torch.tensor(self.nats)
        if len(x) == 0 or x.shape != y.shape or not bool((x.diff() > 0).all() and (y.diff() <= 0).all()):
            raise ValueError(f"headroom: wanted increasing log variances and nats that do not, got {self.log_variances} and {self.nats}")
        if not (bool(x.isfinite().all() and (y > 0).all()) and 0 < self.elsewhere < math.inf and math.isfinite(self.nats[0])):
            raise ValueError(f"headroom: wanted finite numbers, and above 0, got {self.nats} and {self.elsewhere}")

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Headroom:
        """From what a model's card says."""
        return cls(tuple(card["log_variances"]), tuple(card["nats"]), float(card["elsewhere"]))

    def __call__(self, logvar: Tensor, basis: Basis) -> Tensor:
        """ρ for log λ (B, C, H, W) in basis coordinates, (B,), differentiable in it."""
        rho = self._at(logvar.flatten(1).amin(1))
        return rho if isinstance(basis, Pixel) else torch.where(_elsewhere(logvar, basis), self.elsewhere * rho, rho)

    def _at(self, x: Tensor) -> Tensor:
        nodes, values = x.new_tensor(self.log_variances), x.new_tensor(self.nats)
        if len(nodes) == 1:
            return values.expand_as(x)
        right = torch.searchsorted(nodes, x.detach().contiguous()).clamp(1, len(nodes) - 1)
        low, high = nodes[right - 1], nodes[right]
        return torch.lerp(values[right - 1], values[right], ((x - low) / (high - low)).clamp(0, 1))


def _elsewhere(logvar: Tensor, basis: Basis) -> Tensor:
    """Whether Σ is neither white nor diagonal in pixels, bool (B,)."""
    rows = logvar.detach().flatten(1)
    uneven = rows.amax(1) - rows.amin(1) > 1e-6
    if not isinstance(basis, Mixed):
        return uneven & (not isinstance(basis, Pixel))
    return uneven & ~torch.tensor([isinstance(b, Pixel) for b in basis.bases], device=rows.device)[basis.index.to(rows.device)]


class _Learned(Protocol):
    """What :func:`fit_headroom` asks of a model: its statistics, and (U_base − U)/d of images (N, C, H, W), (N,)."""

    statistics: DataStatistics

    def below_base(self, y: Tensor, cov: Covariance) -> Tensor: ...


@torch.no_grad()
def fit_headroom(model: _Learned, images: Tensor, noise: NoiseConfig, generator: torch.Generator | None = None) -> Headroom:
    """ρ from held-out images of the kind the model is for: 1.25 times the largest difference among them, at every level of noise.

    Arguments:
        model: whose energy is compared with its base, without a bound.
        images: (N, C, H, W), a few hundred. Network calls: 30 N, about.
        noise: the covariances the model is for, of which eight an image give ``elsewhere``.
        generator: source of noise and covariances, on the CPU; None: a fixed one.

    Raises:
        ValueError: no images, or energies that are not finite.
    """
    if len(images) == 0:
        raise ValueError("headroom: wanted images, got none")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x, top = images.double(), noise.lambda_max or model.statistics.lambda_max
    count = 2 + int(2 * math.log10(top / noise.lambda_min))  # two a decade
    levels = torch.linspace(math.log(noise.lambda_min), math.log(top), count, dtype=torch.float64)

    def largest(cov: Covariance) -> Tensor:
        return torch.cat([model.below_base(x[rows] + cov[rows].sample(generator), cov[rows]) for rows in parts])

    parts = torch.arange(len(x)).split(_PART)
    seen = torch.stack([largest(Covariance.white(float(v.exp()), x.shape, like=x)).max() for v in levels])
    if not bool(seen.isfinite().all()):
        raise ValueError("headroom: wanted finite energies of images, got others")
    nats = (ROOM * seen.clamp_min(0) + ADDED).flip(0).cummax(0).values.flip(0)
    table, factors = Headroom(tuple(round(v, 4) for v in levels.tolist()), tuple(round(v, 4) for v in nats.tolist())), [1.0]
    for rows in parts * DRAWS:
        drawn = draw_covariances((len(rows), *x.shape[1:]), model.statistics, noise, generator).cov
        cov = Covariance(drawn.values.double(), drawn.basis, check=False)
        ratio = model.below_base(x[rows] + cov.sample(generator), cov) / table(cov.values.log(), cov.basis)
        factors += (ROOM * ratio)[_elsewhere(cov.values.log(), cov.basis)].tolist()
    return Headroom(table.log_variances, table.nats, round(max(factors), 4))
