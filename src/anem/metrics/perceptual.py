"""Distances between images in the features of classification networks: LPIPS and DISTS."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from anem.metrics.pixels import check_pair

__all__ = ["DISTS", "LPIPS", "as_rgb", "weight_file"]


def weight_file(directory: str | os.PathLike, name: str) -> Path:
    """The weight file ``name`` in ``directory``.

    Raises:
        ValueError: it is not there; says which and how to get it.
    """
    path = Path(directory) / name
    if not path.is_file():
        raise ValueError(f"{path}: metric weights are missing; `make data` puts {name} into data/")
    return path


def as_rgb(x: Tensor, least: int = 1) -> Tensor:
    """Images (B, 3, H, W) for networks of colour images: grey is repeated, sides below ``least`` are padded with zeros around.

    Raises:
        ValueError: other than 1 or 3 channels.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"x: wanted images (B, 1 or 3, H, W), got {tuple(x.shape)}")
    rows, columns = (max(0, least - side) for side in x.shape[-2:])
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return nn.functional.pad(x.expand(-1, 3, -1, -1), padding)


class _Features(nn.Module):
    """Feature maps of AlexNet or VGG16 after the last rectifier of each of five stages.

    Arguments:
        directory: holds ``alexnet.npz`` or ``vgg16.npz``: convolutions ``conv{i}_w``, ``conv{i}_b``.
        net: which.
        pool: replaces the network's own max-pooling.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, directory: str | os.PathLike, net: Literal["alex", "vgg"], pool: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        file, convolutions, self.pooled, side = {
            "alex": ("alexnet.npz", (1, 1, 1, 1, 1), (1, 2), 3),
            "vgg": ("vgg16.npz", (2, 2, 3, 3, 3), (1, 2, 3, 4), 2),
        }[net]
        self.pool = pool or nn.MaxPool2d(side, 2)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        arrays, numbers = _arrays(directory, file), iter(range(sum(convolutions)))
        self.stages = nn.ModuleList()
        for count in convolutions:
            layers = [(_convolution(arrays, next(numbers)), nn.ReLU()) for _ in range(count)]
            self.stages.append(nn.Sequential(*(part for layer in layers for part in layer)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Five maps (B, C_l, H_l, W_l) of images (B, 3, H, W) in [0, 1]."""
        maps, z = [], (x - self.mean) / self.std
        for number, stage in enumerate(self.stages):
            z = stage(self.pool(z) if number in self.pooled else z)
            maps.append(z)
        return maps


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1: Σ_l mean_p Σ_c w_lc (f̂_lcp − ĝ_lcp)², f̂ and ĝ features of unit length at each place.

    Images are 1 or 3 × H × W in [0, 1]; grey ones are repeated and sides below 32 padded with zeros.

    Arguments:
        directory: holds ``alexnet.npz`` and ``lpips_alex.npz``, or ``vgg16.npz`` and ``lpips_vgg.npz``.
        net: features of AlexNet (the usual choice for comparisons) or VGG16.

    Source: Zhang et al. 2018, arXiv 1801.03924, eq. 1.
    """

    def __init__(self, directory: str | os.PathLike, net: Literal["alex", "vgg"] = "alex") -> None:
        super().__init__()
        if net not in ("alex", "vgg"):
            raise ValueError(f"net: wanted 'alex' or 'vgg', got {net!r}")
        heads = _arrays(directory, f"lpips_{net}.npz")
        self.features = _Features(directory, net)
        self.heads = nn.ParameterList([nn.Parameter(heads[f"lin{i}"]) for i in range(5)])
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distances (B,) of images (B, C, H, W); ValueError if their shapes differ."""
        check_pair(x, reference)
        pairs = zip(self.features(as_rgb(x, 32)), self.features(as_rgb(reference, 32)), self.heads, strict=True)
        return torch.stack([((_unit(a) - _unit(b)).square() * w).sum(1).mean((1, 2)) for a, b, w in pairs]).sum(0)


def _unit(z: Tensor) -> Tensor:
    return z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10)


class DISTS(nn.Module):
    """Structure and texture distance: 1 − Σ_lc (α_lc l(μ_f, μ_g) + β_lc s(f, g)) over VGG16 maps and the image itself.

    Images as for :class:`LPIPS`; no resizing.

    Arguments:
        directory: holds ``vgg16.npz`` and ``dists.npz`` (``alpha``, ``beta``).

    Source: Ding, Ma, Wang, Simoncelli 2020, arXiv 2004.07728, eqs. 5 to 7.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, directory: str | os.PathLike) -> None:
        super().__init__()
        weights = _arrays(directory, "dists.npz")
        total = weights["alpha"].sum() + weights["beta"].sum()
        self.features = _Features(directory, "vgg", _HannPool())
        self.register_buffer("alpha", weights["alpha"].flatten() / total)
        self.register_buffer("beta", weights["beta"].flatten() / total)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        """Distances (B,) of images (B, C, H, W); ValueError if their shapes differ."""
        check_pair(x, reference)
        x, reference = as_rgb(x, 32), as_rgb(reference, 32)
        means, structures = [], []
        for f, g in zip([x, *self.features(x)], [reference, *self.features(reference)], strict=True):
            mf, mg = f.mean((2, 3)), g.mean((2, 3))
            vf, vg = ((z - m[..., None, None]).square().mean((2, 3)) for z, m in ((f, mf), (g, mg)))
            covariance = (f * g).mean((2, 3)) - mf * mg
            means.append((2 * mf * mg + 1e-6) / (mf.square() + mg.square() + 1e-6))
            structures.append((2 * covariance + 1e-6) / (vf + vg + 1e-6))
        return 1 - torch.cat(means, 1) @ self.alpha - torch.cat(structures, 1) @ self.beta


class _HannPool(nn.Module):
    """L2 pooling √(h ∗ z²) with a 3 × 3 Hann window h and stride 2 (Ding et al. 2020, eq. 2)."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("window", (taps[:, None] * taps)[None, None])

    def forward(self, z: Tensor) -> Tensor:
        channels = z.shape[1]
        window = self.window.expand(channels, 1, 3, 3)
        return (nn.functional.conv2d(z.square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def _arrays(directory: str | os.PathLike, name: str) -> dict[str, Tensor]:
    path = weight_file(directory, name)
    try:
        with np.load(path) as file:
            return {key: torch.from_numpy(file[key]) for key in file}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable weight file: {error}") from None


def _convolution(arrays: dict[str, Tensor], number: int) -> nn.Conv2d:
    weight = arrays[f"conv{number}_w"]
    out, into, side, _ = weight.shape
    first_of_alexnet = side == 11
    layer = nn.Conv2d(into, out, side, stride=4 if first_of_alexnet else 1, padding=2 if first_of_alexnet else side // 2)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(arrays[f"conv{number}_b"])
    return layer
