"""Circular convolutions, diagonal in Fourier: Gaussian blur, motion blur, any kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from anem.bases import Fourier
from anem.operators.base import LinearOperator

__all__ = ["Blur", "Convolution", "GaussianBlur", "KernelBlur", "MotionBlur"]


class Convolution(LinearOperator):
    """Any circular convolution, known by its frequency response h(k) = h*(−k), complex.

    Photographs are not periodic: pad and taper them before, or cut a border of the kernel's width off afterwards.
    """

    basis = Fourier()

    def coordinates(self, m: Tensor) -> Tensor:
        h = self.response(m.shape, m)
        safe = torch.where(h == 0, 1.0, h)
        z = torch.fft.fft2(m, norm="ortho") * safe.conj() / safe.abs()
        return z.real - z.imag

    def _forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * h).real

    def _adjoint(self, m: Tensor, h: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(m) * h.conj()).real

    def _after(self, inner: LinearOperator) -> LinearOperator | None:
        return _Cascade(self, inner) if isinstance(inner, Convolution) else None


class _Cascade(Convolution):
    def __init__(self, outer: Convolution, inner: Convolution) -> None:
        self.outer, self.inner = outer, inner
        self.name = f"{outer.name} after {inner.name}"

    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        return self.outer.response(shape, like) * self.inner.response(shape, like)


class Blur(Convolution):
    """(H x)[i] = Σ_j k[j] x[i − j + o] on a torus, with the origin o = (kh//2, kw//2), in H and in its response alike.

    An even kernel therefore shifts by half a pixel, which the division by the complex response undoes.
    """

    @abstractmethod
    def kernel(self) -> Tensor:
        """The kernel, (P, C or 1, kh, kw)."""

    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        k = self.kernel() if like is None else self.kernel().to(like)
        kh, kw = k.shape[-2:]
        height, width = shape[-2:]
        if kh > height or kw > width:
            raise ValueError(f"{self.name}: wanted a kernel no larger than the image, {height} x {width}, got {kh} x {kw}")
        padded = torch.nn.functional.pad(k, (0, width - kw, 0, height - kh)).roll((-(kh // 2), -(kw // 2)), (-2, -1))
        h = torch.fft.fft2(padded)
        # Exactly Hermitian, and exactly zero below the resolution of the transform, where a phase would be noise.
        h = 0.5 * (h + h.conj().flip(-2, -1).roll((1, 1), (-2, -1)))
        noise = 4 * torch.finfo(k.dtype).eps * k.detach().abs().sum((-2, -1), keepdim=True)
        return torch.where(h.detach().abs() > noise, h, 0.0)


class KernelBlur(Blur):
    """Circular convolution with a given kernel, used as it is (not normalised).

    Arguments:
        kernel: tensor or array of floats, finite, of shape (kh, kw), (C or 1, kh, kw) or (P, C or 1, kh, kw).
    """

    name = "kernel blur"

    def __init__(self, kernel: Tensor) -> None:
        kernel = torch.as_tensor(kernel)
        if kernel.ndim not in (2, 3, 4):
            raise ValueError(f"kernel: wanted shape (kh, kw), (C, kh, kw) or (P, C, kh, kw), got {tuple(kernel.shape)}")
        if not kernel.is_floating_point() or not kernel.numel() or not bool(torch.isfinite(kernel).all()):
            raise ValueError("kernel: wanted finite floating-point values, at least one")
        self._kernel = kernel[(None,) * (4 - kernel.ndim)]

    def kernel(self) -> Tensor:
        return self._kernel


def _parameter(name: str, value: float | Tensor, positive: bool = False) -> Tensor:
    """A number or (P,) tensor as (P,), the graph kept; numbers become float64."""
    v = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    if v.ndim > 1 or not bool(torch.isfinite(v).all()) or (positive and not bool((v > 0).all())):
        raise ValueError(f"{name}: wanted a finite number{' > 0' if positive else ''} or a tensor (P,) of them, got {value}")
    return v.reshape(-1)


class GaussianBlur(Blur):
    """Circular blur by a sampled, truncated and normalised Gaussian, centred on the kernel.

    Arguments:
        size: kernel side, or (kh, kw). The paper's blur is 8 × 8 with standard deviation 0.8.
        std: standard deviation in pixels, > 0, a number or (P,); differentiable.
    """

    name = "Gaussian blur"

    def __init__(self, size: int | tuple[int, int] = 8, std: float | Tensor = 0.8) -> None:
        sides = (size, size) if isinstance(size, int) else size
        if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
            raise ValueError(f"size: wanted a whole kernel side >= 1 or two of them, got {size!r}")
        self.size = tuple(sides)
        _parameter("std", std, positive=True)
        self.std = std

    def kernel(self) -> Tensor:
        std = _parameter("std", self.std, positive=True)
        rows, columns = (torch.softmax(-0.5 * ((torch.arange(n).to(std) - (n - 1) / 2) / std[:, None]).square(), dim=1) for n in self.size)
        return (rows[:, :, None] * columns[:, None, :])[:, None]


class MotionBlur(Blur):
    """Time average of the image while it moves uniformly along a segment, each shift bilinear.

    The average is exact: between the times at which the image passes whole pixels it is a quadratic of time, for which two points of
    Gauss and Legendre suffice. So a kernel is a smooth function of length and angle, and the same whatever batch it is in.

    Arguments:
        length: distance moved during the exposure, in pixels, ≥ 0 (0 is no blur), a number or (P,); differentiable.
        angle: direction in degrees, counter-clockwise from the horizontal, a number or (P,); differentiable.
    """

    name = "motion blur"

    def __init__(self, length: float | Tensor, angle: float | Tensor) -> None:
        if not bool((_parameter("length", length) >= 0).all()):
            raise ValueError(f"length: wanted a distance >= 0 in pixels, got {length}")
        _parameter("angle", angle)
        self.length, self.angle = length, angle

    def kernel(self) -> Tensor:
        angle = _parameter("angle", self.angle)[:, None].deg2rad()
        length = _parameter("length", self.length)[:, None].to(angle.device)
        ends = (-0.5 * length * angle.sin(), 0.5 * length * angle.cos())  # rows count downwards, angles turn upwards
        # Pixels that a shift reaches at all; one below 1e-6 pixel, the rounding of sin 180°, reaches none.
        reach = [(end.detach().abs() - 1e-6).ceil() for end in ends]
        offsets = [torch.arange(-int(r.max()), int(r.max()) + 1).to(length) for r in reach]
        knots = (
            torch.cat([_crossings(end, at) for end, at in zip(ends, offsets, strict=True)] + [-torch.ones_like(length)], 1).sort(1).values
        )
        pieces = knots.diff(dim=1, append=torch.ones_like(length)) / 2
        time = torch.cat([knots + pieces * (1 + sign / 3**0.5) for sign in (-1, 1)], 1)
        rows, columns = (
            torch.where(at.abs() <= r, (1 - (at - end * time[..., None]).abs()).clamp_min(0), 0.0)
            for at, end, r in zip(offsets, (e[..., None] for e in ends), (r[..., None] for r in reach), strict=True)
        )
        kernel = torch.einsum("pt,pti,ptj->pij", pieces.repeat(1, 2) / 2, rows, columns)[:, None]
        return kernel / kernel.sum((-2, -1), keepdim=True)


def _crossings(end: Tensor, at: Tensor) -> Tensor:
    """Times in [−1, 1] at which a shift of ``end`` · time, (P, 1), is a whole number ``at`` of pixels, (n,): (P, n), or 1 if never."""
    inside = at.abs() < end.detach().abs()
    return torch.where(inside, at / torch.where(inside, end, 1.0), 1.0)
