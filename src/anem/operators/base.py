"""From a degradation m = H x + σ v to a noisy image y = x + n, n ~ N(0, Σ), and back to the density of m.

Every operator here has HᵀH = Bᵀ diag(|h|²) B in one orthonormal basis B. With the polar form H = R diag(|h|) B, R an isometry, the
rotated measurement z = Rᵀ m obeys, coordinate by coordinate and in real numbers even where the response h is complex,

    z_k = |h_k| (B x)_k + σ ε_k,    ε white.

A coordinate is *observed* when σ²/|h_k|² ≤ λ_max: there y_k = z_k/|h_k| and λ_k = σ²/|h_k|². Any other coordinate (h_k = 0 included;
decided before dividing) says nothing worth having: λ_k = λ_max and y_k is drawn from N(μ_k, c_k + λ_max), with μ and c the data mean
and variance. The evidence of the measurement is then

    log p(m) = −U(y, Σ) − Σ_obs log |h_k| − Σ_unobs log N(y_k; μ_k, c_k + λ_max) + Σ_unobs, measured log N(z_k; |h_k| μ_k, |h_k|² c_k + σ²).

The last sum is over unobserved coordinates that m nevertheless contains: all frequencies after a blur, none of the pixels behind a
mask. It is exact for Gaussian data that are independent in B; otherwise the error is about e/(e + λ_max), e the largest eigenvalue
of the data covariance given what was observed. Without that sum, exp of the evidence is an unbiased estimate of p(m) over the draws
of y_unobs for any data and any λ_max, so averages over draws are log-mean-exp. Different parameters are comparable only where they
leave the same entries of m measured.

Noise floor: σ² is taken as at least ``floor``, by default 1/(12·256²), the variance of 8-bit rounding. So σ = 0 means "known to 8
bits", and every quantity is that of a measurement with this much noise; the gradient with respect to a σ below the floor is zero.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Basis
from anem.covariance import Covariance
from anem.random import Generators, normal
from anem.statistics import VARIANCE_FLOOR, DataStatistics

__all__ = ["LinearOperator", "Observation"]


@dataclass(frozen=True, eq=False)
class Observation:
    """A measurement rewritten as an image with anisotropic noise.

    Arguments:
        y: noisy image y = x + n, (B, C, H, W), in image space.
        cov: Σ, the covariance of n.
        observed: whether a basis coordinate was observed, bool (B, C, H, W).
        log_evidence_terms: what −U(y, Σ) lacks to be log p(m), in nats, (B,); see the module docstring.
    """

    y: Tensor
    cov: Covariance
    observed: Tensor
    log_evidence_terms: Tensor

    @classmethod
    def of(cls, y: Tensor, cov: Covariance, observed: bool = True) -> Observation:
        """A noisy image, (B, C, H, W), all of which is observed or nothing, without a measurement that it comes from."""
        return cls(y, cov, torch.full_like(y, observed, dtype=torch.bool), torch.zeros_like(y[:, 0, 0, 0]))

    def log_evidence(self, energy: Callable[[Tensor, Covariance], Tensor]) -> Tensor:
        """log p(m) in nats, (B,), with ``energy(y, cov)`` such as ``model.energy``; the graph is kept."""
        return self.log_evidence_terms - energy(self.y, self.cov)

    def __getitem__(self, index: Tensor | slice) -> Observation:
        """The observations of some images of the batch."""
        return Observation(self.y[index], self.cov[index], self.observed[index], self.log_evidence_terms[index])


class LinearOperator(ABC):
    """A linear degradation H, diagonal in the orthonormal basis ``basis``.

    An operator holds one setting of its parameters or a batch of P (P masks, P blur widths). A batch of P meets P images one by one, or
    a single image P times. A subclass gives :meth:`response`, :meth:`coordinates`, ``_forward`` and ``_adjoint``; one that changes the
    size also gives the two shapes and :meth:`visualise`.
    """

    name: str
    basis: Basis
    is_identity = False
    diagonal_noise_maps = False
    """Whether noise with a variance per measured pixel is diagonal in ``basis``."""

    @abstractmethod
    def response(self, shape: Sequence[int], like: Tensor | None = None) -> Tensor:
        """h on images of ``shape`` (…, H, W), in basis coordinates: (P, C or 1, H, W), real or complex, in the precision of ``like``."""

    @abstractmethod
    def coordinates(self, m: Tensor) -> Tensor:
        """Rotated measurement z = Rᵀ m with z_k = |h_k| (B x)_k + σ ε_k, (B, C, H, W); zero where m has no such coordinate."""

    @abstractmethod
    def _forward(self, x: Tensor, h: Tensor) -> Tensor:
        """H x, given the response."""

    @abstractmethod
    def _adjoint(self, m: Tensor, h: Tensor) -> Tensor:
        """Hᵀ m, given the response."""

    def measurement_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of H x for x of shape (…, H, W)."""
        return tuple(image_shape)

    def image_shape(self, measurement_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of x for H x of shape (…, h, w)."""
        return tuple(measurement_shape)

    def measured(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Which coordinates a measurement contains at all, observed or not: bool, broadcastable to (B, C, H, W)."""
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=like.device)

    def __call__(self, x: Tensor) -> Tensor:
        """H x, without noise: (B, C, H, W) to measurement space."""
        _check_rank("x", x)
        return self._forward(x, self._response(x.shape, x))

    def adjoint(self, m: Tensor) -> Tensor:
        """Hᵀ m: measurement space to (B, C, H, W)."""
        _check_rank("measurement", m)
        return self._adjoint(m, self._response(self.image_shape(m.shape), m))

    def check_measurement(self, m: Tensor, sigma: float | Tensor) -> None:
        """Raise ValueError unless m (B, C, h, w) is of a shape this operator gives, and σ fits it."""
        _check_rank("measurement", m)
        std = self._std(sigma, m)
        self._response(self.image_shape(m.shape), m)
        _check_batch(self.name, m, std)

    def measure(self, x: Tensor, sigma: float | Tensor, generators: Generators = None) -> Tensor:
        """m = H x + σ v with v white, in measurement space.

        Arguments:
            x: images (B, C, H, W).
            sigma: standard deviation ≥ 0: a number, (B,), or, where the noise stays diagonal, a map (H, W) or one of four axes that
                broadcasts to m.
            generators: source of v.
        """
        m = self(x)
        std = self._std(sigma, m)
        _check_batch(self.name, m, std)
        return m + std * normal(torch.broadcast_shapes(m.shape, std.shape), generators, m)

    def pseudo_inverse(self, m: Tensor, regularised: float = 0.0) -> Tensor:
        """H⁺ m, (B, C, H, W), for display and baselines; ``regularised`` = ε > 0 gives h*/(|h|² + ε) in place of 1/h."""
        _check_rank("measurement", m)
        gain = self._response(self.image_shape(m.shape), m).abs()
        usable = gain > max(gain.shape[-2:]) * torch.finfo(gain.dtype).eps * gain.amax((-2, -1), keepdim=True)
        safe = torch.where(usable, gain, 1.0)
        return self.basis.inverse(torch.where(usable, self.coordinates(m) * safe / (safe.square() + regularised), 0.0))

    def visualise(self, m: Tensor) -> Tensor:
        """A measurement as a picture of the image's size, (B, C, H, W)."""
        return m

    def observe(
        self,
        measurement: Tensor,
        sigma: float | Tensor,
        statistics: DataStatistics,
        generators: Generators = None,
        *,
        regularised: float = 0.0,
        floor: float = VARIANCE_FLOOR,
    ) -> Observation:
        """The noisy image and covariance that carry what a measurement says; differentiable in σ and in the operator's parameters.

        Arguments:
            measurement: m, (B, C, h, w). One measurement against P parameters or P values of σ gives a batch of P that shares its
                random numbers.
            sigma: standard deviation ≥ 0 of the noise in m: a number, (B,), or, where the noise stays diagonal (identity, inpainting,
                block super-resolution), a map (h, w) or one of four axes that broadcasts to m.
            statistics: of the data: μ, c and λ_max.
            generators: source of the unobserved coordinates, one a measurement or one for all.
            regularised: ε > 0 replaces 1/h by the biased inverse g = h*/(|h|² + ε) of Zilberstein et al. (arXiv 2605.15487) in y,
                in λ = σ²|g|² and in the Jacobian; only for reproducing published numbers.
            floor: least *variance* of the noise in m, > 0; see the module docstring.

        Raises:
            ValueError: a measurement of another shape or not finite, σ negative or not finite, a noise map with an operator for
                which the noise would not stay diagonal, statistics of another number of channels.

        Source: Zilberstein et al., arXiv 2605.15487 (y and Σ); the Jacobian and the last two sums are ours.
        """
        _check_rank("measurement", measurement)
        if not bool(torch.isfinite(measurement).all()):
            raise ValueError("measurement: wanted finite values, got NaN or infinity")
        if not (floor > 0 and regularised >= 0):
            raise ValueError(f"observe: wanted floor > 0 and regularised >= 0, got {floor} and {regularised}")
        shape = self.image_shape(measurement.shape)
        if len(statistics.mean) != shape[1]:
            raise ValueError(f"statistics: wanted {shape[1]} channel(s) as in the measurement, got {len(statistics.mean)}")
        gain = self._response(shape, measurement).abs()
        variance = self._noise_variance(sigma, measurement, floor)
        _check_batch(self.name, measurement, gain, variance)
        mean = self.basis.forward(statistics.mean_image(measurement).expand(1, *shape[1:]))
        prior = statistics.variance_in(self.basis, shape[-2], shape[-1], measurement)
        lambda_max = statistics.lambda_max
        z = self.coordinates(measurement)
        drawn = mean + (prior + lambda_max).sqrt() * normal((len(measurement), *shape[1:]), generators, measurement)

        observed = (gain > 0) & (variance <= lambda_max * gain.square())
        unseen = ~observed & self.measured(shape, measurement)
        safe = torch.where(observed, gain, 1.0)
        inverse = safe / (safe.square() + regularised)
        y = torch.where(observed, z * inverse, drawn)
        values = torch.where(observed, variance * inverse.square(), lambda_max)
        spread = torch.where(unseen, gain.square() * prior + variance, 1.0)
        terms = torch.where(observed, inverse.log(), -_log_normal(drawn, mean, prior + lambda_max))
        terms = terms + torch.where(unseen, _log_normal(z, gain * mean, spread), 0.0)
        cov = Covariance(values.expand_as(y), self.basis, check=False)
        return Observation(self.basis.inverse(y), cov, observed.expand_as(y), terms.expand_as(y).flatten(1).sum(1))

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        """The degradation ``self`` after ``inner``, if one basis makes both diagonal; ValueError otherwise."""
        if self.is_identity or inner.is_identity:
            return inner if self.is_identity else self
        product = self._after(inner)
        if product is None:
            same = self.basis == inner.basis
            bases = f"diagonal in {self.basis.name!r}" + (
                ", which images of another size do not share" if same else f" and {inner.basis.name!r}"
            )
            raise ValueError(f"{self.name} after {inner.name}: wanted two operators that one basis makes diagonal, got {bases}")
        return product

    def _after(self, inner: LinearOperator) -> LinearOperator | None:
        return None

    def _response(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """The response on a batch of images of ``shape`` (B, C, H, W), checked to fit it."""
        h = self.response(shape, like)
        if len(h) != shape[0] and 1 not in (len(h), shape[0]):
            raise ValueError(f"{self.name}: wanted a batch of {len(h)} (the operator's) or 1, got {shape[0]}")
        if h.shape[1] not in (1, shape[1]):
            raise ValueError(f"{self.name}: wanted {h.shape[1]} channels, the operator's, got {shape[1]}")
        return h

    def _std(self, sigma: float | Tensor, m: Tensor) -> Tensor:
        """σ as a tensor (B or 1, C or 1, h or 1, w or 1)."""
        std = torch.as_tensor(sigma, dtype=m.dtype, device=m.device)
        if not std.numel():
            raise ValueError(f"sigma: wanted at least one number, got an empty tensor of shape {tuple(std.shape)}")
        if not bool((torch.isfinite(std) & (std >= 0)).all()):
            raise ValueError(f"sigma: wanted finite standard deviations >= 0, got values from {float(std.min())} to {float(std.max())}")
        if std.ndim < 2:
            std = std.reshape(-1, 1, 1, 1)
        if std.ndim == 2:
            std = std[None, None]
        if std.ndim != 4 or any(a not in (1, b) for a, b in zip(std.shape[1:], m.shape[1:], strict=True)):
            wanted = f"a number, one an image, or a map (H, W) or (B, C, H, W) that fits {tuple(m.shape)}"
            raise ValueError(f"sigma: wanted {wanted}, got shape {tuple(std.shape)}")
        if std.shape[-2:] != (1, 1) and not self.diagonal_noise_maps:
            why = f"a noise map is diagonal in pixels, {self.name} in {self.basis.name!r}, and no basis makes both diagonal"
            raise ValueError(f"sigma: wanted one number an image, got a map: {why}")
        return std

    def _noise_variance(self, sigma: float | Tensor, m: Tensor, floor: float) -> Tensor:
        """max(σ², floor) in basis coordinates, broadcastable to (B, C, H, W)."""
        variance = self._std(sigma, m).square().clamp_min(floor)
        if variance.shape[-2:] == (1, 1):
            return variance
        return self.coordinates(variance.expand(-1, -1, *m.shape[-2:]))


def _check_rank(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"{name}: wanted a tensor of floats, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"{name}: wanted shape (B, C, H, W), got {tuple(x.shape)}")
    if not x.numel():
        raise ValueError(f"{name}: wanted at least one image of at least one pixel, got shape {tuple(x.shape)}")


def _check_batch(name: str, *tensors: Tensor) -> None:
    sizes = {len(t) for t in tensors} - {1}
    if len(sizes) > 1:
        raise ValueError(f"{name}: wanted one batch size (or 1) for measurement, operator and sigma, got {sorted(sizes)}")


def _log_normal(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((value - mean).square() / variance + (2 * math.pi * variance).log())
