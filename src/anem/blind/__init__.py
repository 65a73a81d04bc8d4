"""Blind estimation: the degradation θ that makes a measurement m most probable, by the full evidence log p(m given θ).

A normalised energy gives p(m given θ) as a density of m, so that unknown settings of a degradation (a box, noise levels, a blur) are
found by maximum likelihood, with standard errors, a posterior, and a choice between kinds of degradations; nothing is tuned.

>>> import torch
>>> from anem.blind import estimate
>>> from anem.gaussian import make_power_law_gaussian
>>> model = make_power_law_gaussian(1, 8, 8)
>>> x = model.sample(1, torch.Generator().manual_seed(0))
>>> m = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
>>> found = estimate(model, m, "white")
>>> low, high = found.posterior.interval(0.9)[0].tolist()
>>> low < 0.1 < high
True
"""

from anem.blind.bounded import bounded
from anem.blind.estimate import Choice, Estimate, choose, estimate
from anem.blind.evidence import Evidence
from anem.blind.families import (
    FAMILIES,
    Family,
    Parameter,
    as_family,
    band,
    box,
    box_anywhere,
    gaussian_blur,
    motion_blur,
    super_resolution,
    white_noise,
)
from anem.blind.posterior import Posterior, explore

__all__ = [
    "FAMILIES",
    "Choice",
    "Estimate",
    "Evidence",
    "Family",
    "Parameter",
    "Posterior",
    "as_family",
    "band",
    "bounded",
    "box",
    "box_anywhere",
    "choose",
    "estimate",
    "explore",
    "gaussian_blur",
    "motion_blur",
    "super_resolution",
    "white_noise",
]
