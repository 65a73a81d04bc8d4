"""Real orthonormal bases in which covariances are diagonal: pixels, frequencies, the DCT of blocks; and one of them for each image.

Three are enough for inpainting (pixel), blur (Fourier) and super-resolution (block DCT).

Fourier convention, stated once. A spectrum is given on the grid of the unitary 2-D DFT (``norm="ortho"``), all H·W frequencies in
FFT order, and must be even, λ(k) = λ(−k). For an even spectrum Fᴴ diag(λ) F = Hᵀ diag(λ) H with H = Re F − Im F, the Hartley
transform, which is real, orthonormal, symmetric and its own inverse. Coordinates are therefore Hartley coefficients: real, H·W of
them, independent under stationary Gaussian noise, and sums over coordinates equal sums over all H·W complex frequencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Basis", "BlockDCT", "Fourier", "Mixed", "Pixel", "as_basis", "coherence"]


class Basis(ABC):
    """An orthonormal change of coordinates z = B x of images (B, C, H, W), channel by channel."""

    name: str

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Coordinates z = B x, (B, C, H, W) to (B, C, H, W)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Image x = Bᵀ z, (B, C, H, W) to (B, C, H, W)."""

    def symmetrise(self, v: Tensor) -> Tensor:
        """Average a per-coordinate field over the coordinates that share a variance (k and −k in Fourier)."""
        return v

    def power(self, x: Tensor) -> Tensor:
        """Squared coordinates |B x|² of an image, symmetrised: for Fourier exactly the squared modulus of the unitary DFT."""
        return self.symmetrise(self.forward(x).square())

    @abstractmethod
    def pixel_variance(self, values: Tensor) -> Tensor:
        """Diagonal of Bᵀ diag(v) B in pixels, (B, C, H, W): the variance in each pixel of noise with variances v."""

    def frequencies(self, height: int, width: int) -> Tensor | None:
        """Frequency of every coordinate in cycles per pixel, (2, H, W) in [−½, ½], or None where it means nothing."""
        return None

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size have no such basis."""

    def rows(self, index: Tensor) -> Basis:
        """The basis of the images ``index`` of a batch."""
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Basis) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Basis({self.name!r})"


class Pixel(Basis):
    """The identity."""

    name = "pixel"

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, z: Tensor) -> Tensor:
        return z

    def pixel_variance(self, values: Tensor) -> Tensor:
        return values


class _Hartley(torch.autograd.Function):
    """The unitary 2-D Hartley transform; symmetric, so it is its own derivative and its own adjoint."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        f = torch.fft.fft2(x, norm="ortho")
        return f.real - f.imag

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Hartley.apply(grad)

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return _Hartley.apply(tangent)


class Fourier(Basis):
    """Frequencies of the 2-D DFT, with real Hartley coefficients as coordinates (see the module's convention)."""

    name = "fourier"

    def forward(self, x: Tensor) -> Tensor:
        return _Hartley.apply(x)

    def inverse(self, z: Tensor) -> Tensor:
        return _Hartley.apply(z)

    def symmetrise(self, v: Tensor) -> Tensor:
        return 0.5 * (v + v.flip(-2, -1).roll((1, 1), (-2, -1)))

    def pixel_variance(self, values: Tensor) -> Tensor:
        return values.mean((-2, -1), keepdim=True).expand_as(values)

    def frequencies(self, height: int, width: int) -> Tensor:
        fy, fx = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
        return torch.stack(torch.meshgrid(fy, fx, indexing="ij"))


class BlockDCT(Basis):
    """Orthonormal DCT-II of every f × f block; the coefficient (u, v) of a block sits at its pixel (u, v).

    Average-pooling by f followed by decimation keeps exactly the coefficients (0, 0), times 1/f.
    """

    def __init__(self, size: int) -> None:
        if size < 2:
            raise ValueError(f"block DCT: the block side must be at least 2, got {size}")
        self.size = size
        self.name = f"dct{size}"
        k = torch.arange(size, dtype=torch.float64)
        matrix = torch.cos(torch.pi * k[:, None] * (2 * k[None, :] + 1) / (2 * size)) * (2 / size) ** 0.5
        matrix[0] /= 2**0.5
        self._matrix = matrix
        self._copies: dict[tuple, Tensor] = {}

    def _transform(self, x: Tensor, kind: str) -> Tensor:
        b, c, h, w = x.shape
        self.check_size(h, w)
        f = self.size
        key = (kind, x.dtype, x.device)
        if key not in self._copies:
            matrix = {"forward": self._matrix, "inverse": self._matrix.T, "variance": self._matrix.T.square()}[kind]
            self._copies[key] = matrix.to(x)
        m = self._copies[key]
        blocks = x.reshape(b, c, h // f, f, w // f, f)
        return torch.einsum("ui,bcyixj,vj->bcyuxv", m, blocks, m).reshape(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        return self._transform(x, "forward")

    def inverse(self, z: Tensor) -> Tensor:
        return self._transform(z, "inverse")

    def pixel_variance(self, values: Tensor) -> Tensor:
        return self._transform(values, "variance")

    def frequencies(self, height: int, width: int) -> Tensor:
        f = torch.arange(self.size) / (2 * self.size)
        fy, fx = f.repeat(height // self.size), f.repeat(width // self.size)
        return torch.stack(torch.meshgrid(fy, fx, indexing="ij"))

    def check_size(self, height: int, width: int) -> None:
        if height % self.size or width % self.size:
            raise ValueError(f"block DCT: image sides must be multiples of {self.size}, got {height} x {width}; pad the image first")


class Mixed(Basis):
    """A basis per image: image b of the batch is described in ``bases[index[b]]``. ``index`` is (B,) int64 on the CPU.

    ``parts`` lists the bases that occur and how many images each describes.
    """

    def __init__(self, bases: Sequence[Basis], index: Tensor) -> None:
        self.bases = tuple(bases)
        self.index = index.cpu()
        self.name = "mixed:" + ",".join(self.bases[i].name for i in self.index.tolist())
        order, counts = torch.argsort(self.index, stable=True), torch.bincount(self.index, minlength=len(self.bases)).tolist()
        self.parts = [(basis, n) for basis, n in zip(self.bases, counts, strict=True) if n]
        self._orders = {} if torch.equal(order, torch.arange(len(order))) else {torch.device("cpu"): (order, torch.argsort(order))}

    def _order(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._orders:
            sort, back = self._orders[torch.device("cpu")]
            self._orders[device] = sort.to(device), back.to(device)
        return self._orders[device]

    def split(self, x: Tensor) -> list[tuple[Basis, Tensor]]:
        """The rows of x (B, …) that each basis describes. No copy where the batch is sorted by basis."""
        if len(x) != len(self.index):
            raise ValueError(f"mixed basis: wanted a batch of {len(self.index)}, one image an entry of the index, got {len(x)}")
        rows = x[self._order(x.device)[0]] if self._orders else x
        return [(basis, part) for (basis, _), part in zip(self.parts, rows.split([n for _, n in self.parts]), strict=True)]

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """What :meth:`split` took apart, in the order of the batch."""
        rows = torch.cat(list(parts))
        return rows[self._order(rows.device)[1]] if self._orders else rows

    def _each(self, x: Tensor, method: str) -> Tensor:
        return self.merge([getattr(basis, method)(part) for basis, part in self.split(x)])

    def forward(self, x: Tensor) -> Tensor:
        return self._each(x, "forward")

    def inverse(self, z: Tensor) -> Tensor:
        return self._each(z, "inverse")

    def pixel_variance(self, values: Tensor) -> Tensor:
        return self._each(values, "pixel_variance")

    def symmetrise(self, v: Tensor) -> Tensor:
        return self._each(v, "symmetrise")

    def check_size(self, height: int, width: int) -> None:
        for basis, _ in self.parts:
            basis.check_size(height, width)

    def rows(self, index: Tensor) -> Basis:
        picked = torch.arange(len(self.index))[index.cpu()]
        rest = self.index[picked]
        present = set(rest.tolist())
        return self.bases[present.pop()] if len(present) == 1 else Mixed(self.bases, rest)


def coherence(basis: Basis, values: Tensor) -> Tensor:
    """‖V‖²_F/‖diag V‖² of V = Bᵀ diag(values) B, (B, C, 1, 1): 1 where errors are independent between pixels, up to H·W."""
    return values.square().sum((2, 3), keepdim=True) / basis.pixel_variance(values).square().sum((2, 3), keepdim=True)


def as_basis(basis: Basis | str) -> Basis:
    """A basis from its name: ``"pixel"``, ``"fourier"``, ``"dct2"``, ``"dct4"``, …"""
    if isinstance(basis, Basis):
        return basis
    if basis == "pixel":
        return Pixel()
    if basis == "fourier":
        return Fourier()
    if basis.startswith("dct") and basis[3:].isdigit():
        return BlockDCT(int(basis[3:]))
    raise ValueError(f"unknown basis {basis!r}: wanted 'pixel', 'fourier' or 'dctF' with F the block side, such as 'dct2'")
