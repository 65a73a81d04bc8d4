"""Distances in pixels: to the truth, to the measurement, between samples."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from anem.operators import LinearOperator

__all__ = ["check_pair", "consistency", "diversity", "psnr", "ssim"]


def psnr(x: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio −10 log₁₀ mean (x − reference)², in dB for a peak of 1, (…,); infinite for equal images.

    Arguments:
        x, reference: (…, C, H, W) in [0, 1]; leading axes broadcast (samples against one truth).
        mask: bool, broadcastable to the images; the mean is over True. None: over everything.

    Raises:
        ValueError: images of different sizes; a mask that is empty for some image.
    """
    check_pair(x, reference)
    error = (x - reference).double().square()
    inside = torch.ones_like(error) if mask is None else mask.to(error).expand_as(error)
    count = inside.sum((-3, -2, -1))
    if not bool((count > 0).all()):
        raise ValueError("mask: wanted at least one pixel an image, got none")
    return -10 * ((error * inside).sum((-3, -2, -1)) / count).log10()


def ssim(x: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (B,), the mean over every place where the 11 × 11 Gaussian window of deviation 1.5 fits, and over channels:

        (2 μ_x μ_r + c₁)(2 σ_xr + c₂) / ((μ_x² + μ_r² + c₁)(σ_x² + σ_r² + c₂)),  c₁ = 0.01², c₂ = 0.03².

    Arguments:
        x, reference: (B, C, H, W) in [0, 1].

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, eq. 13. No padding, as in the authors' code; torchmetrics pads by reflection.

    Raises:
        ValueError: images of different shapes or smaller than the window.
    """
    check_pair(x, reference)
    if min(x.shape[-2:]) < 11:
        raise ValueError(f"x: wanted images of at least 11 x 11 pixels, the window's size, got {x.shape[-2]} x {x.shape[-1]}")
    a, b = x.double(), reference.double()
    taps = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=a.dtype, device=a.device) / 1.5).square())
    window = torch.outer(taps, taps) / taps.sum().square()

    def local(z: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(z, window.expand(z.shape[1], 1, 11, 11), groups=z.shape[1])

    ma, mb = local(a), local(b)
    va, vb, covariance = local(a * a) - ma * ma, local(b * b) - mb * mb, local(a * b) - ma * mb
    luminance = (2 * ma * mb + 0.01**2) / (ma.square() + mb.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (va + vb + 0.03**2)
    return (luminance * structure).mean((1, 2, 3))


def consistency(x: Tensor, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor) -> Tensor:
    """Distance to the measurement, ‖H x − m‖/(σ √n) over the n numbers that were measured, (B,): near 1 for the truth.

    Arguments:
        x: restorations (B, C, H, W).
        measurement: m, in measurement space.
        operator: H.
        sigma: standard deviation > 0 of the noise in m, a number, (B,), or a map broadcastable to m.
    """
    std = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    std = std.reshape(-1, 1, 1, 1) if std.ndim < 2 else std
    if not bool((std > 0).all()):
        raise ValueError(f"sigma: wanted standard deviations > 0, got {float(std.min()):.4g}")
    residual = operator.coordinates((operator(x) - measurement) / std)
    count = operator.measured(x.shape, x).expand_as(residual).flatten(1).sum(1)
    return (residual.square().flatten(1).sum(1) / count).sqrt()


def diversity(samples: Tensor, distance: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Mean distance between two samples of the same posterior, over all pairs, (B,).

    Arguments:
        samples: (S, B, C, H, W), S ≥ 2.
        distance: of two batches (B, C, H, W), (B,), such as :class:`LPIPS`; None for the root mean square difference of pixels.
    """
    if samples.ndim != 5 or len(samples) < 2:
        raise ValueError(f"samples: wanted (S, B, C, H, W) with S >= 2, got {tuple(samples.shape)}")
    distance = distance or (lambda a, b: (a - b).square().flatten(1).mean(1).sqrt())
    return torch.stack([distance(a, b) for a, b in combinations(samples, 2)]).mean(0)


def check_pair(x: Tensor, reference: Tensor) -> None:
    """Raise ValueError unless the images are of one shape, and as many or one for all."""
    numbers = zip(x.shape[:-3][::-1], reference.shape[:-3][::-1], strict=False)
    if x.shape[-3:] != reference.shape[-3:] or any(a != b and 1 not in (a, b) for a, b in numbers):
        raise ValueError(f"x: wanted the reference's shape {tuple(reference.shape)}, got {tuple(x.shape)}")
