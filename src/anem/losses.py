"""Anisotropic denoising score matching (A-DSM) and covariance score matching (A-CSM), per dimension.

The second may be replaced by slices of itself, or by the residual of the Fokker–Planck equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, softplus

from anem.bases import coherence
from anem.covariance import Covariance
from anem.energy import EnergyModel
from anem.network import EnergyNetwork, TrainingGradients
from anem.random import Generators, random_signs

__all__ = ["PLAIN", "CovarianceTerm", "LossConfig", "LossTerms", "dual_score_loss", "fokker_planck_residuals", "make_strangers"]

CovarianceTerm = Literal["matching", "sliced", "fokker_planck"]
"""What teaches the energy how it depends on Σ, see :class:`LossConfig`."""


@dataclass(frozen=True)
class LossConfig:
    """The terms of :func:`dual_score_loss` and what they weigh; :meth:`plain` is without those that are ours.

    Arguments:
        balance: γ; 0 weighs coordinates by their share of the log-likelihood, 1 by relative error.
        collective: weight of (Σ_k u_k √b_k r_k)²/Σ_k u_k², r the covariance residual, for u = a and 1 − a: what is observed and what is
            not, scaled as a whole. The mean of r over an image is known d times better than one r_k, and it is what log Z integrates; a
            bias of it of 0.02 nats/dim is invisible in the mean of r².
        discount: power of the coherence of the hidden part λ/(λ + c̄) by which the covariance terms of an image are divided.
        calibration: weight of 9 log(1 + z²/9), z = Σ_k u_k (V_k − (x − D)²_k)/λ_k / √(2 Σ_k (u_k a_k)²): the one-call posterior variance V
            against the squared error it predicts, summed over an image, for u = 1 and 1/(a + 0.01). Above the data variance V/λ = a + O(a²)
            is a small difference of numbers that the other terms know to 10⁻² or so; the target is held fixed.
        projection: weight of 9 log(1 + z²/9), z = Σ_k u_k (ε_k − s_k)/√(Σ_k u_k² a_k), s = √λ B∇U the predicted noise, along u = s and
            s/(a + 0.01), both held fixed. The best s is the projection of ε, at right angles to what is left of it in every direction that
            y decides. s too small by 1 % costs A-DSM 10⁻⁴, and the slope of the energy in log λ half of that 1 %. An image counts by the
            evenness of its λ, their geometric over their arithmetic mean: where few coordinates hide much, one direction would decide.
        bound: β; what one image adds grows as β(1 + log(L/β)) above it, so that the few Σ under which the network is useless (L up to
            10⁵, while learned ones are of order 1) do not decide the direction of a step. Below it nothing changes; 0 for no bound.
        contrast: weight of −log [e^{−U(y, Σ)}/(e^{−U(y, Σ)} + e^{−U(y, Σ′)})], Σ′ its ``twin``: the log-loss of telling which of the two
            made the noise. The other terms see y with its own Σ only; a search over Σ asks about any. In nats; above 10 it grows as the
            logarithm, as with ``bound``. Costs one more energy and its gradient a step.
        strangers: weight of max(0, −i/d), i = U(s + n, Σ) − Σ_k ½ log 2πλ_k − ½‖ε‖², s an image unlike the data
            (:func:`make_strangers`), n = Bᵀ√λ ε fresh noise: where the energy calls s + n more probable than n. The mean of i over n is
            KL(N(s, Σ) ‖ p) ≥ 0 for a normalised energy, whatever s. In nats/dim; above 1 it grows as the logarithm. Costs one more energy
            and its gradient a step.
        covariance_term: "matching" is A-CSM. "sliced" has (z · √b r)²/d, z random signs, for the mean of b r². "fokker_planck" has for r
            that of :func:`fokker_planck_residuals`, and for r² the product of two with probes of their own, whose mean it is; single
            products may be negative, and a step takes about 2.7 times as long.

    Raises:
        ValueError: a negative or infinite weight, another ``covariance_term``.
    """

    balance: float = 1.0
    collective: float = 0.05
    discount: float = 2.0
    calibration: float = 0.003
    projection: float = 0.0
    bound: float = 0.0
    contrast: float = 0.0
    strangers: float = 0.0
    covariance_term: CovarianceTerm = "matching"

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name != "covariance_term"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"loss.{name}: wanted a finite number >= 0, got {getattr(self, name)}")
        if self.covariance_term not in get_args(CovarianceTerm):
            raise ValueError(f"loss.covariance_term: wanted one of {', '.join(get_args(CovarianceTerm))}, got {self.covariance_term!r}")

    @classmethod
    def plain(cls, **terms: Any) -> LossConfig:
        """The paper's two terms, weighed by likelihood, and ``terms`` by name."""
        return replace(cls(balance=0.0, collective=0.0, discount=0.0, calibration=0.0), **terms)


PLAIN = LossConfig.plain()
"""The paper's loss, with w = 1."""


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
    config: LossConfig = PLAIN,
    *,
    twin: Covariance | None = None,
    generators: Generators = None,
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
        weight: w; 1/d is the paper's, 0 leaves the energy's dependence on Σ untrained, and costs nothing.
        config: the terms.
        twin: Σ′ of each, exchangeable with Σ (:func:`anem.corruptions.draw_covariances`) and in its basis; wanted for ``contrast`` alone.
        generators: of z and the probes; the draws of one image do not depend on the others' if it is one an image.

    Raises:
        ValueError: ``contrast`` without twins.

    Source: Zilberstein et al., arXiv 2605.15487, the losses of anisotropic denoising and covariance score matching; the rest is ours
    (docs/mathematics.md).
    """
    if config.contrast and twin is None:
        raise ValueError("contrast: wanted a twin of every covariance, got none")
    rho = model.statistics.residual(x, cov.basis) + cov.values.sqrt() * noise
    # For a real signal k and −k share one variance: half the target's variance is averaged away.
    target = 0.5 * (1 - cov.basis.symmetrise(noise.square()))
    if weight and config.covariance_term == "fokker_planck":
        gradients, pair = fokker_planck_residuals(model, rho, cov, [random_signs(rho.shape, generators, rho) for _ in range(2)])
    else:
        gradients = model.differentiable_gradients(rho, cov)
        pair = [gradients.grad_logvar - target] * 2
    denoising = (cov.values.sqrt() * gradients.grad_coordinates - noise).square()
    c = model.statistics.variance_of(cov)
    a = c / (c + cov.values)
    b = (a + 1e-3).pow(-config.balance)
    total = (b * denoising).flatten(1).mean(1)
    if config.projection:
        total = total + config.projection * _evenness(cov.values) * _misprojection(cov.values.sqrt() * gradients.grad_coordinates, noise, a)
    if weight:
        first, second = (b.sqrt() * r for r in pair)
        matched = _matched(config, first, second, a, generators)
        if config.calibration:
            matched = matched + config.calibration * _miscalibration(gradients, cov, noise, a)
        if config.discount:
            hidden = cov.values / (cov.values + c.mean((2, 3), keepdim=True))
            matched = matched * coherence(cov.basis, hidden).mean((1, 2, 3)).pow(-config.discount)
        total = total + weight * matched
    if config.contrast and twin is not None:
        mistaken = softplus(gradients.energy - model.differentiable_energy(rho, twin))
        total = total + config.contrast * _slow_above(mistaken, 10.0)
    if config.strangers:
        total = total + config.strangers * _slow_above(_beyond_noise(model, make_strangers(x, noise), cov, noise.roll(1, 0)), 1.0)
    if config.bound:
        total = _slow_above(total, config.bound)
    a_csm = (gradients.grad_logvar.detach() - target).square()
    return LossTerms(total.mean(), denoising.detach().flatten(1).mean(1), a_csm.flatten(1).mean(1), gradients.energy.detach())


def _beyond_noise(model: EnergyNetwork, s: Tensor, cov: Covariance, noise: Tensor) -> Tensor:
    """max(0, −i/d) of images s with noise ε, (B,), see ``strangers`` of :class:`LossConfig`."""
    rho = model.statistics.residual(s, cov.basis) + cov.values.sqrt() * noise
    of_noise = 0.5 * (noise.square() + (2 * math.pi * cov.values).log()).flatten(1).sum(1)
    return ((of_noise - model.differentiable_energy(rho, cov)) / noise[0].numel()).relu()


def make_strangers(x: Tensor, noise: Tensor) -> Tensor:
    """Images in [0, 1] that are unlike x, (B, C, H, W): a texture, in the whole frame or in a rectangle on black or on another image.

    Textures are noise of any band: smooth or rough, as it is or times ±1 in rows, columns or checks. All that is random comes from the
    white noise of other images of the batch, (B, C, H, W): a function of the arguments alone, which can be recorded.
    """
    h, w = x.shape[-2:]
    grain, dice = noise.roll(2, 0), noise.roll(3, 0).flatten(1)[:, :10]
    u = (0.5 + 0.5 * torch.erf(dice / 2**0.5)).unbind(1)  # uniform numbers
    v = [n.view(-1, 1, 1, 1) for n in u]
    smooth = grain
    for _ in range(2):
        smooth = avg_pool2d(smooth, 5, 1, 2, count_include_pad=False)
    texture = torch.lerp(grain, smooth * 8, v[0])
    rows, columns = torch.arange(h, device=x.device).view(h, 1), torch.arange(w, device=x.device).view(1, w)
    up, across = 1 - 2 * (rows % 2).to(x), 1 - 2 * (columns % 2).to(x)
    texture = texture * torch.where(v[1] < 0.6, up, 1.0) * torch.where((v[1] > 0.3) & (v[1] < 0.9), across, 1.0)
    texture = (0.8 * (v[3] - 0.5) + 0.5 + (0.2 + 2 * v[2]) * texture).clamp(0, 1)
    tall, wide = (0.1 + 0.4 * v[4]) * h, (0.1 + 0.4 * v[5]) * w
    inside = ((rows - v[6] * (h - 1)).abs() < tall) & ((columns - v[7] * (w - 1)).abs() < wide)
    around = torch.where(v[8] < 0.5, 0.0, x.roll(1, 0))
    return torch.where(inside | (v[9] < 0.25), texture, around)


def _matched(config: LossConfig, first: Tensor, second: Tensor, a: Tensor, generators: Generators) -> Tensor:
    """The mean of r² over an image from two estimates of r (one twice if it is exact), and the collective terms, (B,)."""
    if config.covariance_term == "sliced":
        z = random_signs(first.shape, generators, first)
        matched = _dot(z, first) * _dot(z, second) / first[0].numel()
    else:
        matched = (first * second).flatten(1).mean(1)
    for u in (a, 1 - a) if config.collective else ():
        matched = matched + config.collective * _dot(u, first) * _dot(u, second) / _dot(u, u)
    return matched


def _miscalibration(gradients: TrainingGradients, cov: Covariance, noise: Tensor, a: Tensor) -> Tensor:
    """Bounded squares of the one-call variance less the squared error, summed over an image, in units of their deviation, (B,)."""
    excess, total = _excess_variance(gradients, cov, noise), a.new_zeros(len(a))
    for u in (torch.ones_like(a), 1 / (a + 0.01)):
        total = total + _bounded_square(_dot(u, excess).square() / (2 * _dot(u * a, u * a)))
    return total


def _evenness(values: Tensor) -> Tensor:
    """Geometric over arithmetic mean of λ, (B,): 1 for white noise in any basis, towards 0 the more uneven."""
    return values.log().mean((1, 2, 3)).exp() / values.mean((1, 2, 3))


def _misprojection(scaled: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """Bounded squares of what is left of the noise ε along the predicted noise s = √λ B∇U, in units of its deviation, (B,)."""
    total = scaled.new_zeros(len(scaled))
    for u in (scaled.detach(), scaled.detach() / (a + 0.01)):
        total = total + _bounded_square(_dot(u, noise - scaled).square() / _dot(u * u, a))
    return total


def _slow_above(x: Tensor, bound: float) -> Tensor:
    """x up to ``bound`` > 0, bound · (1 + log(x/bound)) above it."""
    return x.clamp(max=bound) + bound * (x.clamp(min=bound) / bound).log()


def _bounded_square(z2: Tensor) -> Tensor:
    """z² while z is of order 1, growing as log z beyond 3."""
    return 9 * torch.log1p(z2 / 9)


def _excess_variance(gradients: TrainingGradients, cov: Covariance, noise: Tensor) -> Tensor:
    """(V − (x − D)²)/λ of every coordinate, V/λ = 1 − 2∂U/∂ℓ − λ(B∇U)² the one-call posterior variance, D the one-call mean, held fixed."""
    scaled = cov.values.sqrt() * gradients.grad_coordinates
    error = cov.basis.symmetrise((noise - scaled.detach()).square())
    return 1 - 2 * gradients.grad_logvar - cov.basis.symmetrise(scaled.square()) - error


def fokker_planck_residuals(
    model: EnergyModel, rho: Tensor, cov: Covariance, probes: Sequence[Tensor]
) -> tuple[TrainingGradients, list[Tensor]]:
    """∂U/∂ℓ_k − ½ (M_kk − λ_k (∂U/∂ρ_k)²) of every coordinate, an estimate of it for each probe, at y = μ + Bᵀρ.

    M = √Λ B ∇²U Bᵀ √Λ is the Hessian in units of the noise. For z of independent entries of mean 0 and variance 1, z_k (Mz)_k has the mean
    M_kk (Hutchinson's estimator, of a diagonal) and, for signs, the variance Σ_{j≠k} M_jk². Without a probe's noise the residual is 0 at
    −log of any noisy density, for which M is at most 1. Averaged over coordinates that share a variance.

    Everything is differentiable in the parameters, M thus three times over. A probe costs one more pass through the graph of the gradient.

    Arguments:
        rho: B(y − μ), (B, C, H, W). cov: Σ. probes: z, (B, C, H, W) each.

    References:
        Plainer, Wu, Klein, Günnemann and Noé, Consistent sampling and simulation (2025), arXiv 2506.17139, for isotropic diffusions.
    """
    deviation = cov.values.sqrt()
    scope = model.unet.scope.inputs_only() if isinstance(model, EnergyNetwork) else nullcontext()
    with torch.enable_grad(), scope:
        leaf = rho.detach().requires_grad_()
        logvar = cov.values.detach().log().requires_grad_()
        y = model.statistics.mean_image(leaf) + cov.basis.inverse(leaf)
        energy = model.energy(y, cov.replace(logvar.exp()))
        grad_rho, grad_logvar = torch.autograd.grad(energy.sum(), (leaf, logvar), create_graph=True)
        white = deviation * grad_rho
        products = [deviation * torch.autograd.grad(white, leaf, z, create_graph=True)[0] for z in probes]
    residuals = [cov.basis.symmetrise(grad_logvar - 0.5 * (z * p - white.square())) for z, p in zip(probes, products, strict=True)]
    return TrainingGradients(energy, grad_rho, cov.basis.symmetrise(grad_logvar)), residuals


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner products of images, (B,)."""
    return (u * v).flatten(1).sum(1)
