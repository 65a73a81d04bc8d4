"""Distances between sets of images, in the features of a network."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from anem.images import to_integers
from anem.metrics.intervals import kernel_statistic
from anem.metrics.perceptual import as_rgb, weight_file

__all__ = ["Inception", "frechet_distance", "kernel_distance"]


class Inception(nn.Module):
    """The 2048 features of the Inception network of the published FID, from ``inception.pt`` in ``directory``.

    Images are written to 8 bits, as if read from files, and scaled to 299 × 299 (bilinear, not antialiased).

    Source: Heusel et al. 2017, arXiv 1706.08500; weights as in its reference implementation.
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        super().__init__()
        path = weight_file(directory, "inception.pt")
        try:
            self.network = torch.jit.load(str(path), map_location="cpu").eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: not a readable weight file: {' '.join(str(error).split())[:100]}") from None

    @torch.no_grad()
    def forward(self, x: Tensor, batch_size: int = 16) -> Tensor:
        """Features (B, 2048) of images (B, 1 or 3, H, W) in [0, 1]."""
        features = []
        for part in to_integers(as_rgb(x)).split(batch_size):
            large = nn.functional.interpolate(part.float(), (299, 299), mode="bilinear", align_corners=False)
            features.append(self.network((large - 128) / 128))
        return torch.cat(features)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two sets of features (N, F), (M, F) taken as Gaussian (FID): |μ − ν|² + tr(C + D − 2 (C D)^{1/2}).

    With centred features X = A √(N − 1), C = AᵀA and D = BᵀB, tr (C D)^{1/2} is the nuclear norm of A Bᵀ, here of the triangular
    factors of A and B: exact and real for any N and F. Biased upwards for small N, M.

    Source: Dowson and Landau 1982, eq. 4; Heusel et al. 2017.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1] or min(len(features), len(reference)) < 2:
        raise ValueError(f"features: wanted (N, F) and (M, F) with N, M >= 2, got {tuple(features.shape)} and {tuple(reference.shape)}")
    x, r = features.double(), reference.double()
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, r))
    triangles = [torch.linalg.qr(z, mode="r").R for z in (a, b)]
    cross = torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum()
    return float((x.mean(0) - r.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Kernel distance of two sets of features (N, F), (M, F) (KID), over all pairs; unbiased, so it may be below 0.

    Source: Bińkowski et al. 2018; see :func:`anem.metrics.kernel_statistic`, which gives intervals.
    """
    ones = torch.ones(1, len(features), dtype=torch.float64)
    return float(kernel_statistic(features, reference)(ones))
