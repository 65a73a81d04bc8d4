"""Pictures of the evidence of degradation parameters: a curve of one, a surface of two, a profile of each of more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anem.blind import Estimate, Parameter

FLOOR = 20.0
"""Nats below the best at which the colours of a surface end."""


def plot_evidence(found: Estimate, title: str, file: Path) -> None:
    """log p(m given θ) relative to its best value, into a PNG."""
    parameters = found.family.parameters
    if len(parameters) == 2:
        figure = Figure(figsize=(5.5, 4.2), layout="constrained")
        surface(found, figure)
    else:
        figure = Figure(figsize=(4.2 * len(parameters), 3.4), layout="constrained")
        axes = figure.subplots(1, len(parameters), squeeze=False, sharey=True)[0]
        for a, ax in enumerate(axes):
            profile(found, a, ax)
        axes[0].set_ylabel("log evidence − best, nats" + ("\n(best over the others)" if len(parameters) > 1 else ""))
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110, format="png")


def profile(found: Estimate, a: int, ax: Axes) -> None:
    """Log evidence along one parameter, the best over all others, with the 90 % interval."""
    name, parameter = list(found.family.parameters.items())[a]
    cells = found.cells
    # A coarse cell between fine ones would look like a dip: keep, of the cells over a value, the best.
    u, width, value = (t.numpy() for t in (cells.centres[:, a], cells.widths[:, a], cells.log_evidence))
    at = np.unique(u)
    best = np.array([value[np.abs(u - v) <= 0.5 * width].max() for v in at])
    shown = np.isfinite(best)
    theta = parameter.value(cells.centres.new_tensor(at[shown])).numpy()
    ax.plot(theta, np.maximum(best[shown] - found.highest, -1e6), ".-" if len(theta) < 60 else "-", markersize=4)
    low, high = found.posterior.interval(0.9)[a].tolist()
    ax.axvspan(low, high, alpha=0.2, color="tab:orange", label="90 % interval")
    ax.axvline(float(found.theta[a]), color="tab:red", linewidth=1, label=f"estimate {float(found.theta[a]):.4g}")
    ax.set_yscale("symlog", linthresh=10.0)
    scaled(ax, "x", name, parameter)
    ax.legend(fontsize=8)


def surface(found: Estimate, figure: Figure) -> None:
    """Log evidence of two parameters, every cell a rectangle."""
    ax = figure.subplots()
    evidence = found.cells
    ends = [evidence.family.values(evidence.centres + sign * evidence.widths / 2).numpy() for sign in (-1, 1)]
    patches = [Rectangle((x0, y0), x1 - x0, y1 - y0) for (x0, y0), (x1, y1) in zip(*ends, strict=True)]
    cells = PatchCollection(patches, cmap="viridis", edgecolor="face", linewidth=0.2)
    relative = evidence.log_evidence.numpy() - found.highest
    cells.set_array(np.maximum(relative, -FLOOR))
    cells.set_clim(-FLOOR, 0)
    ax.add_collection(cells)
    ax.plot(*found.theta.tolist(), "r+", markersize=12, label="estimate " + ", ".join(f"{v:.4g}" for v in found.theta.tolist()))
    for axis, (name, parameter), a in zip("xy", found.family.parameters.items(), (0, 1), strict=True):
        scaled(ax, axis, name, parameter)
        getattr(ax, f"set_{axis}lim")(float(ends[0][:, a].min()), float(ends[1][:, a].max()))
    ax.legend(fontsize=8)
    figure.colorbar(cells, label=f"log evidence − best, nats (floor −{FLOOR:g})")


def scaled(ax: Axes, axis: str, name: str, parameter: Parameter) -> None:
    """Name and scale of one axis."""
    if parameter.scale == "log":
        getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}label")(name + (f", {parameter.unit}" if parameter.unit else ""))
