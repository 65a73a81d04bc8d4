"""The likelihood of the score alone, by the probability flow: it cannot see a wrong constant of U, so it checks U against its own slope."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import EnergyModel, check_observation
from anem.likelihood.path import anchor, anchor_log_prob
from anem.random import Generators, random_signs

__all__ = ["FlowLikelihood", "flow_log_prob"]


@dataclass(frozen=True, eq=False)
class FlowLikelihood:
    """log p(y given Σ) by the probability flow, in nats, (B,), and its standard error over trace probes (zero for the exact trace)."""

    log_prob: Tensor
    standard_error: Tensor


def flow_log_prob(
    model: EnergyModel, y: Tensor, cov: Covariance, *, steps: int = 100, probes: int | None = 1, generators: Generators = None
) -> FlowLikelihood:
    """log p(y given Σ) = log p_T(z(1)) + ∫₀¹ div f dτ along dz/dτ = f = ½ (dλ/dτ) B∇U, from Σ straight in log λ up to the anchor.

    Only the score enters, so −U(y, Σ) equals it for the energy of a noisy density, and a difference shows where U is none. Heun's method
    for dz/d√λ = √λ B∇U, exact where the noise is all there is; the trapezoidal rule for the trace.

    Arguments:
        y: (B, C, H, W). cov: Σ of each; the path is white if Σ is.
        steps: of two evaluations each.
        probes: random signs for the trace (Hutchinson), each a product with the Hessian; None for the exact trace by d products.
        generators: source of the probes, one an image or one for all.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 39, for Σ in place of a scalar; Hutchinson 1990.
    """
    check_observation(y, cov)
    if steps < 1 or (probes is not None and probes < 1):
        raise ValueError(f"flow: wanted steps >= 1 and probes >= 1 or None, got {steps} and {probes}")
    cov = cov.replace(cov.values.double())
    end = anchor(model.statistics, cov)
    rate = (end.values / cov.values).log()
    z = cov.basis.forward(y.detach().double())
    if probes is None:
        signs = torch.eye(z[0].numel(), dtype=z.dtype, device=z.device).reshape(-1, 1, *z.shape[1:])
    else:
        signs = torch.stack([random_signs(z.shape, generators, z) for _ in range(probes)])
    divergence = torch.zeros(len(signs), len(z), dtype=z.dtype, device=z.device)
    for i in range(steps):
        now, then = (cov.replace(cov.values * (rate * (j / steps)).exp()) for j in (i, i + 1))
        stretch = then.values.sqrt() - now.values.sqrt()
        noise, trace = _flow_field(model, z, now, rate, signs)
        noise_then, trace_then = _flow_field(model, z + stretch * noise, then, rate, signs)
        z = z + 0.5 * stretch * (noise + noise_then)
        divergence += 0.5 / steps * (trace + trace_then)
    start = anchor_log_prob(model.statistics, z, end)
    if probes is None:
        return FlowLikelihood(start + divergence.sum(0), torch.zeros_like(start))
    error = divergence.std(0) / probes**0.5 if probes > 1 else torch.full_like(start, math.nan)
    return FlowLikelihood(start + divergence.mean(0), error)


def _flow_field(model: EnergyModel, z: Tensor, cov: Covariance, rate: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """ε = √λ B∇U at coordinates z, (B, C, H, W), and sᵀ (∂f/∂z) s with f = ½ (dλ/dτ) B∇U for every probe s, (probes, B)."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(model.energy(cov.basis.inverse(leaf), cov).sum(), leaf, create_graph=True)
        velocity = 0.5 * rate * cov.values * grad
        forms = []
        for s in signs:
            (product,) = torch.autograd.grad((velocity * s).sum(), leaf, retain_graph=True)
            forms.append((product * s).flatten(1).sum(1))
    return cov.values.sqrt() * grad.detach(), torch.stack(forms)
