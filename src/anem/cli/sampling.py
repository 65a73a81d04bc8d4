"""The options that say how the energy's own sampler draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

if TYPE_CHECKING:
    from anem.sample import Callback
    from anem.sample import Sampler as Drawing


@dataclass
class Sampling:
    """how the energy draws"""

    sampler: Annotated[str, arg(metavar="NAME")] = "ancestral"
    """kind of step: ancestral, euler, bridge, sde-2m, sandwich"""
    schedule: Annotated[str, arg(metavar="NAME")] = "water-filling"
    """path of the noise: water-filling, geometric (the paper's), or following the energy: energy (the paper's rule), variance"""
    mala: Annotated[int, arg(metavar="N")] = 0
    """Metropolis-adjusted Langevin steps after each step: a correction that accepts or refuses by the energy, one network call each"""

    def given(self) -> list[str]:
        """The options that are not as by default."""
        return [f"--{f.name}" for f in fields(self) if getattr(self, f.name) != f.default]

    def make(self, steps: int, callback: Callback | None = None) -> Drawing:
        """The sampler.

        Raises:
            ValueError: names there are not, or that do not go together.
        """
        from anem.sample import KERNELS, MALA, Sampler, as_kernel, as_schedule

        drawing = [name for name in KERNELS if as_kernel(name).stochastic]
        if self.sampler not in drawing:
            raise ValueError(f"--sampler: wanted one of {', '.join(drawing)}, which draw samples, got {self.sampler}")
        schedule = as_schedule(self.schedule, steps)
        if self.mala < 0:
            raise ValueError(f"--mala: wanted 0 steps or more, got {self.mala}")
        if self.mala and as_kernel(self.sampler).multistep:
            raise ValueError(f"--mala: wanted a --sampler of single steps, not {self.sampler}")
        if self.mala and schedule.adaptive:
            raise ValueError(f"--mala: wanted a --schedule fixed beforehand, not {self.schedule}")
        return Sampler(self.sampler, MALA(self.mala) if self.mala else None, schedule, callback=callback)

    def record(self) -> dict:
        """What a result's record says of it."""
        return {"sampler": self.sampler, "schedule": self.schedule} | ({"mala": self.mala} if self.mala else {})
