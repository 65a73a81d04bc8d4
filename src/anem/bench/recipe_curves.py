"""What the record of a race between trainings says: when each reached a value, and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from anem.bench.turns import Point, Record

__all__ = ["QUANTITIES", "plot_curves", "reached"]

QUANTITIES = ("A-DSM", "energy error (nats/dim)")
"""What is raced for: figures of a :class:`~anem.bench.turns.Point`, by name."""


def reached(points: Sequence[Point], quantity: str, target: float) -> float:
    """Seconds after which a quantity is at or below ``target`` for good; infinity if it is not at the end."""
    seconds = math.inf
    for point in reversed(points):
        if point.figures[quantity] > target:
            break
        seconds = point.seconds
    return seconds


def plot_curves(curves: Mapping[str, Record], file: Path) -> None:
    """Both quantities against time on the clock."""
    picture = Picture(figsize=(8.4, 3.4), layout="constrained")
    for ax, quantity in zip(picture.subplots(1, len(QUANTITIES)), QUANTITIES, strict=True):
        for name, curve in curves.items():
            ax.loglog([p.seconds for p in curve.points], [p.figures[quantity] for p in curve.points], ".-", linewidth=1, label=name)
        ax.set(xlabel="seconds of training", ylabel=quantity)
    ax.legend(fontsize=8)
    picture.savefig(file, dpi=110)
