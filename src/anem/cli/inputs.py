"""Images, masks and kernels that the commands are given: read for a model, and looked at for what would make its figures wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anem.cli.files import RECORD
from anem.cli.options import note
from anem.data.readers import IMAGE_SUFFIXES
from anem.images import from_integers, read_array, read_mask, to_tensor

if TYPE_CHECKING:
    from anem.energy import EnergyModel
    from anem.operators import LinearOperator, Observation

CLIPPED = 0.05
"""Share of seen pixels at either end of the range from which on a picture of noise is said to be clipped."""


def read_clean(paths: Sequence[Path], model: EnergyModel) -> tuple[list[str], Tensor]:
    """Names and intensities in [0, 1], (B, C, H, W), of images of the model's size; as :func:`read_images`."""
    names, images = read_images(paths, len(model.statistics.mean))
    check_size(images.shape, model)
    return names, images


def read_measurements(paths: Sequence[Path], model: EnergyModel) -> tuple[list[str], Tensor]:
    """Names and intensities of measurements, which noise may take out of [0, 1], of any size; as :func:`read_images`."""
    return read_images(paths, len(model.statistics.mean), bounded=False)


def check_size(shape: Sequence[int], model: EnergyModel) -> None:
    """Raise ValueError for images (…, H, W) of another size than those the model was made from, whose energies would mean little."""
    wanted = tuple(model.statistics.spectrum.shape[1:])
    if tuple(shape[-2:]) != wanted:
        raise ValueError(f"images: wanted {wanted[0]} x {wanted[1]}, the size the model is for, got {shape[-2]} x {shape[-1]}")


def check_measurements(names: Sequence[str], measurement: Tensor, operator: LinearOperator, model: EnergyModel, sigma: float) -> None:
    """Raise ValueError for measurements (B, C, h, w) of another size than the model's or operator's; say where noise was clipped."""
    shape = operator.image_shape(measurement.shape)
    check_size(shape, model)
    operator.check_measurement(measurement, sigma)
    if sigma * 256 < 1:
        return  # less than a step of 8 bits: what is at an end of the range was there before the noise
    seen = operator.measured(shape, measurement)
    note_clipping(names, measurement, seen if seen.shape[-2:] == measurement.shape[-2:] else None)


def check_observed(observation: Observation, operator: LinearOperator, sigma: float) -> None:
    """Raise ValueError where a measurement says nothing: all is hidden, or the noise is above what stands for none."""
    if bool(observation.observed.any()):
        return
    if not bool((operator.response(observation.y.shape, observation.y).abs() > 0).any()):
        raise ValueError(f"{operator.name}: wanted something of the image to be measured, got all of it hidden")
    raise ValueError(f"sigma: wanted noise through which intensities in [0, 1] can be seen, got a standard deviation of {sigma:g}")


def note_clipping(names: Sequence[str], measurement: Tensor, seen: Tensor | None = None) -> None:
    """Say which of the measurements (B, C, h, w) come from integers with many at 0 or full scale, among those ``seen``."""
    ends = torch.zeros_like(measurement, dtype=torch.bool)
    for levels in (2**8, 2**16):
        for end in (0.5 / levels, (levels - 0.5) / levels):
            ends |= (measurement - end).abs() < 1e-7
    seen = torch.ones_like(ends) if seen is None else seen.expand_as(ends)
    for name, share in zip(names, (ends & seen).flatten(1).sum(1) / seen.flatten(1).sum(1), strict=True):
        if share > CLIPPED:
            note(
                f"{name}: {share:.0%} of its pixels are at an end of the range; noise that was clipped there is not Gaussian, and"
                " probabilities and estimates are then wrong: a measurement is best given unclipped, as .npy"
            )


def read_mask_file(path: Path) -> Tensor:
    """Which pixels are seen, (1, C or 1, H, W): bright ones of a picture; of a ``.npy`` array booleans, or numbers from 0 to 1.

    Raises:
        ValueError: unreadable, numbers out of range, or no pixel seen.
    """
    if path.suffix.lower() != ".npy":
        mask = read_mask(path)
        if not bool(mask.any()):
            array = read_array(path, channels=1)
            largest, full = int(array.max()), np.iinfo(array.dtype).max
            raise ValueError(f"{path}: wanted a mask with pixels seen, of at least half of white ({full}), got {largest} at most")
        return mask
    array = read_npy(path)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or array.size == 0:
        raise ValueError(f"{path}: wanted a mask (height, width) or (channels, height, width), got {array.dtype} of shape {array.shape}")
    mask = torch.from_numpy(array.astype(np.float32))[(None,) * (4 - array.ndim)]
    if not bool(((mask >= 0) & (mask <= 1)).all()) or not bool(mask.any()):
        raise ValueError(f"{path}: wanted a mask of 0 (hidden) and 1 (seen), got {float(mask.min()):g} to {float(mask.max()):g}")
    return mask


def read_kernel(path: Path) -> Tensor:
    """A blur kernel (kh, kw), float64: a grey picture, normalised to sum 1, or a ``.npy`` array as it is.

    Raises:
        ValueError: not two axes, not finite, or a picture that is black all over.
    """
    if path.suffix.lower() == ".npy":
        array = read_npy(path)
        if array.ndim != 2 or array.dtype.kind not in "fiu" or array.size == 0:
            raise ValueError(f"{path}: wanted a kernel (height, width) of numbers, got {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all() or not array.any():
            raise ValueError(f"{path}: wanted a kernel of finite numbers, not all of them 0")
        return torch.from_numpy(array.astype("float64"))
    kernel = torch.from_numpy(read_array(path, channels=1)[..., 0].astype("float64"))
    if not kernel.sum() > 0:
        raise ValueError(f"{path}: wanted a kernel with some light in it, got a black picture")
    return kernel / kernel.sum()


def read_images(paths: Sequence[Path], channels: int, bounded: bool = True) -> tuple[list[str], Tensor]:
    """Names and intensities (B, C, H, W) of image files, of ``.npy`` arrays (one image or several), and of folders of these.

    Arguments:
        channels: what images are converted to (grey by luminance), and arrays must have.
        bounded: refuse floats outside [0, 1]; noisy measurements may leave it.

    Raises:
        ValueError: an unreadable file, an empty folder, images of different sizes; the message names the file.
    """
    names: list[str] = []
    images: list[Tensor] = []
    for path in (file for given in paths for file in expand(given)):
        x = read_one(path, channels, bounded)
        if images and x.shape[1:] != images[0].shape[1:]:
            sizes = f"{size(images[0])} ({names[0]}) and {size(x)} ({path.name})"
            raise ValueError(f"images: wanted one size in a call, got {sizes}; give them in separate calls")
        images.append(x)
        names += [path.stem] if len(x) == 1 else [f"{path.stem}_{i:04d}" for i in range(len(x))]
    return unique(names), torch.cat(images)


def expand(path: Path) -> list[Path]:
    """The image files of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    if (path / RECORD).is_file():
        raise ValueError(f"{path}: wanted images, got a folder with the results of a command; name the pictures in it that are meant")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in {*IMAGE_SUFFIXES, ".npy"} and not file.name.startswith("."))
    if not found:
        raise ValueError(f"{path}: no image in this folder")
    return found


def read_one(path: Path, channels: int, bounded: bool) -> Tensor:
    """One image file, (1, C, H, W), or the images of a ``.npy`` array, (B, C, H, W)."""
    if path.suffix.lower() != ".npy":
        array = read_array(path, channels)
        if channels == 1 and not bounded and coloured(path):
            note(f"{path}: colour made grey: noise of the luminance is less than that of a channel; --sigma is that of the luminance")
        return from_integers(torch.from_numpy(np.moveaxis(array, -1, 0).copy())[None])
    array = read_npy(path)
    try:
        return to_tensor(array, channels, bounded=bounded)[0].float()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def coloured(path: Path) -> bool:
    """Whether the channels of a picture differ."""
    array = read_array(path)
    return bool((array != array[..., :1]).any())


def read_npy(path: Path) -> np.ndarray:
    """A NumPy file without pickled objects.

    Raises:
        ValueError: missing, damaged or of another kind.
    """
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file ({' '.join(str(error).split())})") from None


def size(x: Tensor) -> str:
    """Height x width."""
    return f"{x.shape[-2]} x {x.shape[-1]}"


def unique(names: Sequence[str]) -> list[str]:
    """The names with a number added to those that would repeat an earlier one."""
    taken: list[str] = []
    for name in names:
        choices = (name, *(f"{name}_{i}" for i in range(2, len(names) + 2)))
        taken.append(next(choice for choice in choices if choice not in taken))
    return taken
