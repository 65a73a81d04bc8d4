"""How far below its base a learned energy may be.

A network is trained on images with noise. Of other images it knows nothing and may call them probable, by ten nats a dimension: then they
are what its density integrates to. What is right everywhere is the base, the energy without a network (:mod:`anem.network`), which is
normalised in pixels. It differs from the truth by what pixels tell of each other and their places of them. The largest such difference of
any image falls as noise is added, so that of held-out images under white noise, and some room, stands for it under any Σ with no variance
below that noise's:

    max(U, U_base − d · ρ(min_k λ_k), Σ_k ½ log 2πλ_k)

It changes nothing where images are like those, and keeps log Z(Σ)/d below ρ(min λ) for every Σ described in pixels. That is a bound, and no
small one at small noise: up to it images unlike the data may still carry mass (:func:`anem.likelihood.audit_strangers` looks for some). The
last of the three is true of any density: p(y given Σ) is a mean of Gaussians of covariance Σ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from anem.bases import Basis, Mixed, Pixel
from anem.corruptions import NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.statistics import DataStatistics

__all__ = ["LEAST", "Headroom", "fit_headroom"]

ROOM, ADDED = 1.25, 0.002
"""ρ over the largest difference that was seen, and nats/dim beside."""

DRAWS = 8
"""Covariances an image that ``elsewhere`` is found on: where the base is bad is rare."""

LEAST = 64
"""Images below which their largest difference says too little."""

_NUMBERS = 2**17
"""Of one call, about."""


@dataclass(frozen=True)
class Headroom:
    """ρ by the noise, in nats a dimension.

    Arguments:
        log_variances: log λ of white noise, increasing.
        nats: ρ there, not increasing; linear in log λ between, constant beyond.
        elsewhere: factor for what is far from white and not described in pixels, where the base is farther from the truth.

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

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Log variances and nats as tensors with the dtype and device of ``like``."""
        return like.new_tensor(self.log_variances), like.new_tensor(self.nats)

    def __call__(self, logvar: Tensor, basis: Basis, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """ρ for log λ (B, C, H, W) in basis coordinates, (B,), differentiable in it; ``tables`` as made beforehand, or None."""
        levels, nats = self.tables(logvar) if tables is None else tables
        x = logvar.flatten(1).amin(1)
        rho = nats[0].to(x).expand_as(x)
        if len(levels) > 1:
            levels, nats = levels.to(x), nats.to(x)
            right = torch.searchsorted(levels, x.detach().contiguous()).clamp(1, len(levels) - 1)
            low, high = levels[right - 1], levels[right]
            rho = torch.lerp(nats[right - 1], nats[right], ((x - low) / (high - low)).clamp(0, 1))
        if isinstance(basis, Pixel) or self.elsewhere == 1:
            return rho
        return rho * (1 + (self.elsewhere - 1) * _elsewhere(logvar, basis))


def _elsewhere(logvar: Tensor, basis: Basis) -> Tensor:
    """How far Σ is from white, where it is not described in pixels, (B,) in [0, 1)."""
    uneven = 4 * logvar.flatten(1).var(1, correction=0)
    share = uneven / (1 + uneven)
    if isinstance(basis, Pixel):
        return torch.zeros_like(share)
    if isinstance(basis, Mixed):
        outside = torch.tensor([not isinstance(b, Pixel) for b in basis.bases])[basis.index]
        share = share * outside.to(share)
    return share


class _Learned(Protocol):
    """What :func:`fit_headroom` asks of a model: its statistics, and (U_base − U)/d of images (N, C, H, W), (N,)."""

    statistics: DataStatistics

    def below_base(self, y: Tensor, cov: Covariance) -> Tensor: ...


@torch.no_grad()
def fit_headroom(model: _Learned, images: Tensor, noise: NoiseConfig, generator: torch.Generator | None = None) -> Headroom:
    """ρ from held-out images of the kind the model is for: 1.25 times the largest difference among them, at every level of noise.

    Arguments:
        model: whose energy is compared with its base, without a bound.
        images: (N, C, H, W), a few hundred, at least 64; on the model's device. Network calls: 30 N, about.
        noise: the range of variances the model is for. All its families count for ``elsewhere``, with eight draws an image.
        generator: source of noise and covariances, on the CPU; None: a fixed one.

    Raises:
        ValueError: too few images, or energies that are not finite.
    """
    if len(images) < LEAST:
        raise ValueError(f"headroom: wanted at least {LEAST} images, got {len(images)}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x, device, top = images.double().cpu(), images.device, noise.lambda_max or model.statistics.lambda_max
    count = 2 + int(2 * math.log10(top / noise.lambda_min))  # two a decade
    levels = torch.linspace(math.log(noise.lambda_min), math.log(top), count, dtype=torch.float64)
    every = replace(noise, only=(), weights={})
    size = max(1, _NUMBERS // x[0].numel())

    def below(rows: Tensor, cov: Covariance) -> Tensor:
        y = x[rows] + cov.sample(generator)
        return model.below_base(y.to(device), cov.to(device)).cpu()

    nats = []
    for level in levels.exp().tolist():
        parts = torch.arange(len(x)).split(size)
        seen = torch.cat([below(rows, Covariance.white(level, (len(rows), *x.shape[1:]), like=x)) for rows in parts])
        nats.append(ROOM * float(seen.max().clamp_min(0)) + ADDED)
    falling = torch.tensor(nats, dtype=torch.float64).flip(0).cummax(0).values.flip(0)
    if not bool(falling.isfinite().all()):
        raise ValueError("headroom: wanted finite energies of images, got others")
    table, factors = Headroom(tuple(round(v, 4) for v in levels.tolist()), tuple(round(v, 4) for v in falling.tolist())), []
    for _ in range(DRAWS):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            drawn = draw_covariances((len(rows), *x.shape[1:]), model.statistics, every, generator).cov
            cov = Covariance(drawn.values.double(), drawn.basis, check=False)
            ratio = ROOM * below(rows, cov) / table(cov.values.log(), cov.basis)
            share = _elsewhere(cov.values.log(), cov.basis)
            factors.append(torch.where((ratio > 1) & (share > 0), 1 + (ratio - 1) / share.clamp_min(0.1), 1.0))
    factor = float(torch.cat(factors).max())
    if not math.isfinite(factor):
        raise ValueError("headroom: wanted finite energies of images, got others")
    return replace(table, elsewhere=round(factor, 4))
