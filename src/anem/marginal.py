"""The distribution of single pixel values: a scalar Gaussian mixture per channel, and what one noisy scalar says under it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ScalarMixture"]

_MIN_VARIANCE = 1e-8
_LOG_GRID = torch.linspace(math.log(1e-10), math.log(1e6), 129, dtype=torch.float64)


class _LogDensity(torch.autograd.Function):
    """(m, τ) ↦ (log p, P_1) for p(m, τ) a density blurred by N(0, τ).

    ∂P_n/∂m = P_{n+1} − P_n P_1, and the heat equation ∂p/∂τ = ½ ∂²p/∂m² gives ∂P_n/∂τ = ½(P_{n+2} − P_n P_2): all derivatives are
    polynomials in ratios computed once, so nothing is differentiated through the components.
    """

    @staticmethod
    def forward(ctx, mixture: ScalarMixture, m: Tensor, variance: Tensor, *ratios: Tensor):
        ctx.mixture = mixture
        ctx.save_for_backward(m, variance, *ratios)
        return ratios[0].clone(), ratios[1].clone()

    @staticmethod
    def backward(ctx, grad_log: Tensor, grad_score: Tensor):
        m, variance, *ratios = ctx.saved_tensors
        p1, p2, p3 = _Ratios.apply(ctx.mixture, 3, m, variance, *ratios[1:])
        grad_m = grad_log * p1 + grad_score * (p2 - p1 * p1)
        grad_variance = 0.5 * (grad_log * p2 + grad_score * (p3 - p1 * p2))
        return None, grad_m, grad_variance, *[None] * len(ratios)


class _Ratios(torch.autograd.Function):
    """(m, τ) ↦ (P_1, …, P_count), given them and two more. What is to be differentiated again asks the mixture for the next two."""

    @staticmethod
    def forward(ctx, mixture: ScalarMixture, count: int, m: Tensor, variance: Tensor, *p: Tensor):
        ctx.mixture, ctx.count = mixture, count
        ctx.save_for_backward(m, variance, *p)
        return tuple(x.clone() for x in p[:count])

    @staticmethod
    def backward(ctx, *grads: Tensor):
        m, variance, *p = ctx.saved_tensors
        if torch.is_grad_enabled():
            more = ctx.mixture._ratios(m, variance, ctx.count + 4)[1:]
            p = _Ratios.apply(ctx.mixture, ctx.count + 2, m, variance, *more)
        grad_m = sum(g * (p[n + 1] - p[n] * p[0]) for n, g in enumerate(grads))
        grad_variance = sum(0.5 * g * (p[n + 2] - p[n] * p[1]) for n, g in enumerate(grads))
        return None, None, grad_m, grad_variance, *[None] * (ctx.count + 2)


class ScalarMixture(nn.Module):
    """Σ_j π_j N(m_j, s_j) for the values of one pixel, one mixture a channel.

    Arguments:
        channels: C. components: K.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    divergences: Tensor
    reductions: Tensor

    def __init__(self, channels: int, components: int = 12) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((channels, components), 1 / components))
        self.register_buffer("means", torch.zeros(channels, components))
        self.register_buffer("variances", torch.ones(channels, components))
        self.register_buffer("divergences", torch.zeros(channels, len(_LOG_GRID)))
        self.register_buffer("reductions", torch.zeros(channels, len(_LOG_GRID)))

    @torch.no_grad()
    def fit(self, values: Tensor, steps: int = 200) -> None:
        """Expectation-maximisation on values (C, N); half of the means start on quantiles, half evenly over the range.

        At its fixed points the mixture has exactly the mean and the variance of the values.
        """
        k = self.weights.shape[1]
        for channel, x in enumerate(values.double()):
            ranks = (torch.arange(k - k // 2, dtype=x.dtype, device=x.device) + 0.5) / (k - k // 2)
            quantiles = torch.quantile(x[:: max(1, len(x) // 100_000)], ranks)
            spread = torch.linspace(float(x.min()), float(x.max()), k // 2 + 2, dtype=x.dtype, device=x.device)[1:-1]
            m = torch.cat([quantiles, spread])
            # Start each component as narrow as its neighbourhood is dense: wide starts would all merge inside a spike.
            nearest = (m[:, None] - m).abs().fill_diagonal_(float(x.max() - x.min())).min(1).values
            s = (nearest / 2).square().clamp_min(_MIN_VARIANCE)
            p = torch.full_like(m, 1 / k)
            for _ in range(steps):
                log = p.log() - 0.5 * s.log() - 0.5 * (x[:, None] - m).square() / s
                r = torch.softmax(log, 1)
                n = r.sum(0).clamp_min(1e-9)
                m = (r * x[:, None]).sum(0) / n
                s = ((r * (x[:, None] - m).square()).sum(0) / n).clamp_min(_MIN_VARIANCE)
                p = n / len(x)
            self.weights[channel], self.means[channel], self.variances[channel] = p, m, s
        divergences, reductions = self._tables()
        self.divergences.copy_(divergences)
        self.reductions.copy_(reductions)

    def _tables(self) -> tuple[Tensor, Tensor]:
        """On the grid of log τ, (C, 129) each, by Gauss–Hermite quadrature:

        KL(mixture + N(0, τ) ‖ Gaussian of the same mean and variance), and log of E Var(x given m), m = x + N(0, τ), over the Gaussian's.
        """
        nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(64))
        p, mean, s = (b.double()[:, None, :] for b in (self.weights, self.means, self.variances))
        tau = _LOG_GRID.exp()[None, :, None]
        t = s + tau  # (C, 129, K)
        m = mean[..., None] + t.sqrt()[..., None] * nodes  # (C, 129, K, 64)
        gap = m[..., None] - mean[..., None, None, :]
        each = p.log()[..., None, None, :] - 0.5 * (t.log()[:, :, None, None] + gap.square() / t[:, :, None, None])
        log_p = torch.logsumexp(each, -1)
        centre = (p * mean).sum(-1, keepdim=True)
        wide = ((p * (s + mean.square())).sum(-1, keepdim=True) - centre.square() + tau)[..., None]
        log_q = -0.5 * (wide.log() + (m - centre[..., None]).square() / wide)
        divergence = (p * ((log_p - log_q) * weights).sum(-1) / weights.sum()).sum(-1)
        # Var(x given m) = Σ_j r_j (within_j + (mean_j(m) − E[x given m])²) with r the responsibilities.
        gain = (s / t)[:, :, None, None]
        centres = mean[..., None, None, :] + gain * gap
        r = torch.softmax(each, -1)
        posterior = (r * centres).sum(-1, keepdim=True)
        variance = (r * (gain * tau[..., None, None] + (centres - posterior).square())).sum(-1)
        mmse = (p * (variance * weights).sum(-1) / weights.sum()).sum(-1)
        spread = wide[..., 0, 0] - tau[..., 0]
        return divergence, (mmse / (spread * tau[..., 0] / (spread + tau[..., 0]))).log().clamp_max(0)

    def divergence(self, variance: Tensor) -> Tensor:
        """KL divergence in nats of the noisy mixture from a Gaussian of its mean and variance, (B, C, H, W) like ``variance``.

        It is the mean of log p(m) − log N(m) over m = x + N(0, variance).
        """
        return self._interpolate(self.divergences, variance)

    def log_reduction(self, variance: Tensor) -> Tensor:
        """log of the mean posterior variance of x given m = x + N(0, variance), over the same for Gaussian x: at most 0."""
        return self._interpolate(self.reductions, variance)

    def _interpolate(self, table: Tensor, variance: Tensor) -> Tensor:
        """Cubic in log variance; constant beyond the ends."""
        position = (variance.log() - _LOG_GRID[0]) / (_LOG_GRID[1] - _LOG_GRID[0])
        position = position.clamp(1, len(_LOG_GRID) - 3)
        index = position.detach().floor().nan_to_num(1.0)  # NaN stays NaN through f
        f = (position - index)[..., None]
        rows = table.to(variance)[None, :, None, None, :].expand(*variance.shape, -1)
        p = [rows.gather(-1, index.long()[..., None] + k) for k in (-1, 0, 1, 2)]
        slope, jump = 0.5 * (p[2] - p[0]), p[2] - p[1]
        late = 0.5 * (p[3] - p[1])
        return (p[1] + f * (slope + f * (3 * jump - 2 * slope - late + f * (slope + late - 2 * jump))))[..., 0]

    @torch.no_grad()
    def _ratios(self, m: Tensor, variance: Tensor, order: int) -> list[Tensor]:
        """log p and P_n = ∂ⁿp/∂mⁿ / p for n = 1 … order, (B, C, H, W) each, by the Hermite recursion of every component."""
        p, mean, s = (b.to(m)[:, :, None, None] for b in (self.weights, self.means, self.variances))
        t = s + variance[:, :, None]
        gap = m[:, :, None] - mean
        log = p.clamp_min(1e-30).log() - 0.5 * (t.log() + gap.square() / t)
        total = torch.logsumexp(log, 2, keepdim=True)
        share = torch.exp(log - total)
        # In units of √variance, which keeps high powers of narrow components in range.
        step = variance[:, :, None].sqrt()
        first, curvature = -gap / t * step, -variance[:, :, None] / t
        ratios, before, now = [total[:, :, 0] - 0.5 * math.log(2 * math.pi)], torch.ones_like(first), first
        for n in range(1, order + 1):
            ratios.append((share * now).sum(2) / variance.pow(n / 2))
            before, now = now, first * now + n * curvature * before
        return ratios

    def forward(self, m: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """log p(m) in nats and E[x given m], both (B, C, H, W), for an observation m = x + N(0, variance) of every pixel.

        Arguments:
            m, variance: (B, C, H, W); the results are differentiable in both, to any order.
        """
        ratios = self._ratios(m, variance, 5 if torch.is_grad_enabled() else 1)
        log_p, score = _LogDensity.apply(self, m, variance, *ratios) if torch.is_grad_enabled() else ratios
        return log_p, m + variance * score
