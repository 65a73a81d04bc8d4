"""Covariances that are diagonal in a real orthonormal basis.

Every noise in this package is N(0, Σ) with Σ = Bᵀ diag(λ) B, where B is one of :mod:`anem.bases` and λ > 0 a *variance* per coordinate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Basis, as_basis
from anem.random import Generators, normal

__all__ = ["Covariance"]


@dataclass(frozen=True, eq=False, init=False)
class Covariance:
    """Σ = Bᵀ diag(λ) B for a batch of images.

    Arguments:
        values: variances λ > 0, (B, C, H, W); for Fourier on the FFT grid and even.
        basis: a :class:`Basis` or its name; :class:`~anem.bases.Mixed` for a basis per image.
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
        rows = torch.arange(len(self.values))[index.cpu() if isinstance(index, Tensor) else index]
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
