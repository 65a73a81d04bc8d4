"""Degradations by name, as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anem.operators.base import LinearOperator
from anem.operators.blur import GaussianBlur, MotionBlur
from anem.operators.pixel import Identity, Inpainting
from anem.operators.superresolution import SuperResolution

__all__ = ["SETTINGS", "TASKS", "make_operator"]

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

SETTINGS: dict[str, dict[str, Any]] = {
    "inpaint-box": {"box": None},
    "inpaint-horizontal": {"box": None},
    "inpaint-random": {"missing": 0.8},
    "deblur": {"kernel_size": 8, "std": 0.8},
    "deblur-motion": {"length": 5.0, "angle": 45.0},
}
"""The settings of tasks that have some, and what they are unless given (None: by the size of the image)."""


def make_operator(
    task: str,
    image_shape: Sequence[int],
    *,
    box: int | None = None,
    missing: float | None = None,
    seed: int | Sequence[int] = 0,
    kernel_size: int | None = None,
    std: float | None = None,
    length: float | None = None,
    angle: float | None = None,
) -> LinearOperator:
    """The operator of a task in :data:`TASKS` for images of a given shape.

    Arguments:
        task: its name.
        image_shape: ends in (H, W).
        box: side of the hidden centre box (half the shorter side if None) or height of the hidden horizontal band (a third).
        missing, seed: hidden fraction (0.8 if None) and seed of the random mask.
        kernel_size, std: side and standard deviation of the Gaussian blur, in pixels (8 and 0.8).
        length, angle: of the motion blur, in pixels and degrees (5 and 45).

    Raises:
        ValueError: an unknown task, a setting that the task has not, or settings that do not fit the image.
    """
    if task not in TASKS:
        raise ValueError(f"task: wanted one of {', '.join(TASKS)}, got {task!r}")
    height, width = image_shape[-2:]
    settings = {"box": box, "missing": missing, "kernel_size": kernel_size, "std": std, "length": length, "angle": angle}
    given = {name: value for name, value in settings.items() if value is not None}
    own = SETTINGS.get(task, {})
    for name in given.keys() - own.keys():
        owners = " or ".join(other for other, names in SETTINGS.items() if name in names)
        raise ValueError(f"{name}: goes with {owners}, not {task}")
    s = own | given
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
            return Inpainting.random(image_shape, s["missing"], seed)
        case "deblur":
            operator: LinearOperator = GaussianBlur(s["kernel_size"], s["std"])
        case "deblur-motion":
            if not s["length"] <= height + width:
                raise ValueError(f"length: wanted a motion blur no longer than the image, {height} x {width}, got {s['length']}")
            operator = MotionBlur(s["length"], s["angle"])
        case "sr2" | "sr4":
            operator = SuperResolution(int(task[2:]))
        case _:
            operator = SuperResolution(int(task[2]), form="fourier")
    operator.response(image_shape)  # refuses settings that do not fit the image
    return operator
