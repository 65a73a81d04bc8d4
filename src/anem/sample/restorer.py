"""The energy's own sampler as a :class:`~anem.restore.Restorer`, beside the baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from anem.energy import EnergyModel
from anem.operators import LinearOperator
from anem.random import Generators
from anem.restore import seeds_from
from anem.sample.posterior import Sampler

__all__ = ["EnergyRestorer"]


@dataclass(frozen=True)
class EnergyRestorer:
    """Posterior samples by :class:`Sampler`.

    Arguments:
        model: the energy.
        sampler: how to sample.
        samples: S, draws for each image.
    """

    model: EnergyModel
    sampler: Sampler = field(default_factory=Sampler)
    samples: int = 1

    def __call__(self, measurement: Tensor, operator: LinearOperator, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """Restorations (S, B, C, H, W); see :class:`~anem.restore.Restorer`."""
        seeds = seeds_from(generators, len(measurement))
        return self.sampler.posterior(self.model, measurement, operator, sigma, self.samples, seeds).samples
