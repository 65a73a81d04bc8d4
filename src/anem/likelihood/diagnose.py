"""How probable restorations are: under the prior, and given the measurement they are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.likelihood.chunks import energies
from anem.likelihood.evidence import log_evidence
from anem.operators import LinearOperator
from anem.random import generator_of
from anem.statistics import VARIANCE_FLOOR

__all__ = ["Comparison", "Scores", "compare", "score"]


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of B restorations, (B,), in nats.

    Arguments:
        prior: log p(x + σ₀ z given σ₀² I), averaged over draws of z: how much the restoration looks like data.
        posterior: ``prior`` + log p(m given x) − log p(m).
        misfit: ‖m − H x‖²/(n σ²) over the n measured entries, about 1 for the truth; less fits noise.
        evidence: log p(m).
        dimensions: numbers in an image.
    """

    prior: Tensor
    posterior: Tensor
    misfit: Tensor
    evidence: Tensor
    dimensions: int


@torch.no_grad()
def score(
    model: EnergyModel,
    images: Tensor,
    measurement: Tensor,
    operator: LinearOperator,
    sigma: float,
    *,
    prior_sigma: float = 0.03,
    draws: int = 4,
    seed: int = 0,
) -> Scores:
    """Scores of restorations, from any method, of measurements m = H x + σ v.

    The restorations get white noise of standard deviation ``prior_sigma``, at which p is a density that a learned energy knows well; a
    smaller one looks at finer details. The noise of restoration b depends on seed + b only, so that sets of restorations of the same
    measurements meet the same noise and differ by themselves alone.

    Arguments:
        images: x, (B, C, H, W), in [0, 1].
        measurement: m, (B, C, h, w). operator: H. sigma: standard deviation of its noise.
        prior_sigma: σ₀. draws: of z, and of what the measurement does not tell. seed: of both.

    Raises:
        ValueError: restorations that are not finite or not of the measurement's image size, prior_sigma ≤ 0, draws < 1.
    """
    if not (prior_sigma > 0 and math.isfinite(prior_sigma) and draws >= 1):
        raise ValueError(f"prior_sigma, draws: wanted a standard deviation > 0 and at least 1 draw, got {prior_sigma} and {draws}")
    if tuple(images.shape) != operator.image_shape(measurement.shape):
        raise ValueError(f"images: wanted {operator.image_shape(measurement.shape)}, as was measured, got {tuple(images.shape)}")
    x, m = images.double(), measurement.double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("images: wanted finite values, got NaN or infinity")
    generators = [generator_of(seed + b, "prior", device=x.device) for b in range(len(x))]
    cov = Covariance.white(prior_sigma**2, x.shape, like=x)
    prior = -torch.stack([energies(model, x + cov.sample(generators), cov) for _ in range(draws)]).mean(0)
    evidence = log_evidence(model, m, operator, sigma, draws=draws, seed=seed)
    variance = max(sigma**2, VARIANCE_FLOOR)
    residual = operator.coordinates(m - operator(x)).square().flatten(1).sum(1) / variance
    measured = operator.measured(x.shape, x).expand(x.shape).flatten(1).sum(1)
    likelihood = -0.5 * (residual + measured * math.log(2 * math.pi * variance))
    return Scores(prior, prior + likelihood - evidence, residual / measured, evidence, x[0].numel())


@dataclass(frozen=True)
class Comparison:
    """How far the prior log-probabilities of a set are from those of a reference, in nats/dim.

    Arguments:
        difference: mean of set − reference over images. standard_error: of it.
        spread: standard deviation over the reference.
    """

    difference: float
    standard_error: float
    spread: float

    @property
    def flag(self) -> str:
        """``"over-smoothed"`` (prior too high), ``"off-distribution"`` (too low), or nothing.

        A set is flagged if it differs by more than one standard deviation of the reference and by more than 3 standard errors.
        """
        if not abs(self.difference) > max(self.spread, 3 * self.standard_error):
            return ""
        return "over-smoothed" if self.difference > 0 else "off-distribution"


def compare(prior: Tensor, reference: Tensor, dimensions: int) -> Comparison:
    """A set against truths, or samples of the posterior, of the same measurements.

    One image and one reference decide nothing: the spread is then NaN, and nothing is flagged.

    Arguments:
        prior: log-probabilities of the set, (B,).
        reference: R of every image, (R, B), R = 1 for truths.
        dimensions: numbers in an image.

    Raises:
        ValueError: shapes that do not agree.
    """
    if prior.ndim != 1 or reference.ndim != 2 or reference.shape[1] != len(prior):
        raise ValueError(f"reference: wanted (R, {len(prior)}), got {tuple(reference.shape)} for a set of shape {tuple(prior.shape)}")
    difference = prior - reference.mean(0)
    error, spread = math.nan, math.nan
    if len(prior) > 1:
        error, spread = float(difference.std()) / len(prior) ** 0.5, float(reference.std())
    elif len(reference) > 1:
        error = spread = float(reference.std())
    return Comparison(float(difference.mean()) / dimensions, error / dimensions, spread / dimensions)
