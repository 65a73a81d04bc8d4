"""Covariances that are diagonal in a real orthonormal basis.

Every noise in this package is N(0, Σ) with Σ = Bᵀ diag(λ) B, where B is a real orthogonal matrix and λ > 0 a *variance* per
coordinate. Three bases are enough for inpainting (pixel), blur (Fourier) and super-resolution (block DCT).

Fourier convention, stated once. A spectrum is given on the grid of the unitary 2-D DFT (``norm="ortho"``), all H·W frequencies in
FFT order, and must be even, λ(k) = λ(−k). For an even spectrum Fᴴ diag(λ) F = Hᵀ diag(λ) H with H = Re F − Im F, the Hartley
transform, which is real, orthonormal, symmetric and its own inverse. Coordinates are therefore Hartley coefficients: real, H·W of
them, independent under stationary Gaussian noise, and sums over coordinates equal sums over all H·W complex frequencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.random import Generators, normal

__all__ = ["Basis", "BlockDCT", "Covariance", "Fourier", "Mixed", "Pixel", "as_basis", "coherence"]


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


@dataclass(frozen=True, eq=False, init=False)
class Covariance:
    """Σ = Bᵀ diag(λ) B for a batch of images.

    Arguments:
        values: variances λ > 0, (B, C, H, W); for Fourier on the FFT grid and even.
        basis: a :class:`Basis` or its name; :class:`Mixed` for a basis per image.
        check: validate (finite, positive, even, size). Costs one pass; code that builds valid values may skip it.

    Raises:
        ValueError: a value that is not finite and positive, a spectrum that is not even, a size the basis has not.
    """

    values: Tensor
    basis: Basis

    def __init__(self, values: Tensor, basis: Basis | str = "pixel", check: bool = True) -> None:
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "basis", as_basis(basis))
        if check:
            self._check()

    def _check(self) -> None:
        v = self.values
        if not isinstance(v, Tensor) or not v.is_floating_point():
            raise ValueError(f"covariance: wanted a tensor of floats, got {v.dtype if isinstance(v, Tensor) else type(v).__name__}")
        if v.ndim != 4:
            raise ValueError(f"covariance: values must have shape (B, C, H, W), got {tuple(v.shape)}")
        if not v.numel():
            raise ValueError(f"covariance: wanted at least one variance, got an empty tensor of shape {tuple(v.shape)}")
        self.basis.check_size(v.shape[-2], v.shape[-1])
        if not bool((torch.isfinite(v) & (v > 0)).all()):
            raise ValueError("covariance: every variance must be finite and > 0")
        odd = (v - self.basis.symmetrise(v)).abs()
        if not bool((odd <= 1e-4 * v).all()):
            raise ValueError("covariance: a Fourier spectrum must be even, λ(k) = λ(−k)")

    @classmethod
    def white(cls, variance: float | Tensor, shape: Sequence[int], basis: Basis | str = "pixel", like: Tensor | None = None) -> Covariance:
        """σ² I for images of ``shape`` (B, C, H, W), described in ``basis``; ``variance`` a number or (B,).

        Raises:
            ValueError: another shape, or variances that are not positive or not as many as images.
        """
        if len(shape) != 4 or not all(isinstance(side, int) and side >= 1 for side in shape):
            raise ValueError(f"shape: wanted (B, C, H, W) of whole numbers >= 1, got {tuple(shape)}")
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        v = torch.as_tensor(variance, dtype=dtype, device=device)
        v = v if v.is_floating_point() else v.to(torch.get_default_dtype())
        if v.ndim > 1 or v.numel() not in (1, shape[0]):
            raise ValueError(f"variance: wanted a number or one an image, ({shape[0]},), got shape {tuple(v.shape)}")
        return cls(v.reshape(-1, 1, 1, 1).expand(tuple(shape)).contiguous(), basis)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def replace(self, values: Tensor) -> Covariance:
        """Other variances in the same basis, unchecked."""
        return Covariance(values, self.basis, check=False)

    def power(self, p: float) -> Covariance:
        """Σᵖ."""
        return self.replace(self.values.pow(p))

    def apply(self, x: Tensor, p: float = 1.0) -> Tensor:
        """Σᵖ x for images x, (B, C, H, W)."""
        return self.basis.inverse(self.basis.forward(x) * self.values.pow(p))

    def logdet(self) -> Tensor:
        """log det Σ, (B,)."""
        return self.values.log().flatten(1).sum(1)

    def norm2(self, x: Tensor, p: float = -1.0) -> Tensor:
        """xᵀ Σᵖ x, (B,); p = −1 is the squared Mahalanobis norm."""
        return (self.basis.forward(x).square() * self.values.pow(p)).flatten(1).sum(1)

    def sample(self, generators: Generators = None) -> Tensor:
        """A draw of N(0, Σ) in image space, (B, C, H, W)."""
        return self.color(normal(self.values.shape, generators, self.values))

    def color(self, noise: Tensor) -> Tensor:
        """Bᵀ Λ^{1/2} ε in image space from coordinates ε of white noise, (B, C, H, W)."""
        return self.basis.inverse(self.values.sqrt() * noise)

    def is_white(self) -> bool:
        """Whether every image's variances are all equal, so that every basis describes the same noise."""
        flat = self.values.flatten(1)
        return bool((flat == flat[:, :1]).all())

    def to_basis(self, basis: Basis | str) -> Covariance:
        """The same white noise described in another basis; anything else is not diagonal there.

        Raises:
            ValueError: the noise is not white and the basis differs.
        """
        basis = as_basis(basis)
        if basis == self.basis:
            return self
        if not self.is_white():
            raise ValueError(f"covariance: only white noise is diagonal in both {self.basis.name!r} and {basis.name!r}")
        return Covariance(self.values, basis)

    def __getitem__(self, index: Tensor | slice) -> Covariance:
        """The covariances of some images of the batch."""
        rows = torch.arange(len(self.values))[index]
        return Covariance(self.values[rows.to(self.values.device)], self.basis.rows(rows), check=False)

    def expand(self, batch: int) -> Covariance:
        """One covariance repeated for a batch, (1, C, H, W) to (B, C, H, W)."""
        if len(self.values) == batch:
            return self
        if len(self.values) != 1:
            raise ValueError(f"covariance: wanted a batch of 1 or {batch}, got {len(self.values)}")
        return Covariance(self.values.expand(batch, -1, -1, -1), self.basis.rows(torch.zeros(batch, dtype=torch.long)), check=False)

    def to(self, *args, **kwargs) -> Covariance:
        """Values moved or cast as by :meth:`torch.Tensor.to`."""
        return self.replace(self.values.to(*args, **kwargs))
