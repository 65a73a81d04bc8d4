"""Anisotropic denoising and covariance score matching (design of the paper's eqs. for A-DSM and A-CSM, per dimension)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anem.covariance import Covariance
from anem.network import EnergyNetwork

__all__ = ["LossTerms", "dual_score_loss"]


@dataclass(frozen=True, eq=False)
class LossTerms:
    """``total`` (a scalar, differentiable) and, detached, per image: ``a_dsm``, ``a_csm`` and ``energy`` (nats), each (B,)."""

    total: Tensor
    a_dsm: Tensor
    a_csm: Tensor
    energy: Tensor


def dual_score_loss(model: EnergyNetwork, x: Tensor, cov: Covariance, noise: Tensor, weight: float = 1.0) -> LossTerms:
    """(1/d) ‖Σ^{1/2}∇U − ε‖² + w (1/d) Σ_k (∂U/∂ℓ_k − ½(1 − ε_k²))², averaged over the batch.

    Arguments:
        x: clean images, (B, C, H, W). cov: Σ of each.
        noise: ε, the white noise *drawn*, in basis coordinates (B, C, H, W): y = x + Bᵀ√λ ε. Recovering it from y − x would lose digits.
        weight: w; 1/d is the paper's, 0 leaves the energy's dependence on Σ untrained.
    """
    rho = model.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise
    gradients = model.differentiable_gradients(rho, cov)
    a_dsm = (cov.values.sqrt() * gradients.grad_coordinates - noise).square().flatten(1).mean(1)
    # For a real signal k and −k share one variance: half the target's variance is averaged away.
    target = 0.5 * (1 - cov.basis.symmetrise(noise.square()))
    a_csm = (gradients.grad_logvar - target).square().flatten(1).mean(1)
    total = (a_dsm + weight * a_csm).mean()
    return LossTerms(total, a_dsm.detach(), a_csm.detach(), gradients.energy.detach())
