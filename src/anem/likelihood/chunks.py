"""Batches of a size that memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.random import Generators

__all__ = ["chunks", "energies", "rows_of"]

_NUMBERS = 2**18


def chunks(count: int, shape: Sequence[int], multiple: int = 1) -> list[slice]:
    """0 … count − 1 in pieces of about 2¹⁸ numbers (334 images of MNIST), each piece a multiple of ``multiple`` images."""
    size = max(1, _NUMBERS // math.prod(shape) // multiple) * multiple
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def rows_of(generators: Generators, rows: slice) -> Generators:
    """The generators of some images: their own, or the one of all."""
    return generators if generators is None or isinstance(generators, torch.Generator) else generators[rows]


@torch.no_grad()
def energies(model: EnergyModel, y: Tensor, cov: Covariance) -> Tensor:
    """U(y, Σ) of many y, (B,), float64."""
    return torch.cat([model.energy(y[rows], cov[rows]).double() for rows in chunks(len(y), y.shape[1:])])
