"""Estimated degradation parameters against the true ones, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from anem.blind import Family

__all__ = ["Found", "plot_estimates"]


@dataclass(frozen=True, eq=False)
class Found:
    """What was estimated of N measurements.

    Arguments:
        family: what θ means. theta: θ̂, (N, D). interval: 90 % intervals, (N, D, 2). resolved: of the posteriors, bool (N,).
    """

    family: Family
    theta: Tensor
    interval: Tensor
    resolved: Tensor


def plot_estimates(found: Found, theta: Sequence[Sequence[float]], title: str, file: Path) -> None:
    """A panel a parameter: estimates with 90 % intervals over the true value of the first parameter, the truth as crosses, into a PNG."""
    parameters = found.family.parameters
    truth = torch.tensor(theta, dtype=torch.float64)
    figure = Figure(figsize=(3.8 * len(parameters), 3.2), layout="constrained")
    for a, (ax, (name, parameter)) in enumerate(
        zip(figure.subplots(1, len(parameters), squeeze=False)[0], parameters.items(), strict=True)
    ):
        x = truth[:, 0].numpy()
        low, high = found.interval[:, a].T.numpy()
        ax.vlines(x, low, high, color="C0", alpha=0.4)
        ax.plot(x, found.theta[:, a].numpy(), "o", color="C0", ms=3, label="estimate, 90 % interval")
        ax.plot(x, truth[:, a].numpy(), "kx", ms=4, label="truth")
        ax.set(xlabel=f"true {next(iter(parameters))}", ylabel=name + (f", {parameter.unit}" if parameter.unit else ""))
        ax.set_yscale("log" if parameter.scale == "log" else "linear")
    ax.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110, format="png")
