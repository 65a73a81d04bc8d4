"""Random numbers with an explicit source, one per image where a result must not depend on its batch mates."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

__all__ = ["Generators", "check_device", "generator_of", "generators_for", "normal", "random_signs", "seed_of", "seeds_for", "uniform"]

Generators = torch.Generator | Sequence[torch.Generator] | None
"""One generator for a whole batch, a sequence of B generators (one an image), or None for torch's default generator."""


def _draw(function, shape: Sequence[int], generators: Generators, like: Tensor) -> Tensor:
    if generators is None or isinstance(generators, torch.Generator):
        return function(tuple(shape), generator=generators, dtype=like.dtype, device=like.device)
    if len(generators) != shape[0]:
        raise ValueError(f"generators: wanted one per image, {shape[0]}, got {len(generators)}")
    rows = [function(tuple(shape[1:]), generator=g, dtype=like.dtype, device=like.device) for g in generators]
    return torch.stack(rows)


def normal(shape: Sequence[int], generators: Generators, like: Tensor) -> Tensor:
    """Standard normal numbers of ``shape`` (B, …) with the dtype and device of ``like``."""
    return _draw(torch.randn, shape, generators, like)


def uniform(shape: Sequence[int], generators: Generators, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) of ``shape`` (B, …) with the dtype and device of ``like``."""
    return _draw(torch.rand, shape, generators, like)


def random_signs(shape: Sequence[int], generators: Generators, like: Tensor) -> Tensor:
    """Independent ±1 of ``shape`` (B, …) with the dtype and device of ``like``."""
    return (uniform(shape, generators, like) < 0.5).to(like) * 2 - 1


def seed_of(*labels: object) -> int:
    """A seed that any difference in the labels changes: what is drawn for one purpose has nothing to do with what is drawn for another."""
    labels = tuple(int(a) if isinstance(a, Integral) and not isinstance(a, bool) else a for a in labels)  # of whatever library
    return int.from_bytes(hashlib.sha256(repr(labels).encode()).digest()[:8], "big") >> 1


def generator_of(*labels: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for labels, such as a user's seed and what the numbers are for."""
    return torch.Generator(device).manual_seed(seed_of(*labels))


def seeds_for(seed: int | Sequence[int], batch: int) -> list[int]:
    """One seed an image: seed, seed + 1, …, or those given.

    Raises:
        ValueError: another number of them than images, or one that is negative or not a whole number.
    """
    try:
        seeds = [operator.index(s) for s in seed] if _several(seed) else [operator.index(seed) + b for b in range(batch)]  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"seed: wanted a whole number >= 0, or one an image, got {seed!r}") from None
    if len(seeds) != batch:
        raise ValueError(f"seed: wanted one, or one an image, {batch}, got {len(seeds)}")
    if min(seeds, default=0) < 0:
        raise ValueError(f"seed: wanted whole numbers >= 0, got {min(seeds)}")
    return seeds


def _several(seed: object) -> bool:
    """Whether these are seeds, not one: an array without axes is one."""
    return hasattr(seed, "__iter__") and getattr(seed, "ndim", 1) > 0


def generators_for(seeds: Sequence[int], device: torch.device | str = "cpu") -> list[torch.Generator]:
    """One generator an image, seeded by its own number: image i draws the same numbers in any batch."""
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


def check_device(device: torch.device | str) -> None:
    """Raise ValueError for a device that cannot compute here."""
    try:
        torch.empty(0, device=device)
        torch.Generator(device)  # the device "meta" has tensors, but neither random numbers nor values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {str(device)!r} cannot be used here ({str(error).splitlines()[0]})") from None
