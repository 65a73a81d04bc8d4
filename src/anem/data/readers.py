"""Reading data sets from folders, arrays, IDX files and streams."""

from __future__ import annotations

import gzip
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anem.data.config import DataConfig
from anem.data.sets import ImageData, StreamedData
from anem.images import read_array

__all__ = ["IMAGE_SUFFIXES", "load_dataset", "read_idx"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
"""Endings of the files that a folder is searched for."""


def load_dataset(config: DataConfig) -> ImageData | StreamedData:
    """The data set that a configuration describes.

    Raises:
        ValueError: nothing there, a file that cannot be read, sizes or channels that do not agree, a range beyond the end.
    """
    readers = {"folder": _read_folder, "array": _read_array_file, "idx": _read_idx_files, "huggingface": _read_stream}
    return readers[_kind(config)](config)


def _kind(config: DataConfig) -> str:
    path = Path(config.path)
    if config.kind != "auto":
        return config.kind
    if path.is_dir():
        return "idx" if _idx_files(path, config.part) else "folder"
    if not path.exists():
        raise ValueError(f"data.path: no such file or folder: {path}")
    if path.suffix in (".npy", ".npz"):
        return "array"
    if "idx" in path.name:
        return "idx"
    raise ValueError(f"data.path: wanted a folder, .npy, .npz or IDX file, got {path}")


# --- sizes and ranges ---


def _fitted(images: Tensor, config: DataConfig, name: str) -> Tensor:
    """Images (N, C, H, W) in the size and with the channels the configuration wants."""
    if config.channels not in (None, images.shape[1]):
        raise ValueError(f"{name}: wanted {config.channels} channel(s), got {images.shape[1]}")
    height, width = images.shape[-2:]
    if config.size is None or (height, width) == tuple(config.size):
        return images
    if config.fit == "exact":
        raise ValueError(f"{name}: wanted {config.size[0]} x {config.size[1]} pixels, got {height} x {width}; set fit to crop or resize")
    if config.fit == "resize":
        factor = max(config.size[0] / height, config.size[1] / width)
        height, width = max(config.size[0], round(height * factor)), max(config.size[1], round(width * factor))
        parts = [_resized(part, height, width) for part in images.split(1024)]
        images = torch.cat(parts)
    top, left = (height - config.size[0]) // 2, (width - config.size[1]) // 2
    if min(top, left) < 0:
        raise ValueError(f"{name}: {height} x {width} pixels are too few to crop {config.size[0]} x {config.size[1]}; set fit to resize")
    return images[..., top : top + config.size[0], left : left + config.size[1]]


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    x = torch.nn.functional.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False, antialias=True)
    return x.to(images.dtype) if images.is_floating_point() else x.round().to(images.dtype)


def _chosen(images: Tensor, labels: Tensor | None, config: DataConfig, name: str) -> ImageData:
    """The range of an array source, fitted."""
    stop = len(images) if config.stop is None else config.stop
    if stop > len(images) or config.start >= stop:
        raise ValueError(f"{name}: wanted images {config.start} to {stop}, there are {len(images)}")
    chosen = slice(config.start, stop)
    return ImageData(_fitted(images[chosen], config, name), None if labels is None else labels[chosen])


def _batched(array: np.ndarray, name: str) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as a view (N, C, H, W); no image is four pixels wide."""
    if array.dtype.name not in ("uint8", "uint16", "float16", "float32", "float64"):
        raise ValueError(f"{name}: wanted uint8, uint16 or float pixels, got {array.dtype}")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] <= 4:
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or 0 in array.shape or array.shape[1] > 4:
        raise ValueError(f"{name}: wanted images (N, H, W), (N, H, W, C) or (N, C, H, W), got {array.shape}")
    if array.dtype.kind == "f":
        for part in np.array_split(array, max(1, len(array) // 4096)):
            if not (part.min() >= 0 and part.max() <= 1):
                raise ValueError(f"{name}: wanted floats in [0, 1], got {part.min():.4g} to {part.max():.4g}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


# --- sources ---


def _read_array_file(config: DataConfig) -> ImageData:
    array, labels = _load_arrays(config.path, config.part)
    return _chosen(_batched(array, config.path), labels, config, config.path)


def _load_arrays(path: str, part: str) -> tuple[np.ndarray, Tensor | None]:
    """The array of a ``.npy`` file, memory-mapped copy-on-write, or images and labels of one part of an ``.npz`` file."""
    try:
        loaded = np.load(path, mmap_mode="c")
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded as file:
            key = part if part in file else f"x_{part}"
            if key in file:
                target = f"y{key[1:]}"
                has_labels = key.startswith("x_") and target in file
                return file[key], torch.from_numpy(file[target].astype(np.int64)) if has_labels else None
            names = ", ".join(file)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a readable array file: {' '.join(str(error).split())}") from None
    raise ValueError(f"{path}: wanted an array x_{part} or {part}, got {names or 'none'}")


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, gzipped or not.

    Raises:
        ValueError: not such a file, or cut short.
    """
    try:
        raw = Path(path).read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a readable IDX file: {error}") from None
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4).tolist()
    if len(raw) != 4 + 4 * raw[3] + int(np.prod(shape)):
        raise ValueError(f"{path}: wanted {int(np.prod(shape))} bytes for shape {tuple(shape)}, got {len(raw) - 4 - 4 * raw[3]}")
    return np.frombuffer(bytearray(raw), np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _idx_files(folder: Path, part: str) -> list[Path]:
    """IDX files of images of one part, such as ``t10k-images-idx3-ubyte.gz``."""
    return sorted(folder.glob(("t10k" if part == "test" else part) + "-images?idx3-ubyte*"))


def _read_idx_files(config: DataConfig) -> ImageData:
    path = Path(config.path)
    files = _idx_files(path, config.part) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no IDX images of the part {config.part!r}")
    images, named = read_idx(files[0]), files[0].with_name(files[0].name.replace("images", "labels").replace("idx3", "idx1"))
    labels = torch.from_numpy(read_idx(named).astype(np.int64)) if named != files[0] and named.exists() else None
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{named}: wanted a label for each of {len(images)} images, got {len(labels)}")
    return _chosen(_batched(images, str(files[0])), labels, config, str(files[0]))


def _read_folder(config: DataConfig) -> ImageData:
    root = Path(config.path)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    chosen = files[config.start : config.stop]
    if not chosen or len(files) < (config.stop or 0):
        raise ValueError(f"{root}: wanted images {config.start} to {config.stop or 'the end'}, there are {len(files)}")
    skipped: list[tuple[str, str]] = []

    def readable() -> Iterator[tuple[str, np.ndarray]]:
        for file in chosen:
            try:
                yield str(file), read_array(file, config.channels, config.background)
            except ValueError as error:
                if config.strict:
                    raise
                skipped.append((str(file.relative_to(root)), str(error)))

    images = list(_agreeing(readable(), config))
    if skipped:
        names = ", ".join(name for name, _ in skipped)
        warnings.warn(f"{root}: skipped {len(skipped)} of {len(chosen)} files as unreadable: {names}", stacklevel=3)
    if not images:
        raise ValueError(f"{root}: none of {len(chosen)} image file(s) can be read")
    return ImageData(torch.stack(images), skipped=skipped)


def _agreeing(arrays: Iterable[tuple[str, np.ndarray]], config: DataConfig) -> Iterator[Tensor]:
    """Named images (H, W, C) as fitted tensors (C, H, W), all of one shape and dtype."""
    first = None
    for name, array in arrays:
        image = _fitted(_batched(array[None], name), config, name)[0].contiguous()
        form = tuple(image.shape), image.dtype
        first = form if first is None else first
        if form != first:
            raise ValueError(f"{name}: {form} differs from {first} of the images before; set size, fit and channels")
        yield image


def _read_stream(config: DataConfig) -> ImageData | StreamedData:
    try:
        import datasets
    except ImportError:
        raise ValueError("data.kind: huggingface needs the datasets package: pip install 'anem[hub]'") from None
    if config.stop is None and not config.in_memory:
        raise ValueError("data.stop: a stream needs the number of images it is to give, or in_memory")
    rows = datasets.load_dataset(config.path, split=config.part, streaming=True).skip(config.start)
    rows = rows if config.stop is None else rows.take(config.stop - config.start)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for number, row in enumerate(rows, config.start):
            name = f"{config.path}: image {number}"
            if not isinstance(row.get(config.column), Image.Image):
                raise ValueError(f"{name}: wanted images in the column {config.column!r}, got the columns {', '.join(row)}")
            yield name, read_array(row[config.column], config.channels, config.background)

    if config.stop is not None and not config.in_memory:
        return StreamedData(lambda: _agreeing(arrays(), config), config.stop - config.start)
    images = list(_agreeing(arrays(), config))
    if not images or len(images) < (config.stop or 0) - config.start:
        raise ValueError(f"{config.path}: wanted images {config.start} to {config.stop or 'the end'}, the stream gave {len(images)}")
    return ImageData(torch.stack(images))
