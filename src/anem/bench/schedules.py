"""Paths that follow the energy, and water-filling, beside the geometric one: digits from a few random pixels, at equal network calls.

A digit is restored once from k random pixels, other ones for every image, and read by the digit classifier; the figure is the share of
restored digits that are read as another digit than the truth's label. All schedules see the same pixels, noise and random numbers, so that
differences to the geometric path are paired; 95 % bootstrap intervals over images. The paper finds guided paths better at small k: an aim
of those for k of 20 and less, which holds if the upper bound of the difference is below 0. Files: classification.png, and paths-K.png with
the path of the first image at every k. Needs ``make data``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from anem.bench.digits import SIGMA
from anem.bench.harness import Context
from anem.bench.intervals import report_interval
from anem.bench.paths import PathRecorder, plot_paths
from anem.data import ImageData, load_dataset, mnist
from anem.energy import EnergyModel
from anem.images import save_image
from anem.metrics import DigitClassifier, Interval, bootstrap, mean_statistic
from anem.operators import Inpainting
from anem.random import generators_for
from anem.sample import SCHEDULES, as_schedule, sample_posterior, steps_within
from anem.sheet import Row, contact_sheet

__all__ = ["Size", "run"]

NAMES = {"geometric": "geometric", "water-filling": "water-filling", "energy": "paper's rule", "variance": "ours"}
"""Schedules of :data:`anem.sample.SCHEDULES`, by their names in the figures."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        images: restored at every k. pixels: the values of k. calls: network calls a digit. draws: of the bootstrap. shown: in the pictures.
    """

    images: int = 500
    pixels: tuple[int, ...] = (10, 20, 40, 80, 160)
    calls: int = 100
    draws: int = 5000
    shown: int = 12

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        return cls(images=8, pixels=(10, 160), calls=20, draws=500, shown=8)


def run(context: Context) -> None:
    """Every k, the fewest pixels first."""
    size = Size.quick() if context.quick else Size()
    data = load_dataset(mnist(context.split, str(context.data / "mnist.npz")))
    if not isinstance(data, ImageData) or data.labels is None:
        raise ValueError(f"{context.data}: wanted images in memory with labels")
    x, labels = data.batch(torch.arange(size.images)), data.labels[: size.images].long()
    classifier, model = DigitClassifier.load(), context.load(context.model)
    truth = "classification error/of the true digits"
    if not context.done(truth) and not context.worker:
        context.figure(truth, (classifier(x).argmax(1) != labels).double().mean())
    for k in size.pixels:
        _restore(context, model, classifier, x, labels, k, size)
    if not context.worker:
        _plot(context, size)


def _key(k: int, name: str) -> str:
    return f"classification error/{k} pixels/{NAMES[name]}"


def _restore(context: Context, model: EnergyModel, classifier: DigitClassifier, x: Tensor, labels: Tensor, k: int, size: Size) -> None:
    if context.done(*(_key(k, name) for name in SCHEDULES), *(f"{_key(k, name)} − geometric" for name in SCHEDULES if name != "geometric")):
        return
    seeds = [context.seed + i for i in range(len(x))]
    operator = Inpainting.random(x.shape, 1 - k / (x.shape[-2] * x.shape[-1]), seeds)
    measurement = operator.measure(x, SIGMA, generators_for(seeds))

    def one(name: str) -> dict[str, Any]:
        recorder, schedule = PathRecorder(), as_schedule(name, steps_within(size.calls))
        restored = sample_posterior(model, measurement, operator, SIGMA, schedule=schedule, seed=seeds, callback=recorder)
        return {"samples": restored.samples[0].clone(), "basis": recorder.basis, "path": recorder.values}

    made = context.pieces(f"{k} pixels", list(SCHEDULES), one)
    if made is None:
        return
    rows = [Row("truth", x[: size.shown]), Row("measurement", operator.visualise(measurement)[: size.shown])]
    wrong, paths = {}, {}
    for name, piece in zip(SCHEDULES, made, strict=True):
        paths[NAMES[name]] = piece["basis"], piece["path"]
        wrong[name] = (classifier(piece["samples"]).argmax(1) != labels).double()
        rows.append(Row(NAMES[name], piece["samples"][: size.shown]))
        error = bootstrap(mean_statistic(wrong[name]), len(x), generator=context.generator("bootstrap", k), draws=size.draws)
        report_interval(context, _key(k, name), error)
    for name in [n for n in SCHEDULES if n != "geometric"]:
        first, second = (mean_statistic(wrong[n]) for n in (name, "geometric"))
        difference = bootstrap(first, len(x), second, generator=context.generator("bootstrap", k), draws=size.draws)
        upper = "< 0" if k <= 20 and SCHEDULES[name](1).adaptive else None
        report_interval(context, f"{_key(k, name)} − geometric", difference, quick=False, upper=upper)
    plot_paths(paths, context.out / f"paths-{k}.png")
    save_image(contact_sheet(rows), context.out / f"digits-{k}.png")


def _plot(context: Context, size: Size) -> None:
    """Error against k, with intervals, from the figures."""
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    ax = figure.subplots()
    for name in SCHEDULES:
        values = [_interval(context, _key(k, name)) for k in size.pixels]
        bounds = [[i.value - i.low for i in values], [i.high - i.value for i in values]]
        ax.errorbar(size.pixels, [i.value for i in values], bounds, fmt="o-", capsize=3, label=NAMES[name])
    ax.axhline(float(context.report.figures["classification error/of the true digits"].value or 0), color="k", ls=":", label="true digits")
    ax.set(xscale="log", xlabel="pixels seen, k", ylabel=f"classification error, {size.calls} network calls")
    ax.legend(fontsize=8)
    figure.savefig(context.out / "classification.png", dpi=110)


def _interval(context: Context, key: str) -> Interval:
    value, low, high = (float(context.report.figures[key + part].value or 0) for part in ("", ", 95 % from", ", 95 % to"))
    return Interval(value, low, high, 0.95)
