"""The options that say what happened to an image: a task by name, or what is known of a real measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from anem.cli.options import Flag

if TYPE_CHECKING:
    from torch import Tensor

    from anem.operators import LinearOperator
    from anem.random import Generators

TASKS = "denoise, inpaint-box, inpaint-horizontal, inpaint-half, inpaint-random, deblur, deblur-motion, sr2, sr4, sr2-fourier, sr4-fourier"


@dataclass
class Degradation:
    """what happened to the images: m = H x + sigma v, v white noise"""

    task: Annotated[str | None, arg(metavar="TASK", help=f"degrade clean images: {TASKS}", help_behavior_hint="")] = None
    measured: Flag = False
    """the images are already degraded by --task"""
    mask: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the images are real, with pixels missing where this picture is dark"""
    kernel: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the images are real, blurred by this kernel: a grey picture (then normalised) or .npy; borders wrap around"""
    scale: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """the images are real, averaged over N x N blocks"""
    sigma: Annotated[float | None, arg(metavar="STD", help_behavior_hint="(default: 0.05; needed for real images)")] = None
    """standard deviation of the noise; pixels are in [0, 1]"""
    box: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: half; a third)")] = None
    """side of the hidden box, height of the hidden band"""
    missing: Annotated[float, arg(metavar="SHARE")] = 0.8
    """hidden share of inpaint-random"""
    size: Annotated[int, arg(metavar="N")] = 8
    """side of deblur's kernel"""
    std: Annotated[float, arg(metavar="PIXELS")] = 0.8
    """standard deviation of deblur's kernel"""
    length: Annotated[float, arg(metavar="PIXELS")] = 5.0
    """of deblur-motion"""
    angle: Annotated[float, arg(metavar="DEGREES")] = 45.0
    """of deblur-motion, from the horizontal"""

    def check(self) -> None:
        """Raise ValueError unless exactly one degradation is given, with its noise."""
        if len(self.given()) != 1:
            raise ValueError(f"degradation: wanted one of --task, --mask, --kernel, --scale, got {' and '.join(self.given()) or 'none'}")
        if self.measured and self.task is None:
            raise ValueError("--measured: goes with --task; --mask, --kernel and --scale are for real images anyway")
        if self.box is not None and self.task not in ("inpaint-box", "inpaint-horizontal"):
            raise ValueError("--box: goes with --task inpaint-box or inpaint-horizontal")
        if self.real and self.sigma is None:
            raise ValueError("--sigma: wanted the standard deviation of the noise, which a real image does not tell; 0 is 8-bit rounding")
        if self.sigma is not None and not 0 <= self.sigma < float("inf"):
            raise ValueError(f"--sigma: wanted a standard deviation >= 0, got {self.sigma}")

    def given(self) -> list[str]:
        """The degradations given."""
        return [f"--{name}" for name in ("task", "mask", "kernel", "scale") if getattr(self, name) is not None]

    @property
    def real(self) -> bool:
        """Whether the images are measurements, not clean."""
        return self.measured or self.task is None

    @property
    def noise(self) -> float:
        """Standard deviation of the noise."""
        return 0.05 if self.sigma is None else self.sigma

    def operator(self, shape: tuple[int, ...], seed: int) -> LinearOperator:
        """H for images, or measurements if they are real, of ``shape`` (B, C, H, W)."""
        from anem.images import read_mask
        from anem.operators import Inpainting, KernelBlur, SuperResolution, make_operator

        if self.mask is not None:
            return Inpainting(read_mask(self.mask)[0])
        if self.kernel is not None:
            return KernelBlur(read_kernel(self.kernel))
        if self.scale is not None:
            if not 1 <= self.scale <= 64:
                raise ValueError(f"--scale: wanted between 1 and 64, got {self.scale}")
            return SuperResolution(self.scale)
        task = self.task or ""
        shrunk = int(task[2:]) if self.measured and task in ("sr2", "sr4") else 1
        return make_operator(
            task,
            (shape[-2] * shrunk, shape[-1] * shrunk),
            box=self.box,
            missing=self.missing,
            seed=seed,
            kernel_size=self.size,
            std=self.std,
            length=self.length,
            angle=self.angle,
        )

    def apply(self, images: Tensor, operator: LinearOperator, generators: Generators) -> Tensor:
        """The measurements: the images themselves if they are real."""
        return images if self.real else operator.measure(images, self.noise, generators)

    def record(self) -> dict:
        """What a result's record says about the degradation."""
        settings = {
            "inpaint-box": ("box",),
            "inpaint-horizontal": ("box",),
            "inpaint-random": ("missing",),
            "deblur": ("size", "std"),
            "deblur-motion": ("length", "angle"),
        }
        names = settings.get(self.task or "", ())
        files = {name: str(getattr(self, name)) for name in ("mask", "kernel") if getattr(self, name) is not None}
        scale = {} if self.scale is None else {"scale": self.scale}
        task = {} if self.task is None else {"task": self.task, "measured": self.measured}
        return task | files | scale | {name: getattr(self, name) for name in names} | {"sigma": self.noise}


def read_kernel(path: Path) -> Tensor:
    """A blur kernel (kh, kw), float64: a grey picture, normalised to sum 1, or a ``.npy`` array as it is.

    Raises:
        ValueError: not two axes, not finite, or a picture that is black all over.
    """
    import torch

    from anem.cli.files import read_npy
    from anem.images import read_array

    if path.suffix.lower() == ".npy":
        array = read_npy(path)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or array.size == 0:
            raise ValueError(f"{path}: wanted a kernel (height, width) of numbers, got {array.dtype} of shape {array.shape}")
        if not array.any():
            raise ValueError(f"{path}: wanted a kernel with numbers other than 0, got zeros")
        return torch.from_numpy(array.astype("float64"))
    kernel = torch.from_numpy(read_array(path, channels=1)[..., 0].astype("float64"))
    if not kernel.sum() > 0:
        raise ValueError(f"{path}: wanted a kernel with some light in it, got a black picture")
    return kernel / kernel.sum()
