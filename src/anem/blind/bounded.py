"""A learned energy kept to what it can know.

A network is trained on y = x + n with n ~ N(0, Σ) and the Σ it is told. A search over θ asks it about a y whose noise is another: far
from anything it has seen, where it may call the impossible probable by thousands of nats, and the search would find that. What is right
there is U₀, the energy of independent pixels (:class:`~anem.gaussian.IndependentPixels`), which the network starts from: normalised for
every Σ that is diagonal in pixels. The difference is what pixels tell of each other and their places of them: on average at most what it
is for clean images, as noise on both laws only lessens their divergence. So the energy that judges θ is

    U₀ + d · min(max((U − U₀)/d, −r), r),

with r what the model's own samples show, and some room. Nothing changes where the model is in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.gaussian import IndependentPixels
from anem.network import EnergyNetwork
from anem.sample import as_schedule, sample_prior

__all__ = ["bounded", "largest_correlation", "searchable"]

ROOM = 1.25
"""r over the largest difference among the samples."""

IMAGES, STEPS = 32, 32
"""How many samples are drawn of a model's prior, and by how many steps."""

_known: WeakKeyDictionary[EnergyModel, dict[tuple, tuple[float, Tensor]]] = WeakKeyDictionary()
"""What was measured, and the samples, by model, and by image shape and the state of its weights."""


@torch.no_grad()
def largest_correlation(model: EnergyModel, y: Tensor, cov: Covariance) -> float:
    """The largest U₀ − U of images (N, C, H, W), such as samples of the model's prior with little noise on them, nats/dim."""
    return float((IndependentPixels(model.statistics).energy(y, cov) - model.energy(y, cov)).max()) / y[0].numel()


def searchable(model: EnergyModel, shape: Sequence[int]) -> tuple[EnergyModel, Tensor | None]:
    """A learned model bounded by what its samples of ``shape`` (C, H, W) show, and these samples, (N, C, H, W) float64, drawn once.

    Any other energy as it is, and None.

    Raises:
        ValueError: energies of its samples that are not finite.
    """
    if not isinstance(model, EnergyNetwork) or model.config.form != "anchored" or model.limit is not None:
        return model, None
    known, key = _known.setdefault(model, {}), (*shape, *((p.data_ptr(), p._version) for p in model.parameters()))
    if key not in known:
        noisy = sample_prior(model, (IMAGES, *shape), steps=STEPS, final="noisy", like=model.statistics.mean)
        y = noisy.samples[0].double()
        cov = as_schedule(noisy.sampler.schedule).end(Covariance.white(model.statistics.lambda_max, y.shape, like=y))
        most = ROOM * largest_correlation(model, y, cov)
        if not math.isfinite(most):
            raise ValueError(f"model: wanted finite energies of its own samples, got {most}")
        known[key] = most, y
    most, y = known[key]
    return (model.limited(most) if most > 0 else model), y


def bounded(model: EnergyModel, shape: Sequence[int]) -> EnergyModel:
    """The model of :func:`searchable`."""
    return searchable(model, shape)[0]
