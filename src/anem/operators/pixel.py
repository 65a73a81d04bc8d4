"""Degradations that are diagonal in pixels: none (denoising) and masks (inpainting, demosaicing, vignetting)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anem.bases import Pixel
from anem.operators.base import LinearOperator
from anem.random import Generators

__all__ = ["Identity", "Inpainting", "inside_box"]


def inside_box(size: Sequence[int], top: int | Tensor, left: int | Tensor, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Indicator of a rectangle, bool (P, 1, H, W), true inside. ``size`` ends in (H, W); positions and sides are numbers or (P,)."""
    y, x = torch.arange(size[-2])[:, None], torch.arange(size[-1])[None, :]
    t, s, h, w = (torch.as_tensor(v).cpu().reshape(-1, 1, 1, 1) for v in (top, left, height, width))
    outside = (torch.stack(torch.broadcast_tensors(t, s, h, w)) < 0).any(0) | (t + h > size[-2]) | (s + w > size[-1])
    if bool(outside.any()):
        first = [int(v.expand_as(outside)[outside][0]) for v in (t, s, h, w)]
        got = "top {}, left {}, height {}, width {}".format(*first)
        raise ValueError(f"box: wanted a rectangle inside {size[-2]} x {size[-1]}, got {got}")
    return (y >= t) & (y < t + h) & (x >= s) & (x < s + w)


class _Pixelwise(LinearOperator):
    diagonal_noise_maps = True
    basis = Pixel()

    def coordinates(self, m: Tensor) -> Tensor:
        return m

    def _forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h * x

    def _adjoint(self, m: Tensor, h: Tensor) -> Tensor:
        return h * m


class Identity(_Pixelwise):
    """H = I: denoising. With a map for σ, noise that differs from place to place (all pixels are measured)."""

    name = "identity"
    is_identity = True

    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        one = torch.ones(1, 1, 1, 1) if like is None else like.new_ones(1, 1, 1, 1)
        return one.expand(1, 1, *shape[-2:])


class Inpainting(_Pixelwise):
    """H = diag(mask): pixels of mask 0 are hidden, 1 seen, anything between attenuated.

    Arguments:
        mask: tensor or array of booleans or of numbers from 0 to 1, of shape (H, W), (C or 1, H, W) or (P, C or 1, H, W); a mask per
            channel is a mosaic. Of an 8-bit picture it is ``picture > 127``.
        hidden_measured: whether the hidden pixels of a measurement hold noise of the same σ, which then counts in the evidence. By
            default they were never measured: :meth:`measure` leaves them 0 and their values in a measurement are ignored. Masks are
            comparable by evidence only if every one of them leaves the same pixels measured.
    """

    name = "inpainting"

    def __init__(self, mask: Tensor, hidden_measured: bool = False) -> None:
        try:
            mask = torch.as_tensor(mask)
        except (RuntimeError, TypeError):
            raise ValueError(f"mask: wanted a tensor or an array, got {type(mask).__name__}") from None
        if mask.ndim not in (2, 3, 4):
            raise ValueError(f"mask: wanted shape (H, W), (C, H, W) or (P, C, H, W), got {tuple(mask.shape)}")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError(f"mask: wanted values from 0 (hidden) to 1 (seen), got {float(mask.min()):g} to {float(mask.max()):g}")
        self.mask = mask[(None,) * (4 - mask.ndim)]
        self.hidden_measured = hidden_measured

    @classmethod
    def box(
        cls,
        size: Sequence[int],
        top: int | Tensor,
        left: int | Tensor,
        height: int | Tensor,
        width: int | Tensor,
        hidden_measured: bool = False,
    ) -> Inpainting:
        """A hidden rectangle, or P of them; arguments as of :func:`inside_box`."""
        return cls(~inside_box(size, top, left, height, width), hidden_measured)

    @classmethod
    def centre_box(cls, size: Sequence[int], side: int | Tensor) -> Inpainting:
        """A hidden square in the middle (half a pixel up and left of it if it cannot be centred)."""
        return cls.box(size, (size[-2] - side) // 2, (size[-1] - side) // 2, side, side)

    @classmethod
    def horizontal(cls, size: Sequence[int], height: int, top: int | None = None) -> Inpainting:
        """A hidden band of full width, in the middle unless ``top`` is given."""
        return cls.box(size, (size[-2] - height) // 2 if top is None else top, 0, height, size[-1])

    @classmethod
    def half(cls, size: Sequence[int], side: str = "right") -> Inpainting:
        """A hidden half: ``side`` is "left", "right", "top" or "bottom"."""
        h, w = size[-2:]
        boxes = {
            "left": (0, 0, h, w // 2),
            "right": (0, w - w // 2, h, w // 2),
            "top": (0, 0, h // 2, w),
            "bottom": (h - h // 2, 0, h // 2, w),
        }
        if side not in boxes:
            raise ValueError(f"side: wanted one of {', '.join(boxes)}, got {side!r}")
        return cls.box(size, *boxes[side])

    @classmethod
    def random(cls, size: Sequence[int], missing: float, seed: int | Sequence[int] = 0) -> Inpainting:
        """round(missing · H·W) hidden pixels at random places, the same in all channels; a sequence of P seeds gives P masks."""
        if not 0 <= missing <= 1:
            raise ValueError(f"missing: wanted a fraction between 0 and 1, got {missing}")
        h, w = size[-2:]
        rows = []
        for s in seed if isinstance(seed, Sequence) else (seed,):
            order = torch.randperm(h * w, generator=torch.Generator().manual_seed(int(s)))
            rows.append((order >= round(missing * h * w)).reshape(1, h, w))
        return cls(torch.stack(rows))

    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        if tuple(self.mask.shape[-2:]) != tuple(shape[-2:]):
            raise ValueError(
                f"mask: wanted the image's size {shape[-2]} x {shape[-1]}, got a mask of {self.mask.shape[-2]} x {self.mask.shape[-1]}"
            )
        if like is not None:
            return self.mask.to(like)
        return self.mask if self.mask.is_floating_point() else self.mask.to(torch.get_default_dtype())

    def measured(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return super().measured(shape, like) if self.hidden_measured else (self.mask > 0).to(like.device)

    def coordinates(self, m: Tensor) -> Tensor:
        return torch.where(self.measured(m.shape, m), m, 0.0)

    def measure(self, x: Tensor, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        return self.coordinates(super().measure(x, sigma, generators))

    def visualise(self, m: Tensor) -> Tensor:
        """The measurement with hidden pixels in mid-grey."""
        return torch.where(self.response(m.shape, m) > 0, m, 0.5)

    def _after(self, inner: LinearOperator) -> LinearOperator | None:
        if not isinstance(inner, Inpainting):
            return None
        return Inpainting(self.mask * inner.mask, self.hidden_measured and inner.hidden_measured)
