"""Bits per dimension of 8-bit images: what a density of noisy images says about integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.likelihood.chunks import chunks, rows_of
from anem.random import Generators, normal, uniform

__all__ = ["BitsPerDim", "bits_per_dim", "choose_sigma", "log_box_mixture"]

_REACH = 12.0
"""Boxes further than this many σ from y hold a share of less than 1e-31 of it, beyond what float64 resolves."""


@dataclass(frozen=True, eq=False)
class BitsPerDim:
    """An upper bound on −log₂ P(v)/d for each of B images, averaged over draws of y, and its two terms, all (B,) in bits/dim.

    Arguments:
        energy: E[U(y, σ²I)].
        decoding: E Σ_i [log Σ_v′ π(v′) q(y_i given v′) − log π(v_i)], the cost of reading v off y.
    """

    energy: Tensor
    decoding: Tensor

    @property
    def total(self) -> Tensor:
        """The bound, (B,)."""
        return self.energy + self.decoding


def _log_interval(y: Tensor, low: Tensor | float, high: Tensor | float, sigma: float) -> Tensor:
    """log[Φ((y − low)/σ) − Φ((y − high)/σ)], low < high, without cancellation in either tail."""
    a, b = (y - low) / sigma, (y - high) / sigma
    mirrored = a + b > 0  # Φ(a) − Φ(b) = Φ(−b) − Φ(−a): keep the side on which neither is close to 1
    top = torch.special.log_ndtr(torch.where(mirrored, -b, a))
    gap = top - torch.special.log_ndtr(torch.where(mirrored, -a, b))
    return top + torch.where(gap < 0.7, (-torch.expm1(-gap)).log(), torch.log1p(-torch.exp(-gap)))


def log_box_mixture(y: Tensor, sigma: float, prior: Tensor | None = None) -> Tensor:
    """log Σ_v π(v) q(y given v), elementwise, q(y given v) = 256[Φ((y − v/256)/σ) − Φ((y − (v+1)/256)/σ)].

    Arguments:
        y: intensities, any shape, float64.
        sigma: standard deviation of the noise.
        prior: π, (256,), summing to 1. None: uniform, where the sum telescopes to Φ(y/σ) − Φ((y − 1)/σ).
    """
    if prior is None:
        return _log_interval(y, 0.0, 1.0, sigma)
    centre = (256 * y).floor().clamp(0, 255).long()
    reach = min(255, math.ceil(_REACH * 256 * sigma) + 1)
    log_prior, total = prior.to(y).log(), torch.full_like(y, -math.inf)
    for offset in range(-reach, reach + 1):
        v = (centre + offset).clamp(0, 255)
        box = _log_interval(y, v.to(y) / 256, (v + 1).to(y) / 256, sigma) + math.log(256) + log_prior[v]
        total = torch.logaddexp(total, torch.where(v == centre + offset, box, -math.inf))
    return total


def _check_images(images: Tensor, sigma: float, prior: Tensor | None) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images: wanted uint8 (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if not sigma > 0:
        raise ValueError(f"sigma: wanted a standard deviation > 0, got {sigma}")
    if prior is not None and (prior.shape != (256,) or not bool((prior > 0).all()) or abs(float(prior.double().sum()) - 1) > 1e-6):
        raise ValueError(f"prior: wanted 256 positive numbers summing to 1, got {tuple(prior.shape)} with sum {float(prior.sum()):.6g}")


def _bound(model: EnergyModel, v: Tensor, sigma: float, u: Tensor, z: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two terms of one draw, in bits/dim, (B,)."""
    y = (v + u) / 256 + sigma * z
    cov = Covariance.white(sigma**2, y.shape, like=y)
    log_pi = -math.log(256) if prior is None else prior.to(y).log()[v.long()]
    decoding = (log_box_mixture(y, sigma, prior) - log_pi).flatten(1).sum(1)
    scale = v[0].numel() * math.log(2)
    return -model.log_prob(y, cov).double() / scale, decoding / scale


@torch.no_grad()
def bits_per_dim(
    model: EnergyModel, images: Tensor, sigma: float, generators: Generators = None, draws: int = 1, prior: Tensor | None = None
) -> BitsPerDim:
    """−log P(v) ≤ E[U(y, σ²I)] + E Σ_i [log Σ_v′ π(v′) q(y_i given v′) − log π(v_i)], y = (v + u)/256 + σz.

    P(v) is what the model gives to the decoder "v with probability ∝ π(v) q(y given v), pixel by pixel", so this is a bound for any σ
    and any π fixed beforehand. With the true energy the gap is the divergence of the decoder from the true posterior of v, about
    256σ · 1 bit for a uniform π. A uniform π is customary; a histogram of the training images costs less where one value is common.

    Arguments:
        images: v, (B, C, H, W), uint8.
        sigma: standard deviation of the noise; see :func:`choose_sigma`.
        generators: source of u and z, one an image or one for all.
        draws: of y for each image, averaged.
        prior: π, (256,) positive numbers summing to 1; None for uniform.
    """
    _check_images(images, sigma, prior)
    like = torch.zeros((), dtype=torch.float64, device=images.device)
    terms = torch.zeros(2, len(images), dtype=torch.float64, device=images.device)
    for rows in chunks(len(images), images.shape[1:]):
        v = images[rows]
        own = rows_of(generators, rows)
        for _ in range(draws):
            u, z = uniform(v.shape, own, like), normal(v.shape, own, like)
            terms[:, rows] += torch.stack(_bound(model, v, sigma, u, z, prior)) / draws
    return BitsPerDim(terms[0], terms[1])


@torch.no_grad()
def choose_sigma(
    model: EnergyModel, images: Tensor, sigmas: Sequence[float], generators: Generators = None, prior: Tensor | None = None
) -> tuple[float, Tensor]:
    """The σ with the least mean bound on tuning images, and the mean bound in bits/dim at every σ, (len(sigmas),).

    All σ share the same u and z. Arguments as of :func:`bits_per_dim`; choose on other images than those reported.
    """
    if len(sigmas) == 0:
        raise ValueError("sigmas: wanted at least one, got none")
    for sigma in sigmas:
        _check_images(images, sigma, prior)
    like = torch.zeros((), dtype=torch.float64, device=images.device)
    u, z = uniform(images.shape, generators, like), normal(images.shape, generators, like)
    curve = torch.zeros(len(sigmas), dtype=torch.float64)
    for rows in chunks(len(images), images.shape[1:]):
        for i, sigma in enumerate(sigmas):
            curve[i] += sum(t.sum() for t in _bound(model, images[rows], sigma, u[rows], z[rows], prior)).cpu() / len(images)
    return float(sigmas[int(curve.argmin())]), curve
