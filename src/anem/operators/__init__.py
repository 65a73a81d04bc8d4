"""Linear degradations m = H x + σ v, each diagonal in one orthonormal basis, and what a measurement says about the image."""

from anem.operators.base import LinearOperator, Observation
from anem.operators.blur import Blur, Convolution, GaussianBlur, KernelBlur, MotionBlur
from anem.operators.pixel import Identity, Inpainting, inside_box
from anem.operators.superresolution import BlockMean, BoxMean, SuperResolution
from anem.operators.tasks import SETTINGS, TASKS, make_operator

__all__ = [
    "SETTINGS",
    "TASKS",
    "BlockMean",
    "Blur",
    "BoxMean",
    "Convolution",
    "GaussianBlur",
    "Identity",
    "Inpainting",
    "KernelBlur",
    "LinearOperator",
    "MotionBlur",
    "Observation",
    "SuperResolution",
    "inside_box",
    "make_operator",
]
