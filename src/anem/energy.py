"""The interface of every energy, learned or exact: U(y, Σ) ≈ −log p(y given Σ), in nats, normalised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from anem.covariance import Covariance
from anem.statistics import DataStatistics

__all__ = ["EnergyModel", "Evaluation", "NotFinite", "check_observation"]


class NotFinite(ValueError):
    """A noisy image with NaN or infinity where a number is wanted."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All that one network call gives at (y, Σ).

    Arguments:
        y: noisy image, (B, C, H, W), in image space.
        cov: its noise covariance.
        energy: U(y, Σ) in nats, (B,).
        grad_y: ∇_y U, minus the score, (B, C, H, W) in image space.
        grad_logvar: ∂U/∂ℓ with ℓ = log λ, (B, C, H, W) in the coordinates of the basis.
        variance_ratio: Var(x_k given y)/λ_k if the model has a more exact route to it than the generic formula.
    """

    y: Tensor
    cov: Covariance
    energy: Tensor
    grad_y: Tensor
    grad_logvar: Tensor
    variance_ratio: Tensor | None = None

    @cached_property
    def denoised(self) -> Tensor:
        """E[x given y, Σ] = y − Σ ∇_y U (anisotropic Tweedie), (B, C, H, W)."""
        return self.y - self.cov.apply(self.grad_y)

    @cached_property
    def relative_variance(self) -> Tensor:
        """κ = Var(x_k given y)/λ_k = 1 − 2 ∂U/∂ℓ_k − λ_k |(B∇U)_k|², raw (negative values included), (B, C, H, W)."""
        if self.variance_ratio is not None:
            return self.variance_ratio
        return 1 - 2 * self.grad_logvar - self.cov.values * self.cov.basis.power(self.grad_y)

    @property
    def posterior_variance(self) -> Tensor:
        """Var(x_k given y) of every basis coordinate, raw, (B, C, H, W)."""
        return self.cov.values * self.relative_variance


class EnergyModel(nn.Module, ABC):
    """U(y, Σ), one number per image in nats, with everything that follows from its two gradients.

    A subclass gives :meth:`energy`, differentiable in ``y`` and in ``cov.values``, and ``statistics``; the rest follows by automatic
    differentiation. Call the model to get an :class:`Evaluation`: all quantities from one pass.
    """

    statistics: DataStatistics

    @abstractmethod
    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        """U(y, Σ) in nats, (B,), for y (B, C, H, W)."""

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        """Energy and both gradients at (y, Σ); detached, and no graph is kept."""
        with torch.enable_grad():
            leaf = y.detach().requires_grad_()
            logvar = cov.values.detach().log().requires_grad_()
            energy = self.energy(leaf, cov.replace(logvar.exp()))
            grad_y, grad_logvar = torch.autograd.grad(energy.sum(), (leaf, logvar))
        grad_logvar = cov.basis.symmetrise(grad_logvar)
        return Evaluation(leaf.detach(), cov, energy.detach(), grad_y, grad_logvar)

    def gradients(self, y: Tensor, cov: Covariance) -> tuple[Tensor, Tensor]:
        """(∇_y U, ∂U/∂ℓ), both (B, C, H, W): the first in image space, the second per basis coordinate."""
        evaluation = self._checked(y, cov)
        return evaluation.grad_y, evaluation.grad_logvar

    def denoise(self, y: Tensor, cov: Covariance) -> Tensor:
        """E[x given y, Σ], (B, C, H, W)."""
        return self._checked(y, cov).denoised

    def posterior_variance(self, y: Tensor, cov: Covariance) -> Tensor:
        """Var(x_k given y) of every coordinate of Σ's basis, raw, (B, C, H, W): a map of pixels only for Σ diagonal in pixels."""
        return self._checked(y, cov).posterior_variance

    def log_prob(self, y: Tensor, cov: Covariance) -> Tensor:
        """log p(y given Σ) = −U(y, Σ), in nats, (B,). No gradient is recorded.

        Like all methods of a model it takes tensors of floats (B, C, H, W) and no other kind of image: a density is one of y as given,
        and integers are no such y until they are dequantised, see :func:`anem.images.to_tensor`.
        """
        check_observation(y, cov, len(self.statistics.mean))
        with torch.no_grad():
            return -self.energy(y, cov)

    def _checked(self, y: Tensor, cov: Covariance) -> Evaluation:
        check_observation(y, cov, len(self.statistics.mean))
        return self(y, cov)


def check_observation(y: Tensor, cov: Covariance, channels: int | None = None, finite: bool = True) -> None:
    """Raise ValueError unless y is of floats, has the shape of Σ and as many ``channels`` as the model, and is ``finite`` if asked for.

    Raises:
        ValueError: as said; :class:`NotFinite`, which is one, for NaN and infinity.
    """
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise ValueError(f"y: wanted a tensor of floats, got {y.dtype if isinstance(y, Tensor) else type(y).__name__}")
    if not isinstance(cov, Covariance):
        raise ValueError(f"cov: wanted a Covariance, got {type(cov).__name__}")
    if channels is not None and (y.ndim != 4 or y.shape[1] != channels):
        raise ValueError(f"y: wanted (B, {channels}, H, W), the model's channels, got {tuple(y.shape)}")
    if y.shape != cov.shape:
        raise ValueError(f"y: wanted the shape of the covariance {tuple(cov.shape)}, got {tuple(y.shape)}")
    if finite and not bool(torch.isfinite(y).all()):
        raise NotFinite("y: wanted finite values, got NaN or infinity")
