"""Anisotropic denoising and covariance score matching (design of the paper's eqs. for A-DSM and A-CSM, per dimension)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anem.covariance import Covariance, coherence
from anem.network import EnergyNetwork

__all__ = ["LossTerms", "dual_score_loss"]


@dataclass(frozen=True, eq=False)
class LossTerms:
    """``total`` (a scalar, differentiable) and, detached, per image: ``a_dsm``, ``a_csm`` and ``energy`` (nats), each (B,)."""

    total: Tensor
    a_dsm: Tensor
    a_csm: Tensor
    energy: Tensor


def dual_score_loss(
    model: EnergyNetwork,
    x: Tensor,
    cov: Covariance,
    noise: Tensor,
    weight: float = 1.0,
    balance: float = 0.0,
    collective: float = 0.0,
    discount: float = 0.0,
) -> LossTerms:
    """(1/d) Σ_k b_k (√λ_k (B∇U)_k − ε_k)² + w (1/d) Σ_k b_k (∂U/∂ℓ_k − ½(1 − ε_k²))², averaged over the batch.

    Both squares have floors near a_k = c_k/(c_k + λ_k) (exactly a_k and ½a_k(2 − a_k) for Gaussian data), so with b = 1 the nearly
    deterministic small-noise coordinates give almost all of the gradient and its noise, and the large-noise ones, which decide on global
    structure, almost none. b_k = (a_k + 10⁻³)^{−γ} depends on Σ alone, so it moves no minimum.

    A network whose score is not quite right at some Σ cannot have E[∂U/∂ℓ] = 0 everywhere (the field is not a gradient), and what is wrong
    there is spread over all Σ that the second term weighs alike. It is worst where a few coordinates hide much, so those weigh less.

    Arguments:
        x: clean images, (B, C, H, W). cov: Σ of each.
        noise: ε, the white noise *drawn*, in basis coordinates (B, C, H, W): y = x + Bᵀ√λ ε. Recovering it from y − x would lose digits.
        collective: weight of (Σ_k u_k r_k)²/Σ_k u_k², r the covariance residual, for u = a and 1 − a: what is observed and what is not,
            scaled as a whole. The mean of r over an image is known d times better than one r_k, and it is what log Z integrates; a bias
            of it of 0.02 nats/dim is invisible in the mean of r².
        discount: power of the coherence of the hidden part λ/(λ + c̄) by which the covariance terms of an image are divided.
        balance: γ; 0 weighs coordinates by their share of the log-likelihood, 1 by relative error.
        weight: w; 1/d is the paper's, 0 leaves the energy's dependence on Σ untrained.
    """
    rho = model.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise
    gradients = model.differentiable_gradients(rho, cov)
    denoising = (cov.values.sqrt() * gradients.grad_coordinates - noise).square()
    # For a real signal k and −k share one variance: half the target's variance is averaged away.
    target = 0.5 * (1 - cov.basis.symmetrise(noise.square()))
    matching = (gradients.grad_logvar - target).square()
    c = model.statistics.variance_in(cov.basis, *cov.shape[-2:], cov.values)
    a = c / (c + cov.values)
    b = (a + 1e-3).pow(-balance)
    matched = (b * matching).flatten(1).mean(1)
    if collective:
        residual = b.sqrt() * (gradients.grad_logvar - target)
        for u in (a, 1 - a):
            matched = matched + collective * (u * residual).flatten(1).sum(1).square() / u.square().flatten(1).sum(1)
    if discount:
        hidden = cov.values / (cov.values + c.mean((2, 3), keepdim=True))
        matched = matched * coherence(cov.basis, hidden).mean((1, 2, 3)).pow(-discount)
    total = (b * denoising).mean() + weight * matched.mean()
    a_dsm, a_csm = denoising.detach().flatten(1).mean(1), matching.detach().flatten(1).mean(1)
    return LossTerms(total, a_dsm, a_csm, gradients.energy.detach())
