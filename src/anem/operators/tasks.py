"""Degradations by name, as on the command line."""

from __future__ import annotations

from collections.abc import Sequence

from anem.operators.base import LinearOperator
from anem.operators.blur import GaussianBlur, MotionBlur
from anem.operators.pixel import Identity, Inpainting
from anem.operators.superresolution import SuperResolution

__all__ = ["TASKS", "make_operator"]

TASKS = (
    "denoise",
    "inpaint-box",
    "inpaint-horizontal",
    "inpaint-half",
    "inpaint-random",
    "deblur",
    "deblur-motion",
    "sr2",
    "sr4",
    "sr2-fourier",
    "sr4-fourier",
)
"""Names that :func:`make_operator` knows."""


def make_operator(
    task: str,
    image_shape: Sequence[int],
    *,
    box: int | None = None,
    missing: float = 0.8,
    seed: int | Sequence[int] = 0,
    kernel_size: int = 8,
    std: float = 0.8,
    length: float = 5.0,
    angle: float = 45.0,
) -> LinearOperator:
    """The operator of a task in :data:`TASKS` for images of a given shape.

    Arguments:
        task: its name.
        image_shape: ends in (H, W).
        box: side of the hidden centre box (half the shorter side if None) or height of the hidden horizontal band (a third).
        missing, seed: hidden fraction and seed of the random mask.
        kernel_size, std: side and standard deviation of the Gaussian blur, in pixels.
        length, angle: of the motion blur, in pixels and degrees.

    Raises:
        ValueError: an unknown task, or settings that do not fit the image.
    """
    height, width = image_shape[-2:]
    match task:
        case "denoise":
            return Identity()
        case "inpaint-box":
            return Inpainting.centre_box(image_shape, min(height, width) // 2 if box is None else box)
        case "inpaint-horizontal":
            return Inpainting.horizontal(image_shape, height // 3 if box is None else box)
        case "inpaint-half":
            return Inpainting.half(image_shape)
        case "inpaint-random":
            return Inpainting.random(image_shape, missing, seed)
        case "deblur":
            operator: LinearOperator = GaussianBlur(kernel_size, std)
        case "deblur-motion":
            if not length <= height + width:
                raise ValueError(f"length: wanted a motion blur no longer than the image, {height} x {width}, got {length}")
            operator = MotionBlur(length, angle)
        case "sr2" | "sr4":
            operator = SuperResolution(int(task[2:]))
        case "sr2-fourier" | "sr4-fourier":
            operator = SuperResolution(int(task[2]), form="fourier")
        case _:
            raise ValueError(f"task: wanted one of {', '.join(TASKS)}, got {task!r}")
    operator.response(image_shape)  # refuses settings that do not fit the image
    return operator
