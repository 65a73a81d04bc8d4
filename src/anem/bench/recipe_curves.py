"""What a race between trainings leaves: a curve of each, when it reached a value, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture

from anem.bench.harness import write_json

__all__ = ["QUANTITIES", "Curve", "Point", "plot_curves", "reached"]

QUANTITIES = {"a_dsm": "A-DSM", "energy_error": "energy error (nats/dim)"}
"""What is raced for: fields of :class:`Point`, by their names in the figures."""


@dataclass(frozen=True)
class Point:
    """What a training had come to after ``seconds`` and ``images``; ``slopes`` are the errors by σ², ``energy_error`` their mean."""

    seconds: float
    images: int
    a_dsm: float
    a_csm: float
    energy_error: float
    slopes: dict[str, float]


@dataclass
class Curve:
    """The points of a training, in a file that is renewed with each.

    Arguments:
        file: where. config: of the training, as plain values. commit: of the code that began it.
        stopped: why it ended before its time, if it did.
    """

    file: Path
    config: dict[str, Any]
    commit: str
    points: list[Point] = field(default_factory=list)
    stopped: str = ""

    @classmethod
    def open(cls, file: Path, config: dict[str, Any], commit: str) -> Curve:
        """The curve in ``file``, or a new one.

        Raises:
            ValueError: the file is of a training with other settings.
        """
        if not file.exists():
            return cls(file, config, commit)
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["config"] != config:
            raise ValueError(f"{file}: of a training with other settings; move its folder away to start afresh")
        return cls(file, config, data["commit"], [Point(**p) for p in data["points"]], data["stopped"])

    @property
    def seconds(self) -> float:
        """On the clock so far; without end once it has stopped."""
        return math.inf if self.stopped else self.points[-1].seconds if self.points else 0.0

    def save(self) -> None:
        """Write the file, whole or not at all."""
        points = [asdict(p) for p in self.points]
        write_json(self.file, {"config": self.config, "commit": self.commit, "stopped": self.stopped, "points": points})


def reached(points: Sequence[Point], quantity: str, target: float) -> float:
    """Seconds after which a quantity is at or below ``target`` for good; infinity if it is not at the end."""
    seconds = math.inf
    for point in reversed(points):
        if getattr(point, quantity) > target:
            break
        seconds = point.seconds
    return seconds


def plot_curves(curves: Mapping[str, Curve], file: Path) -> None:
    """Both quantities against time on the clock."""
    picture = Picture(figsize=(8.4, 3.4), layout="constrained")
    for ax, (quantity, label) in zip(picture.subplots(1, len(QUANTITIES)), QUANTITIES.items(), strict=True):
        for name, curve in curves.items():
            ax.loglog([p.seconds for p in curve.points], [getattr(p, quantity) for p in curve.points], ".-", linewidth=1, label=name)
        ax.set(xlabel="seconds of training", ylabel=label)
    ax.legend(fontsize=8)
    picture.savefig(file, dpi=110)
