"""Paths of covariances: a recorder for samplers, and pictures of what it recorded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from anem.covariance import Covariance
from anem.energy import Evaluation
from anem.sample import ChainState

__all__ = ["PathRecorder", "plot_paths"]

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
MAPS = 6


class PathRecorder:
    """A callback of samplers that keeps every Σ_t of one chain: λ (n + 1, C, H, W), the start included.

    Arguments:
        chain: its number; chain b is the first sample of image b.
    """

    def __init__(self, chain: int = 0) -> None:
        self.chain = chain
        self.basis = ""
        self._levels: list[Tensor] = []

    def __call__(self, step: int, state: ChainState, cov: Covariance, evaluation: Evaluation) -> None:
        if self.chain in state.chains:
            self._levels = [] if step == 0 else self._levels
            values = cov.values if len(cov.values) == 1 else cov.values[self.chain - state.chains.start][None]
            self._levels.append(values[0].cpu())
            self.basis = cov.basis.name

    @property
    def values(self) -> Tensor:
        """λ, (n + 1, C, H, W)."""
        return torch.stack(self._levels)


def plot_paths(paths: Mapping[str, tuple[str, Tensor]], file: Path) -> None:
    """A row a path, into a PNG: quantiles of λ over the coordinates by step, and maps of log₁₀ λ at equally spaced steps.

    Frequencies are shown with zero in the middle; of several channels the first.

    Arguments:
        paths: by name, the name of the basis and λ, (n + 1, C, H, W).
    """
    figure = Figure(figsize=(14, 2.4 * len(paths) + 0.3), layout="constrained")
    grid = figure.subplots(len(paths), MAPS + 1, squeeze=False, width_ratios=[2.2] + MAPS * [1.0])
    logs = {name: values.log10() for name, (_, values) in paths.items()}
    low, high = (float(f(torch.stack([f(v) for v in logs.values()]))) for f in (torch.min, torch.max))
    for row, (name, (basis, _)) in zip(grid, paths.items(), strict=True):
        values = logs[name]
        quantiles = values.flatten(1).quantile(torch.tensor(QUANTILES, dtype=values.dtype), dim=1)
        for q, curve in zip(QUANTILES, quantiles, strict=True):
            row[0].plot(curve.numpy(), label=f"{100 * q:g} %", color="k" if q == 0.5 else None, lw=1.8 if q == 0.5 else 1)
        row[0].set(xlabel="step", ylabel="log₁₀ λ", title=name)
        row[0].legend(fontsize=6, title="quantile", title_fontsize=6)
        for ax, step in zip(row[1:], torch.linspace(0, len(values) - 1, MAPS).round().long().tolist(), strict=True):
            shown = values[step, 0].roll([n // 2 for n in values.shape[-2:]], (0, 1)) if basis == "fourier" else values[step, 0]
            image = ax.imshow(shown.numpy(), vmin=low, vmax=high, cmap="viridis")
            ax.set(xticks=[], yticks=[], title=f"step {step}")
        figure.colorbar(image, ax=row[-1], label=f"log₁₀ λ, {basis}")
    figure.savefig(file, dpi=110, format="png")
