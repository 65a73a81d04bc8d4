"""Estimated degradation parameters against the true ones, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from anem.blind import Estimate

__all__ = ["plot_estimates"]


def plot_estimates(found: Sequence[Estimate], theta: Sequence[Sequence[float]], title: str, file: Path) -> None:
    """A panel a parameter: estimates with 90 % intervals over the true value of the first parameter, the truth as crosses, into a PNG."""
    parameters = found[0].family.parameters
    truth = torch.tensor(theta, dtype=torch.float64)
    figure = Figure(figsize=(3.8 * len(parameters), 3.2), layout="constrained")
    for a, (ax, (name, parameter)) in enumerate(
        zip(figure.subplots(1, len(parameters), squeeze=False)[0], parameters.items(), strict=True)
    ):
        x = truth[:, 0].numpy()
        low, high = torch.stack([e.posterior.interval(0.9)[a] for e in found]).double().T.numpy()
        ax.vlines(x, low, high, color="C0", alpha=0.4)
        ax.plot(x, [float(e.theta[a]) for e in found], "o", color="C0", ms=3, label="estimate, 90 % interval")
        ax.plot(x, truth[:, a].numpy(), "kx", ms=4, label="truth")
        ax.set(xlabel=f"true {next(iter(parameters))}", ylabel=name + (f", {parameter.unit}" if parameter.unit else ""))
        ax.set_yscale("log" if parameter.scale == "log" else "linear")
    ax.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110, format="png")
