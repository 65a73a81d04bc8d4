"""Pictures of the speed bench."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure as Picture

from anem.bench.report import Report
from anem.bench.speed_step import Growth

__all__ = ["plot_growth", "plot_step"]


def plot_step(report: Report, name: str, file: Path) -> None:
    """Time of everything measured beside a training step, that step being 1."""
    over = {
        part: 1 / float(report.figures[f"train/{name}/time over {part}"].value)
        for part in ("energy", "network call", "denoiser", "A-DSM alone")
    }
    bars = over | {"A-DSM + A-CSM": 1.0, "reference": float(report.figures[f"train/{name}/images per second over the reference's"].value)}
    picture = Picture(figsize=(5.5, 2.8), layout="constrained")
    ax = picture.subplots()
    ax.barh(list(bars), list(bars.values()), color=["tab:grey"] * 4 + ["tab:blue", "tab:orange"])
    ax.axvline(float(report.figures[f"train/{name}/floor over time"].value), color="black", linestyle=":", label="measured floor")
    ax.set_xlabel("time, a training step = 1")
    ax.legend()
    picture.savefig(file, dpi=110)


def plot_growth(grown: list[Growth], file: Path) -> None:
    """Time and memory against every size, relative to the smallest."""
    picture = Picture(figsize=(3.2 * len(grown), 3.2), layout="constrained")
    for ax, g in zip(picture.subplots(1, len(grown), sharey=True), grown, strict=True):
        for (name, p), values in zip(g.exponents().items(), (g.seconds, g.peak, g.multiply_adds), strict=True):
            ax.loglog(g.sizes, [v / values[0] for v in values], "o-", label=f"{name}, power {p:.2f}")
        ax.set_xlabel(g.name)
        ax.legend(fontsize=8)
    picture.savefig(file, dpi=110)
