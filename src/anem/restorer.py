"""What a restoration method is, whoever wrote it: the energy's own sampler, the baselines and a user's method look the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators
from anem.sample import Sampler

__all__ = ["EnergyRestorer", "Restorer", "seeds_from"]


@runtime_checkable
class Restorer(Protocol):
    """Restores images from measurements m = H x + σ v; hyperparameters and the number of samples belong to the object.

    >>> class PseudoInverse:
    ...     def __call__(self, measurement, operator, sigma, generators=None):
    ...         return operator.pseudo_inverse(measurement)[None]
    >>> isinstance(PseudoInverse(), Restorer)
    True
    """

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); S = 1 for a method without randomness.

        Arguments:
            measurement: m, (B, C, h, w), in the pixel range [0, 1].
            operator: H.
            sigma: standard deviation of the noise in m: a number, (B,), or a map where the operator allows it.
            generators: random numbers, one generator an image (a restoration must then not depend on its batch mates), or one for all.
        """
        ...


def seeds_from(generators: Generators, batch: int) -> list[int]:
    """One seed an image, drawn from its generator: for methods that need more streams than one an image.

    Raises:
        ValueError: a sequence of generators of another length.
    """
    if generators is None or isinstance(generators, torch.Generator):
        own: list[torch.Generator | None] = [generators] * batch
    elif len(generators) == batch:
        own = list(generators)
    else:
        raise ValueError(f"generators: wanted one per image, {batch}, got {len(generators)}")
    return [int(torch.randint(2**62, (), generator=g, device=g.device if g is not None else None)) for g in own]


@dataclass(frozen=True)
class EnergyRestorer:
    """The energy's own: posterior samples by :class:`~anem.sample.Sampler`.

    Arguments:
        model: the energy.
        sampler: how to sample.
        samples: S, draws for each image.
    """

    model: EnergyModel
    sampler: Sampler = field(default_factory=Sampler)
    samples: int = 1

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`Restorer`."""
        seeds = seeds_from(generators, len(measurement))
        return self.sampler.posterior(self.model, measurement, operator, sigma, self.samples, seeds).samples
