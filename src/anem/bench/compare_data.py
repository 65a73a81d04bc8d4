"""Which images a comparison tunes on, judges and takes for the reference of KID."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anem.data import DataConfig, ImageData, StreamedData, load_dataset, mnist

__all__ = ["Images"]


@dataclass(frozen=True, eq=False)
class Images:
    """Three sets of images, none of which has one of another's.

    Arguments:
        tuning: on which settings are chosen, (T, C, H, W). judged: what is restored. reference: what KID compares with.
    """

    tuning: Tensor
    judged: Tensor
    reference: Tensor

    @classmethod
    def of(cls, dataset: str, data: Path, split: str, tuning: int, judged: int, reference: int, skip: int = 0) -> Images:
        """The first images of each part of a data set.

        MNIST has its own parts (:data:`anem.data.MNIST_SPLITS`). Any other set is divided by the order of its images: the first quarter
        for tuning, the second for reference, the second half for the one report; with ``split`` "tuning" what is judged are the images
        of the first quarter after those of the tuning. Of an ``.npz`` file ``x_train`` is read. ``skip`` images are left out before those
        judged.

        Raises:
            ValueError: no such data, or too few images.
        """
        if dataset == "mnist":
            path = str(data / "mnist.npz")
            parts = [load_dataset(mnist(name, path)) for name in ("tuning", "validation", "comparison")]
            ranges = [range(len(part)) for part in parts]
        else:
            whole = load_dataset(DataConfig(path=dataset))
            n, parts = len(whole), [whole] * 3
            ranges = [range(n // 4), range(n // 4, n // 2), range(n // 2, n)]
        first = _take(dataset, "tuning", parts[0], ranges[0], tuning)
        if split == "tuning":
            chosen = _take(dataset, f"tuning after {tuning + skip}", parts[0], ranges[0][tuning + skip :], judged)
        else:
            chosen = _take(dataset, "the report" + f" after --skip {skip}" * bool(skip), parts[2], ranges[2][skip:], judged)
        return cls(first, chosen, _take(dataset, "reference", parts[1], ranges[1], min(reference, len(ranges[1]))))


def _take(dataset: str, what: str, data: ImageData | StreamedData, indices: range, count: int) -> Tensor:
    if len(indices) < count or count < 1:
        raise ValueError(f"--dataset {dataset}: wanted {max(count, 1)} images for {what}, there are {len(indices)}")
    return data.batch(torch.tensor(indices[:count]))
