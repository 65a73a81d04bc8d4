"""Data sets in memory and streamed, behind one interface: ``len``, ``batch(indices, generator)`` and ``indices``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from anem.images import from_integers
from anem.random import Generators

__all__ = ["ImageData", "StreamedData"]


class ImageData:
    """Images in memory (or memory-mapped).

    Arguments:
        images: (N, C, H, W), uint8 or uint16, or floats in [0, 1], which are used as they are.
        labels: (N,), or None.
        skipped: files that were left out, each with the reason.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, skipped: Iterable[tuple[str, str]] = ()) -> None:
        self.images, self.labels, self.skipped = images, labels, tuple(skipped)
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, indices: Tensor, generator: Generators = None) -> Tensor:
        """Images ``indices`` (B,) as intensities (B, C, H, W), float32 in [0, 1).

        ``generator`` is the source of fresh uniform dequantisation noise; None puts every pixel at the centre of its step.
        """
        return _intensities(self.images[indices], generator)

    def indices(self, first: int, count: int, seed: int) -> Tensor:
        """What a training sees after its first ``first`` images, indices (count,): a function of the arguments alone.

        So resuming is exact. They are a piece of an endless row of epochs, each a permutation of the data set drawn from (seed, epoch).
        """
        position = torch.arange(first, first + count)
        epoch = position // len(self)
        return torch.cat([self._order(seed, int(e))[position[epoch == e] % len(self)] for e in epoch.unique()])

    def _order(self, seed: int, epoch: int) -> Tensor:
        if (seed, epoch) not in self._orders:
            if len(self._orders) > 1:
                self._orders.clear()
            self._orders[seed, epoch] = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(self)))
        return self._orders[seed, epoch]


class StreamedData:
    """Images of a stream that can only be read forwards; what lies behind the current position is read again from the start.

    Arguments:
        open_stream: starts the stream: an iterable of images (C, H, W) of integers.
        length: images in an epoch.
    """

    def __init__(self, open_stream: Callable[[], Iterable[Tensor]], length: int) -> None:
        self._open, self._length = open_stream, length
        self._stream: Iterator[Tensor] = iter(())
        self._position, self._last = length, torch.empty(0)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: Tensor, generator: Generators = None) -> Tensor:
        """As :meth:`ImageData.batch`; increasing indices are read in one go.

        Raises:
            ValueError: the stream ends early.
        """
        return _intensities(torch.stack([self._image(int(i)) for i in indices]), generator)

    def indices(self, first: int, count: int, seed: int) -> Tensor:
        """The next indices (count,) in the stream's own order; ``seed`` changes nothing."""
        return torch.arange(first, first + count) % self._length

    def _image(self, index: int) -> Tensor:
        if index < self._position:
            self._stream, self._position = iter(self._open()), -1
        while self._position < index:
            image = next(self._stream, None)
            if image is None:
                raise ValueError(f"stream: wanted {self._length} images, it ended after {self._position + 1}")
            self._position, self._last = self._position + 1, image
        return self._last


def _intensities(images: Tensor, generator: Generators) -> Tensor:
    return images.float() if images.is_floating_point() else from_integers(images, generator)
