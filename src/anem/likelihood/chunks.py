"""Batches of a size that memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from anem.random import Generators

__all__ = ["chunks", "rows_of"]

_NUMBERS = 2**18


def chunks(count: int, shape: Sequence[int], multiple: int = 1) -> list[slice]:
    """0 … count − 1 in pieces of about 2¹⁸ numbers (334 images of MNIST), each piece a multiple of ``multiple`` images."""
    size = max(1, _NUMBERS // math.prod(shape) // multiple) * multiple
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def rows_of(generators: Generators, rows: slice) -> Generators:
    """The generators of some images: their own, or the one of all."""
    return generators if generators is None or isinstance(generators, torch.Generator) else generators[rows]
