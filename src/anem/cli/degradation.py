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

OWN = ("box", "missing", "kernel_size", "std", "length", "angle")
"""Options that only some tasks have: the names in :data:`anem.operators.SETTINGS`, without an import of torch."""


@dataclass
class Degradation:
    """what happened to the images: m = H x + sigma v, v white noise"""

    task: Annotated[str | None, arg(metavar="TASK", help=f"degrade clean images: {TASKS}", help_behavior_hint="")] = None
    measured: Flag = False
    """the images are already degraded by --task"""
    mask: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the images are real, with pixels missing where this picture is dark (less than half of white), or this .npy array 0"""
    kernel: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """the images are real, blurred by this kernel: a grey picture (then normalised) or .npy; borders wrap around"""
    scale: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """the images are real, averaged over N x N blocks"""
    sigma: Annotated[float | None, arg(metavar="STD", help_behavior_hint="(default: 0.05; needed for real images)")] = None
    """standard deviation of the noise; pixels are in [0, 1]"""
    box: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: half; a third)")] = None
    """side of the hidden box, height of the hidden band"""
    missing: Annotated[float | None, arg(metavar="SHARE", help_behavior_hint="(default: 0.8)")] = None
    """hidden share of inpaint-random"""
    kernel_size: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 8)")] = None
    """side of deblur's kernel"""
    std: Annotated[float | None, arg(metavar="PIXELS", help_behavior_hint="(default: 0.8)")] = None
    """standard deviation of deblur's kernel"""
    length: Annotated[float | None, arg(metavar="PIXELS", help_behavior_hint="(default: 5)")] = None
    """of deblur-motion"""
    angle: Annotated[float | None, arg(metavar="DEGREES", help_behavior_hint="(default: 45)")] = None
    """of deblur-motion, from the horizontal"""

    def check(self, noise_known: bool = False) -> None:
        """Raise ValueError unless exactly one degradation is given, with its noise, if that is not known otherwise."""
        from anem.operators import SETTINGS

        if len(self.given()) != 1:
            raise ValueError(f"degradation: wanted one of --task, --mask, --kernel, --scale, got {' and '.join(self.given()) or 'none'}")
        if self.measured and self.task is None:
            raise ValueError("--measured: goes with --task; --mask, --kernel and --scale are for real images anyway")
        if self.measured and self.task == "inpaint-random":
            raise ValueError(
                "--task: inpaint-random hides other pixels for every seed; measurements want --mask, the mask.npy of 'anem restore'"
            )
        for name in OWN:
            if getattr(self, name) is not None and name not in SETTINGS.get(self.task or "", ()):
                tasks = " or ".join(task for task, own in SETTINGS.items() if name in own)
                raise ValueError(f"--{name.replace('_', '-')}: goes with --task {tasks}")
        if self.real and self.sigma is None and not noise_known:
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
    def settings(self) -> dict[str, float | None]:
        """The settings of the task, as given or by default."""
        from anem.operators import SETTINGS

        own = SETTINGS.get(self.task or "", {})
        return {name: default if getattr(self, name) is None else getattr(self, name) for name, default in own.items()}

    @property
    def noise(self) -> float:
        """Standard deviation of the noise."""
        return 0.05 if self.sigma is None else self.sigma

    def operator(self, shape: tuple[int, ...], seed: int) -> LinearOperator:
        """H for images, or measurements if they are real, of ``shape`` (B, C, H, W)."""
        from anem.cli.inputs import read_kernel, read_mask_file
        from anem.operators import Inpainting, KernelBlur, SuperResolution, make_operator

        if self.mask is not None:
            return Inpainting(read_mask_file(self.mask))
        if self.kernel is not None:
            return KernelBlur(read_kernel(self.kernel))
        if self.scale is not None:
            if not 2 <= self.scale <= 64:
                raise ValueError(f"--scale: wanted between 2 and 64, got {self.scale}")
            return SuperResolution(self.scale)
        task = self.task or ""
        shrunk = int(task[2:]) if self.measured and task in ("sr2", "sr4") else 1
        return make_operator(task, (shape[-2] * shrunk, shape[-1] * shrunk), seed=seed, **self.settings)

    def apply(self, images: Tensor, operator: LinearOperator, generators: Generators) -> Tensor:
        """The measurements: the images themselves if they are real."""
        return images if self.real else operator.measure(images, self.noise, generators)

    def record(self) -> dict:
        """What a result's record says about the degradation."""
        files = {name: str(getattr(self, name)) for name in ("mask", "kernel") if getattr(self, name) is not None}
        scale = {} if self.scale is None else {"scale": self.scale}
        task = {} if self.task is None else {"task": self.task, "measured": self.measured}
        return task | files | scale | self.settings | {"sigma": self.noise}
