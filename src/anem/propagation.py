"""What single pixel values say about an image seen through correlated noise: expectation propagation between pixels and coordinates.

The prior is that of independent pixels, p(x) = Π_p p_mix(x_p) = N(x; μ, c̄) Π_p f(x_p) with p_mix a scalar mixture of variance c̄ and f what
it has over a Gaussian. It is exact to integrate one pixel against f, and exact to integrate everything if f were Gaussian. So each f is
replaced by a Gaussian site exp(−½γx² + hx), found by turns: the Gaussian model gives every pixel's cavity N(m_c, v_c), what it knows of the
pixel without the pixel's own site; the pixel answers with a site that gives it the mean it has under f, and the precision that is right on
average (the state evolution of approximate message passing), so that γ is a function of Σ alone and the model stays diagonal. −log of the
normaliser is then estimated as in expectation propagation,

    U = U_flat − log E_{x|y}[Π_p exp(−½γx_p² + h_p x_p)] − Σ_p log (E_cavity[f]/E_cavity[exp(−½γx² + hx)]),

U_flat the energy of N(μ, c̄ + Λ). In the pixel basis cavities do not depend on the sites and U is the exact energy of independent mixture
pixels. Everything below is relative to μ, and sites are written as h = γx̃ + d, which keeps all terms of order one at any noise level.

References: Minka, Expectation propagation for approximate Bayesian inference (2001); Rangan, Schniter and Fletcher, Vector approximate
message passing (2019), for the uniform precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.bases import Basis
from anem.statistics import DataStatistics

__all__ = ["Propagation", "propagate"]


@dataclass(frozen=True, eq=False)
class Propagation:
    """Result of :func:`propagate`; all but the energies is (B, C, H, W), of the last round, in pixels and relative to μ.

    Arguments:
        energies: U − U_flat in nats, with the sites of every round, none first, (rounds + 1, B).
        posterior: mean of each pixel under its cavity and f.
        noise, spread: of the scalar observation of each pixel that its cavity amounts to, and c̄.
        delta: −log p_mix + log p_Gauss of that observation. divergence: minus its expectation.
    """

    energies: Tensor
    posterior: Tensor
    noise: Tensor
    spread: Tensor
    delta: Tensor
    divergence: Tensor


def propagate(
    rho: Tensor, variances: Tensor, level: Tensor, basis: Basis, statistics: DataStatistics, rounds: int, share: Tensor
) -> Propagation:
    """Expectation propagation as in the module's docstring, twice differentiable.

    Arguments:
        rho: B(y − μ), (B, C, H, W). variances: λ. level: c̄, of the same shape.
        rounds: how often sites are replaced; 0 is plain mean-field. share: of the new site in its replacement, (B, 1, 1, 1).
    """
    marginal, centre = statistics.marginal, statistics.mean_image(rho)
    e, x = level * variances / (level + variances), rho * level / (level + variances)
    spread, explained = basis.pixel_variance(level), basis.pixel_variance(level * level / (level + variances))
    gamma = torch.zeros_like(e[..., :1, :1])
    tilted = d = torch.zeros_like(x)
    energies: list[Tensor] = []
    while True:
        # The Gaussian model with its sites, and the cavity of every pixel.
        shrink = 1 / (1 + gamma * e)
        v = basis.pixel_variance(e * shrink)
        v_c = v / basis.pixel_variance(shrink.expand_as(e))
        mean = basis.inverse((x + e * basis.forward(gamma * tilted + d)) * shrink)
        m_c = tilted + v_c * ((mean - tilted) / v - d)
        # The observation of the pixel that the cavity amounts to, 1/τ = 1/v_c − 1/c̄, and the pixel's answer.
        gained = torch.maximum(spread - v_c, explained)
        noise, shift = v_c * spread / gained, m_c * spread / gained
        log_p, posterior = marginal(centre + shift, noise)
        posterior = posterior - centre
        delta = -0.5 * (torch.log(2 * math.pi * (spread + noise)) + shift.square() / (spread + noise)) - log_p
        joint = _log_site(gamma, basis.forward(d), x - basis.forward(tilted), e)
        energies.append((0.5 * (joint - _log_site(gamma, d, m_c - tilted, v_c)) + delta).flatten(1).sum(1))
        if len(energies) > rounds:
            return Propagation(torch.stack(energies), posterior, noise, spread, delta, marginal.divergence(noise))
        # The new site, in natural parameters mixed with the old one.
        precision = (torch.expm1(-marginal.log_reduction(noise)) / v_c).mean((2, 3), keepdim=True)
        natural = torch.lerp(gamma * tilted + d, precision * posterior + (posterior - m_c) / v_c, share)
        gamma = torch.lerp(gamma, precision, share)
        tilted, d = posterior, natural - gamma * posterior


def _log_site(gamma: Tensor, d: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
    """−2 log E[exp(−½γx² + (γx̃ + d)x)] of x ~ N(x̃ + offset, variance), up to a constant of the site that no basis changes."""
    return torch.log1p(gamma * variance) + (gamma * offset.square() - 2 * offset * d - variance * d.square()) / (1 + gamma * variance)
