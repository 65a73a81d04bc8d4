"""Quality against network calls: curves of a kernel along a schedule, and what few calls miss."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Protocol

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import Tensor

from anem.bench.harness import Context
from anem.bench.intervals import report_interval
from anem.energy import NotFinite
from anem.metrics import Interval, Statistic, bootstrap
from anem.sample import KERNELS, SCHEDULES, Diverged, Schedule, as_kernel, as_schedule, steps_within

__all__ = [
    "CALLS",
    "FEW",
    "MANY",
    "MOST",
    "WITHIN",
    "Curve",
    "Judge",
    "curves_of",
    "measure",
    "plot_curves",
    "ratio",
    "report_changes",
    "write_curves",
]

CALLS = (5, 10, 20, 32, 50, 100, 250, 1000)
"""Network calls a sample, the first one included; a kernel takes as many steps as they allow."""

FEW, MANY, MOST = 32, 250, 1000
"""Quality at ``FEW`` calls is compared with that at ``MANY``, on exact priors also at ``MOST``."""

WITHIN = 0.03
"""How far every figure may be from its value at more calls, relative to that or to a scale of its own."""


@dataclass
class Curve:
    """Figures of a kernel and a schedule by network calls.

    Arguments:
        kernel, schedule: their names.
        figures: by calls, then by name.
        statistics: what the figures are made of, functions of image weights, likewise; empty where figures are exact.
        diverged: numbers of calls at which it came to nothing.
    """

    kernel: str
    schedule: str
    figures: dict[int, dict[str, float]] = field(default_factory=dict)
    statistics: dict[int, Mapping[str, Statistic]] = field(default_factory=dict)
    diverged: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.schedule}"

    @property
    def stochastic(self) -> bool:
        """Whether it draws from the posterior at all."""
        return as_kernel(self.kernel).stochastic

    def path(self, calls: int) -> Schedule | None:
        """The schedule with the steps that so many calls allow; None if they allow none."""
        if calls < 1 + as_kernel(self.kernel).calls:
            return None
        return as_schedule(self.schedule, steps_within(calls, self.kernel))

    def add(self, calls: int, statistics: Mapping[str, Statistic], images: int) -> None:
        """Figures from the statistics of ``images`` images."""
        once = torch.ones(1, images, dtype=torch.float64)
        self.statistics[calls] = statistics
        self.figures[calls] = {name: float(statistic(once)) for name, statistic in statistics.items()}

    def changes(
        self, few: int, many: int, scales: Mapping[str, float], images: int, generator: torch.Generator, draws: int
    ) -> dict[str, Interval]:
        """(Value at ``few`` − value at ``many``) over the latter, or over the figure's scale: bootstrap over images, paired."""
        return {
            name: bootstrap(_change(self.statistics[few][name], statistic, scales.get(name)), images, generator=generator, draws=draws)
            for name, statistic in self.statistics[many].items()
        }


def ratio(over: Tensor, under: Tensor) -> Statistic:
    """Σ w over / Σ w under, of scores of images (N,) each."""
    return lambda weights: (weights @ over) / (weights @ under)


def _change(few: Statistic, many: Statistic, scale: float | None) -> Statistic:
    if scale is not None:
        return lambda weights: (few(weights) - many(weights)) / scale
    return lambda weights: few(weights) / many(weights) - 1


def curves_of(kernels: Sequence[str] = tuple(KERNELS), schedules: Sequence[str] = tuple(SCHEDULES)) -> Iterator[Curve]:
    """An empty curve for every kernel with every schedule."""
    for kernel in kernels:
        for schedule in schedules:
            yield Curve(kernel, schedule)


class Judge(Protocol):
    """What makes figures of samples (S, B, C, H, W), by way of scores that can be kept."""

    images: int
    needs: tuple[str, ...]
    scales: Mapping[str, float]
    """Units of changes of the figures whose own value may be 0, by name."""

    def scores(self, samples: Tensor) -> dict[str, Tensor]:
        """Numbers of every image, under the names in ``needs``."""
        ...

    def statistics(self, scores: Mapping[str, Tensor]) -> dict[str, Statistic]:
        """Figures as functions of image weights."""
        ...


def measure(context: Context, part: str, curve: Curve, calls: int, judge: Judge, draw: Callable[[Schedule], Tensor]) -> None:
    """Add one number of calls to a curve, if it allows a step; scores and figures of an interrupted run are read back.

    Where the kernel diverges, that is the figure, and the curve has a gap.

    Arguments:
        part: of the bench, first in the names of the figures. draw: samples along a schedule.
    """
    schedule = curve.path(calls)
    if schedule is None:
        return
    file = context.out / "scores" / f"{part}-{curve.kernel}-{curve.schedule}-{calls}.safetensors"
    key = f"{part}/{curve.name}, {calls} calls"
    if file.exists() and (scores := load_file(file)).keys() == set(judge.needs):
        curve.add(calls, judge.statistics(scores), judge.images)
        if context.done(*(f"{key}/{name}" for name in curve.figures[calls])):
            return
    if context.done(f"{key}/diverged"):
        curve.diverged.append(calls)
        return
    try:
        samples = draw(schedule)
    except (Diverged, NotFinite):
        context.figure(f"{key}/diverged", True)
        curve.diverged.append(calls)
        return
    scores = judge.scores(samples)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in scores.items()}, file)
    curve.add(calls, judge.statistics(scores), judge.images)
    for name, value in curve.figures[calls].items():
        context.figure(f"{key}/{name}", value)


def report_changes(
    context: Context,
    key: str,
    curve: Curve,
    many: int,
    images: int,
    scales: Mapping[str, float],
    judged: bool,
    draws: int = 2000,
    between: str = "",
) -> None:
    """What every figure changes by after :data:`FEW` calls, with intervals; the aim is that of the largest change of any.

    A curve that came to nothing at either number has no changes; if it is judged, its aim is missed.

    Arguments:
        between: what the two are, for people, if not two numbers of calls.
    """
    between = between or f"from {FEW} to {many} calls"
    last = f"{key}/{curve.name}: largest change {between}"
    aim = f"≤ {WITHIN}" if judged else None
    if context.done(last):
        return
    if {FEW, many} & set(curve.diverged):
        context.figure(last, "diverged", aim=aim, holds=False if judged else None, quick=False)
    if not {FEW, many} <= set(curve.figures):
        return
    generator = context.generator("bootstrap", curve.name, many)
    intervals = curve.changes(FEW, many, scales, images, generator, draws)
    for name, interval in intervals.items():
        over = f"over {scales[name]:.3g}" if name in scales else f"over the value at {many}"
        report_interval(context, f"{key}/{curve.name}/{name}: change {between}, {over}", interval)
    context.figure(last, max(abs(i.value) for i in intervals.values()), aim=aim, quick=False)


def write_curves(file: Path, curves: Sequence[Curve]) -> None:
    """All figures as CSV."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("kernel", "schedule", "calls", "figure", "value"))
        for curve in curves:
            for calls, figures in curve.figures.items():
                writer.writerows((curve.kernel, curve.schedule, calls, name, f"{value:.6g}") for name, value in figures.items())


def plot_curves(curves: Sequence[Curve], title: str, file: Path) -> None:
    """Every figure against network calls: a colour a kernel, a line style a schedule; deterministic kernels in grey."""
    names = list(dict.fromkeys(name for curve in curves for at in curve.figures.values() for name in at))
    kernels = list(dict.fromkeys(curve.kernel for curve in curves if curve.stochastic))
    styles = dict(zip(SCHEDULES, cycle(("-", ":", "--", "-.")), strict=False))
    picture = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for ax, name in zip(picture.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for curve in curves:
            at = {calls: figures[name] for calls, figures in curve.figures.items() if name in figures}
            colour = f"C{kernels.index(curve.kernel)}" if curve.stochastic else "tab:grey"
            ax.semilogx(list(at), list(at.values()), styles[curve.schedule], marker=".", color=colour, label=curve.name, linewidth=1)
        ax.axvline(FEW, color="black", linewidth=0.5)
        ax.set(xlabel="network calls a sample", ylabel=name)
    ax.legend(fontsize=6, ncols=2)
    picture.suptitle(title, fontsize=10)
    picture.savefig(file, dpi=110)
