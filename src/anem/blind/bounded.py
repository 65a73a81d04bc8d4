"""A learned energy kept to what it can know.

A network is trained on y = x + n with n ~ N(0, Σ) and the Σ it is told. A search over θ asks it about a y whose noise is another: far
from anything it has seen, where it may call the impossible probable by thousands of nats, and the search would find that. What is right
there is U₀, the energy of independent pixels (:class:`~anem.gaussian.IndependentPixels`), which the network starts from: normalised for
every Σ that is diagonal in pixels. The difference is what pixels tell of each other: on average at most the total correlation of clean
images. So the energy that judges θ is

    U₀ + d · min(max((U − U₀)/d, −r), r),

with r what the model's own samples show, and some room. Nothing changes where the model is in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import IndependentPixels
from anem.network import EnergyNetwork
from anem.sample import sample_prior

__all__ = ["bounded", "largest_correlation"]

ROOM = 1.25
"""r over the largest difference among the samples."""

_limits: WeakKeyDictionary[EnergyModel, dict[tuple[int, ...], float]] = WeakKeyDictionary()
"""What was measured, by model, and by image shape and the state of its weights."""


@torch.no_grad()
def largest_correlation(model: EnergyModel, shape: Sequence[int], images: int = 16, steps: int = 32) -> float:
    """The largest U₀ − U of samples of the model's prior with little noise on them, nats/dim.

    Arguments:
        shape: of an image, (C, H, W). images, steps: of the samples.
    """
    noisy = sample_prior(model, (images, *shape), steps=steps, final="noisy", like=model.statistics.mean)
    y = noisy.samples[0].double()
    cov = noisy.sampler.schedule.end(Covariance.white(model.statistics.lambda_max, y.shape, like=y))
    return float((IndependentPixels(model.statistics).energy(y, cov) - model.energy(y, cov)).max()) / y[0].numel()


def bounded(model: EnergyModel, shape: Sequence[int]) -> EnergyModel:
    """A learned model bounded by what its samples of ``shape`` (C, H, W) show, drawn once; any other energy as it is.

    Raises:
        ValueError: energies of its samples that are not finite.
    """
    if not isinstance(model, EnergyNetwork) or model.config.form != "anchored" or model.limit is not None:
        return model
    known, key = _limits.setdefault(model, {}), (*shape, sum(p._version for p in model.parameters()))
    if key not in known:
        most = ROOM * largest_correlation(model, shape)
        if not math.isfinite(most):
            raise ValueError(f"model: wanted finite energies of its own samples, got {most}")
        known[key] = most
    return model.limited(known[key]) if known[key] > 0 else model
