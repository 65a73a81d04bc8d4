"""What an energy knows about the data before any learning: one mean per channel and the data variance in every basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anem.bases import Basis, BlockDCT, Fourier, Mixed, Pixel, as_basis
from anem.covariance import Covariance
from anem.marginal import ScalarMixture

__all__ = ["VARIANCE_FLOOR", "DataStatistics"]

VARIANCE_FLOOR = 1 / (12 * 256**2)
"""Variance of a uniform draw inside one 8-bit step, about 1.3e-6: no 8-bit data vary less."""


class DataStatistics(nn.Module):
    """Mean μ (one number a channel, the same in all bases) and data variance c about it, in every basis.

    The distribution of single pixel values is kept too, as a scalar mixture (:class:`ScalarMixture`).

    Pixel: one variance a channel. Fourier: the mean power spectrum, on the FFT grid of the fitted size and interpolated over
    frequency for others. Block DCT: one variance a coefficient of the block. All are floored at :data:`VARIANCE_FLOOR`.

    Arguments:
        channels, height, width: of the images described.
        dct: block sides with statistics of their own.
    """

    mean: Tensor
    variance: Tensor
    spectrum: Tensor
    largest_eigenvalue: Tensor

    def __init__(self, channels: int, height: int, width: int, dct: Sequence[int] = (2, 4)) -> None:
        super().__init__()
        self.dct = tuple(f for f in dct if height % f == 0 and width % f == 0)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("spectrum", torch.ones(channels, height, width))
        self.register_buffer("largest_eigenvalue", torch.ones(()))
        for f in self.dct:
            self.register_buffer(f"dct{f}", torch.ones(channels, f, f))
        self.marginal = ScalarMixture(channels)
        self._cache: dict = {}

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Tensor, dct: Sequence[int] = (2, 4)) -> DataStatistics:
        """Statistics of images (N, C, H, W) in [0, 1]; accumulated in float64."""
        n, c, h, w = images.shape
        stats = cls(c, h, w, dct)
        mean = images.mean((0, 2, 3), dtype=torch.float64)
        power: dict[str, Tensor] = {}
        bases: list[Basis] = [Fourier(), *(BlockDCT(f) for f in stats.dct)]
        for chunk in images.split(4096):
            r = chunk.double() - mean[:, None, None]
            for basis in bases:
                power[basis.name] = power.get(basis.name, 0) + basis.power(r).sum(0) / n
        floor = torch.tensor(VARIANCE_FLOOR)
        stats.mean.copy_(mean)
        stats.spectrum.copy_(power["fourier"].clamp_min(floor))
        stats.variance.copy_(power["fourier"].mean((1, 2)).clamp_min(floor))
        for f in stats.dct:
            blocks = power[f"dct{f}"].reshape(c, h // f, f, w // f, f).mean((1, 3))
            stats.get_buffer(f"dct{f}").copy_(blocks.clamp_min(floor))
        values = images.transpose(0, 1).flatten(1)
        # At random places: steps of one length would see some of the columns only.
        if values.shape[1] > 30_000:
            values = values[:, torch.randint(values.shape[1], (30_000,), generator=torch.Generator().manual_seed(0)).to(values.device)]
        stats.marginal.fit(values)
        # Of stationary data the largest mean power at one frequency; correlated channels add up.
        stats.largest_eigenvalue.copy_(stats.spectrum.sum(0).max())
        return stats

    def shape(self) -> dict[str, Any]:
        """The arguments that make statistics of this shape, ready for JSON."""
        channels, height, width = self.spectrum.shape
        return {"channels": channels, "height": height, "width": width, "dct": list(self.dct)}

    @property
    def lambda_max(self) -> float:
        """Variance that stands for "not observed": 30 times the largest eigenvalue of the data covariance (of stationary data)."""
        return 30 * float(self.largest_eigenvalue)

    def mean_image(self, like: Tensor) -> Tensor:
        """μ as (1, C, 1, 1), with the dtype and device of ``like``."""
        return self.mean.to(like)[None, :, None, None]

    def residual(self, y: Tensor, basis: Basis | str) -> Tensor:
        """Coordinates ρ = B (y − μ), (B, C, H, W)."""
        return as_basis(basis).forward(y - self.mean_image(y))

    def variance_in(self, basis: Basis | str, height: int, width: int, like: Tensor) -> Tensor:
        """Data variance c in a basis: (1, C, H, W), or (B, C, H, W) for a :class:`Mixed` basis."""
        basis = as_basis(basis)
        if isinstance(basis, Mixed):
            return basis.merge([self.variance_in(b, height, width, like).expand(n, -1, -1, -1) for b, n in basis.parts])
        key = (basis.name, height, width, like.dtype, str(like.device))
        if key not in self._cache:
            self._cache[key] = self._variance_in(basis, height, width).to(like)[None]
        return self._cache[key]

    def variance_of(self, cov: Covariance) -> Tensor:
        """Data variance c of the coordinates whose noise ``cov`` is: :meth:`variance_in` of its basis, size, dtype and device."""
        return self.variance_in(cov.basis, *cov.shape[-2:], cov.values)

    def gaussian_energy(self, rho: Tensor, cov: Covariance) -> Tensor:
        """U₀ = Σ_k ½ [ρ_k²/t_k + log 2πt_k] with t = c + λ, in nats, (B,): coordinates ρ = B (y − μ), (B, C, H, W), as if independent."""
        total = self.variance_of(cov) + cov.values
        return 0.5 * (rho.square() / total + (2 * math.pi * total).log()).flatten(1).sum(1)

    def _variance_in(self, basis: Basis, height: int, width: int) -> Tensor:
        basis.check_size(height, width)
        if isinstance(basis, Pixel):
            return self.variance[:, None, None].expand(-1, height, width).contiguous()
        if isinstance(basis, BlockDCT):
            if basis.size in self.dct:
                block = self.get_buffer(basis.name)
                return block.repeat(1, height // basis.size, width // basis.size)
            # A block DCT without statistics of its own: read the spectrum at each coefficient's frequency.
            f = basis.frequencies(height, width)
            return self._spectrum_at(f[0], f[1])
        if self.spectrum.shape[1:] == (height, width):
            return self.spectrum.clone()
        grid = basis.frequencies(height, width)
        if grid is None:
            raise ValueError(f"statistics: no data variance is known in the basis {basis.name!r}, which has no frequencies")
        return basis.symmetrise(self._spectrum_at(grid[0], grid[1])[None])[0]

    def _spectrum_at(self, fy: Tensor, fx: Tensor) -> Tensor:
        """The power spectrum at any frequencies (cycles per pixel), periodic and bilinear: (H, W) to (C, H, W)."""
        c, h, w = self.spectrum.shape
        py, px = fy.to(self.spectrum) * h, fx.to(self.spectrum) * w
        y0, x0 = py.floor(), px.floor()
        out = torch.zeros(c, *fy.shape).to(self.spectrum)
        for dy in (0, 1):
            for dx in (0, 1):
                weight = (1 - (py - y0 - dy).abs()) * (1 - (px - x0 - dx).abs())
                out += weight * self.spectrum[:, (y0.long() + dy) % h, (x0.long() + dx) % w]
        return out

    def _apply(self, fn, recurse: bool = True):
        self._cache.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)
