"""Super-resolution by an integer factor f, in two forms.

"block": m is the image averaged over f × f blocks. Exactly diagonal in the orthonormal block DCT: f times a block mean is the block's
coefficient (0, 0), so h = 1/f there, λ = σ²f², and the other f² − 1 coefficients were never measured.

"fourier": m is the f × f box filter's output at every pixel, at full size, as in Zilberstein et al. (arXiv 2605.15487); decimation
would alias and is not diagonal in Fourier.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anem.bases import BlockDCT
from anem.operators.base import LinearOperator
from anem.operators.blur import Blur

__all__ = ["BlockMean", "BoxMean", "SuperResolution"]


class BlockMean(LinearOperator):
    """Averages over the f × f blocks of an image whose sides are multiples of f."""

    diagonal_noise_maps = True

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.basis = BlockDCT(factor)
        self.name = f"super-resolution x{factor} (block)"

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        *rest, height, width = image_shape
        self.basis.check_size(height, width)
        return (*rest, height // self.factor, width // self.factor)

    def image_shape(self, measurement_shape: Sequence[int]) -> tuple[int, ...]:
        *rest, height, width = measurement_shape
        return (*rest, height * self.factor, width * self.factor)

    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        height, width = self.measurement_shape(shape)[-2:]
        one = torch.ones(1) if like is None else like.new_ones(1)
        return self.coordinates(one.expand(1, 1, height, width)) / self.factor

    def coordinates(self, m: Tensor) -> Tensor:
        spread = torch.nn.functional.pad(m[..., :, None, :, None], (0, self.factor - 1, 0, 0, 0, self.factor - 1))
        return spread.reshape(self.image_shape(m.shape))

    def measured(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return self.response(shape, like) > 0

    def visualise(self, m: Tensor) -> Tensor:
        """Every measured pixel as an f × f square."""
        return m.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)

    def _forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, self.factor)

    def _adjoint(self, m: Tensor, h: Tensor) -> Tensor:
        return self.visualise(m) / self.factor**2


class BoxMean(Blur):
    """The f × f box filter at every pixel, circular and at full size."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.name = f"super-resolution x{factor} (fourier)"

    def kernel(self) -> Tensor:
        return torch.full((1, 1, self.factor, self.factor), self.factor**-2.0, dtype=torch.float64)


def SuperResolution(factor: int, form: str = "block") -> BlockMean | BoxMean:
    """The operator of either form by name.

    Arguments:
        factor: f ≥ 2.
        form: "block" (measurement (B, C, H/f, W/f), image sides multiples of f) or "fourier" (measurement of the image's size).
    """
    forms: dict[str, type[BlockMean] | type[BoxMean]] = {"block": BlockMean, "fourier": BoxMean}
    if form not in forms:
        raise ValueError(f"form: wanted 'block' or 'fourier', got {form!r}")
    if not isinstance(factor, int) or factor < 2:
        raise ValueError(f"factor: wanted an integer >= 2, got {factor}")
    return forms[form](factor)
