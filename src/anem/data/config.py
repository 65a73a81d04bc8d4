"""Which images to read, and in what form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MNIST_SPLITS", "DataConfig", "mnist"]

MNIST_SPLITS = {
    "train": ("train", 0, 55_000),
    "validation": ("train", 55_000, 60_000),
    "report": ("test", 0, 1_000),
    "tuning": ("test", 1_000, 2_000),
    "comparison": ("test", 2_000, 10_000),
}
"""Use of the MNIST images in this project: (part, first image, one past the last)."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and in what form.

    Arguments:
        path: a folder of images (searched recursively, in the order of their names), a ``.npy`` (memory-mapped) or ``.npz`` file, an
            IDX file (``.gz`` too) or a folder of them, or the name of a Hugging Face data set.
        kind: what ``path`` is; ``auto`` finds out, except for ``huggingface``, which must be asked for.
        part: ``train`` or ``test``: the array ``x_<part>`` with labels ``y_<part>`` of an ``.npz`` file (or an array's full name), the
            files ``train-*`` or ``t10k-*`` of an IDX folder, the split of a Hugging Face data set. No meaning for others.
        start, stop: the images used, stop excluded; of a folder, counted over its files, readable or not.
        size: (height, width) wanted, or None for the images' own, which then must agree.
        fit: ``exact`` refuses other sizes; ``crop`` cuts out the centre; ``resize`` scales the image to cover ``size`` (bilinear with
            antialiasing, rounded to integers again) and cuts out the centre.
        channels: 1, 3 or None for what there is. Files are converted (see :func:`anem.images.read_array`), arrays must agree.
        background: grey level in [0, 1] behind transparent pixels.
        strict: an unreadable file is an error; otherwise it is skipped with a warning.
        column: image column of a Hugging Face data set.
        in_memory: read a stream once, to the end or ``stop``, and keep it; otherwise it is read again in every epoch, in its own
            order, and needs ``stop``.
    """

    path: str = "data/mnist.npz"
    kind: Literal["auto", "folder", "array", "idx", "huggingface"] = "auto"
    part: str = "train"
    start: int = 0
    stop: int | None = None
    size: tuple[int, int] | None = None
    fit: Literal["exact", "crop", "resize"] = "exact"
    channels: int | None = None
    background: float = 0.0
    strict: bool = False
    column: str = "image"
    in_memory: bool = False

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"data: wanted 0 <= start < stop, got start {self.start}, stop {self.stop}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"data.size: wanted positive (height, width), got {self.size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels: wanted 1, 3 or none, got {self.channels}")
        if self.fit != "exact" and self.size is None:
            raise ValueError(f"data.fit: {self.fit!r} needs a size")


def mnist(split: str, path: str = "data/mnist.npz") -> DataConfig:
    """One of :data:`MNIST_SPLITS`, from an ``.npz`` file or an IDX folder."""
    if split not in MNIST_SPLITS:
        raise ValueError(f"split: wanted one of {', '.join(MNIST_SPLITS)}, got {split!r}")
    part, start, stop = MNIST_SPLITS[split]
    return DataConfig(path=path, part=part, start=start, stop=stop)
