"""Have the chains converged, and how many independent draws are theirs worth: split R̂ and the effective sample size.

Draws are (S, N, …): S chains of N draws of any number of quantities. A quantity that never changes has no R̂ and no effective sample
size: the result is NaN there. Source: Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021, arXiv 1903.08008.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effective_sample_size", "split_rhat"]


def split_rhat(draws: Tensor, ranked: bool = False) -> Tensor:
    """√(var⁺/W) of the chains cut in halves, draws (S, N, …) to (…); near 1 if they agree, below 1.01 as a rule.

    Arguments:
        ranked: the greater of R̂ of the normal scores of the ranks and of those of |x − median|: sensible for heavy tails, and it sees
            chains that differ in spread alone.
    """
    halves = _split(draws)
    if ranked:
        folded = (halves - halves.flatten(0, 1).median(0).values).abs()
        return torch.maximum(*(_rhat(_normal_scores(h)) for h in (halves, folded)))
    return _rhat(halves)


def effective_sample_size(draws: Tensor) -> Tensor:
    """S N/τ for the mean of draws (S, N, …), (…), with τ = 1 + 2 Σ ρ_t the autocorrelation time over the chains cut in halves.

    The sum ends where a pair ρ_2t + ρ_2t+1 is no longer positive, and pairs are made to decrease (Geyer 1992). Above S·N for chains
    with negative correlations, at most S N log₁₀(S N).
    """
    halves = _split(draws)
    chains, n = halves.shape[:2]
    centred = halves - halves.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * n, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * n, dim=1)[:, :n].mean(0) / n  # biased, (N, …)
    within, total = _variances(halves)
    rho = 1 - (within - covariance) / total
    rho[0] = torch.where(total > 0, 1.0, torch.nan)
    pairs = rho[: n // 2 * 2].unflatten(0, (n // 2, 2)).sum(1)
    positive = (pairs > 0).to(pairs).cumprod(0)
    tau = 2 * (pairs.cummin(0).values * positive).sum(0) - 1
    count = torch.as_tensor(float(chains * n), dtype=tau.dtype)
    return count / tau.clamp_min(1 / count.log10())


def _split(draws: Tensor) -> Tensor:
    """Chains (S, N, …) cut in halves, (2S, N/2, …), float64; the middle draw of an odd number is left out."""
    n = draws.shape[1]
    if n < 8 or draws.ndim < 2:
        raise ValueError(f"draws: wanted (chains, draws, …) with at least 8 draws, got {tuple(draws.shape)}")
    return torch.cat([draws[:, : n // 2], draws[:, n - n // 2 :]]).double()


def _variances(chains: Tensor) -> tuple[Tensor, Tensor]:
    """W, the mean variance within chains, and var⁺ = (1 − 1/N) W + the variance of their means; (…)."""
    n = chains.shape[1]
    within = chains.var(1).mean(0)
    return within, (1 - 1 / n) * within + chains.mean(1).var(0)


def _rhat(chains: Tensor) -> Tensor:
    within, total = _variances(chains)
    return (total / within).sqrt()


def _normal_scores(chains: Tensor) -> Tensor:
    """Φ⁻¹((r − ⅜)/(SN + ¼)) of the ranks r among all chains, ties sharing their mean rank."""
    flat = chains.flatten(0, 1).flatten(1).T.contiguous()  # (quantities, S N)
    ordered = flat.sort(1).values
    below, through = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    rank = 0.5 * (below + through + 1).to(flat)
    return torch.special.ndtri((rank - 0.375) / (flat.shape[1] + 0.25)).T.reshape(chains.shape)
