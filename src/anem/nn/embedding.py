"""What the network is told about Σ: a map over pixels and a fixed-length summary of the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anem.bases import Basis, BlockDCT, Fourier, Mixed, Pixel
from anem.nn.functional import GradientScope, silu
from anem.nn.layers import Conv

__all__ = ["SPECTRAL_FEATURES", "CovarianceEmbedding", "spectral_features", "spectral_windows"]

_RINGS = 8
SPECTRAL_FEATURES = 2 * (_RINGS + 4 * 4) + 3


def spectral_windows(basis: Basis, height: int, width: int) -> Tensor | None:
    """Smooth windows φ_j over the frequencies of a basis, (24, H, W); None in pixels.

    Eight rings in log frequency, each summing to 1, and every second of them times cos 2θ, sin 2θ, cos 4θ, sin 4θ of the direction. They
    depend on the frequency in cycles per pixel alone, so the summary has the same meaning at any image size and for the coefficients of
    a block DCT.
    """
    f = basis.frequencies(height, width)
    if f is None:
        return None
    radius = f.square().sum(0).sqrt()
    angle = torch.atan2(f[0], f[1])
    position = torch.log2(radius.clamp_min(1 / 64) * 64) / torch.log2(torch.tensor(0.75 * 64)) * (_RINGS - 1)
    angular = torch.stack([torch.cos(2 * angle), torch.sin(2 * angle), torch.cos(4 * angle), torch.sin(4 * angle)])
    rings = torch.exp(-((position - torch.arange(_RINGS)[:, None, None]) ** 2))
    directed = (rings[1::2, None] * angular).flatten(0, 1)
    mass = torch.cat([rings, rings[1::2].repeat_interleave(4, 0)]).sum((1, 2), keepdim=True)
    return torch.cat([rings, directed]) / mass.clamp_min(1e-6)


def spectral_features(log_ratio: Tensor, basis: Basis, cache: dict[tuple, Tensor]) -> Tensor:
    """Summary of ℓ = log(λ/c), (B, C, H, W), as (B, 51): windowed means of ℓ/8 and of c/(c + λ), and a label of the basis.

    Zero except for the label where the basis is pixel. Channels are averaged.
    """
    if isinstance(basis, Mixed):
        return basis.merge([spectral_features(part, b, cache) for b, part in basis.split(log_ratio)])
    batch, _, height, width = log_ratio.shape
    key = (basis.name, height, width, log_ratio.dtype, str(log_ratio.device))
    if key not in cache:
        windows = spectral_windows(basis, height, width)
        cache[key] = torch.empty(0) if windows is None else windows.to(log_ratio)
        label = [isinstance(basis, Pixel), isinstance(basis, Fourier), isinstance(basis, BlockDCT)]
        cache["label", *key] = log_ratio.new_tensor([float(x) for x in label])
    windows, labels = cache[key], cache["label", *key].expand(batch, 3)
    if windows.numel() == 0:
        return torch.cat([log_ratio.new_zeros(batch, SPECTRAL_FEATURES - 3), labels], 1)
    mean = log_ratio.mean(1)
    share = torch.sigmoid(-log_ratio).mean(1)
    moments = torch.einsum("bnhw,jhw->bnj", torch.stack([mean / 8, share], 1), windows)
    return torch.cat([moments.flatten(1), labels], 1)


class CovarianceEmbedding(nn.Module):
    """Embedding e(Σ), (B, E, H, W), of a noise map at the network's resolution and the spectral summary.

    Arguments:
        inputs: channels of the noise map after space-to-depth. width: E.
    """

    def __init__(self, inputs: int, width: int, scope: GradientScope) -> None:
        super().__init__()
        self.local = Conv(inputs, width, 3, scope)
        self.summary = Conv(SPECTRAL_FEATURES, 2 * width, 1, scope)
        self.mix = Conv(2 * width, width, 1, scope)
        self.out = Conv(width, width, 1, scope)

    def forward(self, noise_map: Tensor, summary: Tensor) -> Tensor:
        """Map (B, inputs, H, W) and summary (B, 51) to (B, E, H, W)."""
        scope = self.out.scope
        channel = self.mix(silu(self.summary(summary[:, :, None, None]), scope))
        return silu(self.out(silu(self.local(noise_map) + channel, scope)), scope)
