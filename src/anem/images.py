"""Images of every kind users have, in and out: PIL, NumPy, tensors and files.

One convention for numbers, applied once each way. The integer v of an image with b bits stands for the interval [v, v + 1)/2ᵇ of
intensities in [0, 1]. It is loaded as (v + u)/2ᵇ with u uniform in [0, 1), or u = ½ where no noise is wanted, and x is written as
floor(2ᵇ x) clipped to 0 … 2ᵇ − 1. Loading and writing return the same integer for every u.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from anem.files import replacing
from anem.random import Generators, uniform

__all__ = [
    "ImageKind",
    "as_pil",
    "from_integers",
    "from_tensor",
    "read_array",
    "read_image",
    "read_mask",
    "save_image",
    "to_integers",
    "to_tensor",
]

_LEVELS = {torch.uint8: 2**8, torch.uint16: 2**16}


def from_integers(integers: Tensor, generators: Generators = None) -> Tensor:
    """Intensities x = (v + u)/2ᵇ of 8-bit or 16-bit integers v: float32 in [0, 1), same shape (B, …).

    Arguments:
        integers: uint8 or uint16.
        generators: source of u ~ U[0, 1), one for the batch or one an image; None for u = ½.

    Raises:
        ValueError: another dtype.
    """
    if integers.dtype not in _LEVELS:
        raise ValueError(f"integers: wanted uint8 or uint16, got {integers.dtype}")
    levels, v = _LEVELS[integers.dtype], integers.float()
    if generators is None:
        return (v + 0.5) / levels
    # v + u may round up to v + 1 in float32, which would be written as the next integer.
    below = torch.nextafter((v + 1) / levels, v.new_zeros(()))
    return torch.minimum((v + uniform(v.shape, generators, v)) / levels, below)


def to_integers(x: Tensor, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Integers floor(2ᵇ x) clipped to 0 … 2ᵇ − 1, uint8 (b = 8) or uint16 (b = 16), same shape.

    Raises:
        ValueError: x is not finite, or another dtype is asked for.
    """
    if dtype not in _LEVELS:
        raise ValueError(f"dtype: wanted torch.uint8 or torch.uint16, got {dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x: wanted finite values, got NaN or infinity")
    return (x * _LEVELS[dtype]).floor().clamp(0, _LEVELS[dtype] - 1).to(dtype)


# --- files ---


def read_array(source: str | os.PathLike | Image.Image, channels: int | None = None, background: float = 0.0) -> np.ndarray:
    """Integers of an image file or PIL image: (H, W, C), uint8, or uint16 for 16-bit grey images.

    Palettes are looked up; CMYK, YCbCr and Lab become RGB; transparent pixels are composited on a grey ``background``; the camera's
    orientation tag is applied; of an animation the first frame counts. Grey becomes RGB by repetition and RGB becomes grey by
    luminance (ITU-R 601) when ``channels`` asks for it. PIL reads 16-bit colour with 8 bits.

    Arguments:
        source: a path or an open image.
        channels: 1, 3, or None for what the file has.
        background: grey level in [0, 1] behind transparent pixels; black unless told.

    Raises:
        ValueError: a missing, unreadable or truncated file, a pixel type without a defined range, another number of channels.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels: wanted 1 or 3 for an image file, got {channels}")
    name = "image" if isinstance(source, Image.Image) else os.fspath(source)
    try:
        image = ImageOps.exif_transpose(source if isinstance(source, Image.Image) else Image.open(source))
        array = _integers(image, channels, background)
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image: {' '.join(str(error).split())}") from None
    return np.repeat(array, channels or 1, axis=2) if array.shape[2] == 1 else array


def _integers(image: Image.Image, channels: int | None, background: float) -> np.ndarray:
    """Pixels of a PIL image, (H, W, 1 or 3)."""
    if image.mode == "F" or (image.mode.startswith("I") and image.has_transparency_data):
        raise ValueError(f"pixels of mode {image.mode!r} (float, or 16-bit with transparency) have no defined range here")
    if image.mode.startswith("I"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(f"wanted 16-bit values 0 to 65535, got {array.min()} to {array.max()}")
        return array.astype(np.uint16)[..., None]
    grey = channels == 1 or (channels is None and image.mode in ("1", "L", "LA"))
    if image.has_transparency_data:
        level = round(255 * background)
        behind = Image.new("RGBA", image.size, (level, level, level, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    array = np.array(image.convert("L" if grey else "RGB"))
    return array[..., None] if grey else array


def read_image(path: str | os.PathLike, channels: int | None = None, background: float = 0.0, generators: Generators = None) -> Tensor:
    """Intensities of an image file, (1, C, H, W) float32 in [0, 1); arguments and errors of :func:`read_array`.

    ``generators`` is the source of the dequantisation noise; None puts every pixel at the centre of its step.
    """
    return from_integers(_planes(read_array(path, channels, background)[None]), generators)


def read_mask(path: str | os.PathLike) -> Tensor:
    """A mask image as (1, 1, H, W) booleans: True (observed) where the luminance is at least half; transparent counts as black."""
    array = read_array(path, channels=1)
    return _planes(array[None] > np.iinfo(array.dtype).max // 2)


def save_image(image: Tensor | Image.Image, path: str | os.PathLike, dtype: torch.dtype = torch.uint8) -> None:
    """Write one image, (C, H, W) or (1, C, H, W) in [0, 1], or a PIL image, as PNG; never a half-written file.

    Arguments:
        dtype: torch.uint8, or torch.uint16 for one channel.

    Raises:
        ValueError: more than one image, other than 1 or 3 channels, values that are not finite.
    """
    if isinstance(image, Tensor):
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
        if image.ndim != 3:
            raise ValueError(f"image: wanted shape (C, H, W), got {tuple(image.shape)}")
        image = as_pil(to_integers(image.detach().cpu(), dtype))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        image.save(file, format="PNG")


def _planes(array: np.ndarray) -> Tensor:
    """(…, H, W, C) to a contiguous tensor (…, C, H, W)."""
    return torch.from_numpy(np.require(np.moveaxis(array, -1, -3), requirements=("C", "W")))


def as_pil(integers: Tensor) -> Image.Image:
    """(C, H, W) uint8, or uint16 for one channel, as PIL image of mode L, RGB or I;16."""
    channels = len(integers)
    if channels not in (1, 3) or (integers.dtype == torch.uint16 and channels != 1):
        raise ValueError(f"image: a PNG holds 1 or 3 channels, or 1 of 16 bits; got {channels} of {integers.dtype}")
    array = integers.numpy()
    return Image.fromarray(array[0] if channels == 1 else np.ascontiguousarray(np.moveaxis(array, 0, -1)))


# --- the caller's own kind of image ---


@dataclass(frozen=True)
class ImageKind:
    """What the caller gave, so that results go back in the same form.

    Arguments:
        container: "pil", "numpy" or "torch".
        dtype: pixel type of the caller's images.
        single: one image rather than a batch.
        channel_axis: whether arrays have an axis for the channels (grey ones may not).
        listed: images came, and go back, as a list.
        device: of a tensor.
    """

    container: str
    dtype: torch.dtype
    single: bool
    channel_axis: bool = True
    listed: bool = False
    device: torch.device = torch.device("cpu")


def to_tensor(images: Any, channels: int, dequantise: Generators = None, bounded: bool = True) -> tuple[Tensor, ImageKind]:
    """Images of any kind as float (B, C, H, W), with what :func:`from_tensor` needs to answer in the same kind.

    Arguments:
        images: a PIL image; an array (H, W), (H, W, C), (B, H, W) or (B, H, W, C), the last axis being channels where its length is
            ``channels``; a tensor (H, W), (C, H, W) or (B, C, H, W); or a list of one of these. Integers are 8 or 16 bits, floats
            are intensities in [0, 1]. PIL images are converted as in :func:`read_array`; arrays and tensors must match.
        channels: number of channels wanted.
        dequantise: source of u for integer images; None for u = ½ (the centre of each step).
        bounded: refuse floats outside [0, 1]. Noisy measurements may leave it, up to ±100: what is beyond is on another scale.

    Returns:
        (B, C, H, W), float32, or float64 for a float64 tensor (arrays are float64 by accident), and the kind.

    Raises:
        ValueError: an unknown kind or dtype, another shape or number of channels, NaN or infinity, floats out of range.
    """
    if isinstance(images, (list, tuple)):
        return _list_to_tensor(images, channels, dequantise, bounded)
    pixels, kind = _pixels(images, channels)
    if kind.dtype in _LEVELS:
        return from_integers(pixels, dequantise), kind
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("images: wanted finite values, got NaN or infinity")
    low, high = float(pixels.min()), float(pixels.max())
    if bounded and (low < 0 or high > 1):
        raise ValueError(f"images: wanted floats in [0, 1], got {low:.4g} to {high:.4g}")
    if max(-low, high) > 100:
        raise ValueError(f"images: wanted intensities, from 0 (black) to 1 (white) but for noise, got {low:.4g} to {high:.4g}")
    return pixels if kind.container == "torch" and kind.dtype == torch.float64 else pixels.float(), kind


def _pixels(images: Any, channels: int) -> tuple[Tensor, ImageKind]:
    """(B, C, H, W) in the caller's own pixel type, and the kind."""
    shape = () if isinstance(images, Image.Image) else tuple(getattr(images, "shape", ()))
    if isinstance(images, Image.Image):
        container, axis, pixels = "pil", True, _planes(read_array(images, channels))
    elif isinstance(images, np.ndarray) and 2 <= len(shape) <= 4:
        # (B, H, W) or (H, W, C)? No image is four pixels wide.
        container, axis = "numpy", len(shape) == 4 or (len(shape) == 3 and (channels > 1 or shape[-1] <= 4))
        if images.dtype.name not in ("uint8", "uint16", "float16", "float32", "float64"):
            raise ValueError(f"images: wanted uint8, uint16 or float pixels, got {images.dtype}")
        native = images.astype(images.dtype.newbyteorder("="), copy=False)
        pixels = _planes(native if axis else native[..., None])
    elif isinstance(images, Tensor) and 2 <= len(shape) <= 4:
        container, axis = "torch", len(shape) > 2
        if images.dtype not in _LEVELS and not images.is_floating_point():
            raise ValueError(f"images: wanted uint8, uint16 or float pixels, got {images.dtype}")
        pixels = images.detach() if axis else images.detach()[None]
    else:
        raise ValueError(f"images: wanted PIL images, arrays or tensors of 2 to 4 axes, got {type(images).__name__} {shape or ''}".strip())
    if 0 in shape:
        raise ValueError(f"images: wanted at least one image of at least one pixel, got shape {shape}")
    single = pixels.ndim == 3
    pixels = pixels[None] if single else pixels
    if pixels.shape[1] != channels:
        raise ValueError(f"images: wanted {channels} channel(s), got {container} images of shape {shape}")
    return pixels, ImageKind(container, pixels.dtype, single, axis, device=pixels.device)


def _list_to_tensor(images: Sequence, channels: int, generators: Generators, bounded: bool) -> tuple[Tensor, ImageKind]:
    if not images:
        raise ValueError("images: got an empty list")
    each = [generators] * len(images) if generators is None or isinstance(generators, torch.Generator) else [[g] for g in generators]
    if len(each) != len(images):
        raise ValueError(f"dequantise: wanted one generator per image, {len(images)}, got {len(each)}")
    pairs = [to_tensor(image, channels, source, bounded) for image, source in zip(images, each, strict=True)]
    kind, shapes = pairs[0][1], sorted({tuple(x.shape[1:]) for x, _ in pairs})
    if len(shapes) > 1 or any(k != kind for _, k in pairs) or not kind.single:
        raise ValueError(f"images: a list must hold single images of one kind and size, got shapes {shapes}")
    return torch.cat([x for x, _ in pairs]), replace(kind, single=False, listed=True)


def from_tensor(x: Tensor, kind: ImageKind) -> Any:
    """Images (…, B, C, H, W) in the kind the caller gave; integers are written as floor(2ᵇ x), clipped.

    Leading axes before the batch (samples, say) stay axes of arrays and tensors and become nested lists of PIL images; the batch axis
    of a single image is dropped.

    Raises:
        ValueError: a batch of more than one for a single image; values that are not finite.
    """
    if x.ndim < 4 or (kind.single and x.shape[-4] != 1):
        raise ValueError(f"x: wanted (…, {'1' if kind.single else 'B'}, C, H, W), got {tuple(x.shape)}")
    x = x.detach().squeeze(-4) if kind.single else x.detach()
    pixels = to_integers(x, kind.dtype) if kind.dtype in _LEVELS else x.to(kind.dtype)
    pixels = pixels.to(kind.device)

    def one(image: Tensor) -> Any:
        if kind.container == "pil":
            return as_pil(image)
        if kind.container == "torch":
            return image if kind.channel_axis else image.squeeze(-3)
        array = np.ascontiguousarray(np.moveaxis(image.numpy(), -3, -1))
        return array if kind.channel_axis else array[..., 0]

    def nested(images: Tensor) -> Any:
        return one(images) if images.ndim == 3 else [nested(image) for image in images]

    return nested(pixels) if kind.listed or kind.container == "pil" else one(pixels)
