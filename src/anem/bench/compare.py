"""Methods of restoration side by side: one run, one list of seeds, the same measurements for all.

Judged are one sample an image: PSNR, SSIM, LPIPS (AlexNet), DISTS, KID in the digit classifier's features to other digits, the distance to
the measurement in σ, the energy of the sample minus that of the truth (nats/dim, both with the same noise of variance 1e-4, by the model
given; above 0 unlike digits, below 0 smoother than digits), and the distance between two samples. Beside them network calls, counted, and
seconds an image. Differences are ours − the other's, with 95 % bootstrap intervals, paired by image.

Each method is tuned on the first tuning images: the setting with the least LPIPS there is used. LPIPS is also one of the measures that
methods are ranked by; KID, DISTS, PSNR and SSIM were tuned for by nobody. Images judged are the tuning images after those, or with
``--split report`` test images from 2000 on; other images by ``--dataset``, see :mod:`anem.bench.compare_data`. σ is 0.01 for blur and the
paper's; for the other tasks, where the paper has 1e-4, it is that of 8-bit rounding, 1.1e-3, below which all methods are told no less
noise than digits have.

Priors are read from ``--trained``; a quick run takes the model given where one is missing, says so, and leaves out the methods that need a
network for the task. Needs ``make data``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anem.baselines import ConditionalNetwork
from anem.bench.compare_data import Images
from anem.bench.compare_methods import METHODS, OURS, Method, find_prior
from anem.bench.compare_table import write_table
from anem.bench.harness import Context
from anem.bench.intervals import report_interval
from anem.covariance import Covariance
from anem.energy import EnergyModel, Evaluation, NotFinite
from anem.hub import load
from anem.images import save_image
from anem.metrics import (
    DISTS,
    LPIPS,
    DigitClassifier,
    Inception,
    Statistic,
    bootstrap,
    consistency,
    diversity,
    kernel_statistic,
    mean_statistic,
    psnr,
    ssim,
)
from anem.operators import LinearOperator, make_operator
from anem.random import generators_for
from anem.sample.chain import Diverged
from anem.sheet import Row, contact_sheet
from anem.statistics import VARIANCE_FLOOR

__all__ = ["BAYESIAN", "TASKS", "Counted", "Size", "Task", "run"]


@dataclass(frozen=True)
class Task:
    """A degradation: arguments of :func:`make_operator`, and the standard deviation of the noise."""

    name: str
    settings: Mapping[str, Any]
    sigma: float = VARIANCE_FLOOR**0.5


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "box": Task("inpaint-box", {"box": 20}),
        "random": Task("inpaint-random", {"missing": 0.8}),
        "blur": Task("deblur", {"kernel_size": 8, "std": 0.8}, 0.01),
        "strong-blur": Task("deblur", {"kernel_size": 16, "std": 2.0}, 0.01),
        "x4": Task("sr4", {}),
    }
)
"""Tasks by the names of ``--tasks``: centre box 20 of 28, 80 % of pixels missing, Gaussian blurs of std 0.8 and 2, ×4 super-resolution."""

BAYESIAN = ("DPS", "DAPS", "composition")
"""Baselines that draw from a posterior, more or less."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        restored: images, by network calls.
        tasks: those done if none are named. settings: most of each method that are tried.
        tuning: images on which settings are chosen. reference: digits that KID compares with.
        diverse: images of which two samples are drawn. shown: images in the pictures.
    """

    restored: Mapping[int, int] = field(default_factory=lambda: {250: 128, 1000: 32})
    tasks: tuple[str, ...] = tuple(TASKS)
    settings: int = 4
    tuning: int = 32
    reference: int = 1000
    diverse: int = 8
    shown: int = 8

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        return cls(restored={10: 4}, tasks=("box", "blur"), settings=2, tuning=2, reference=64, diverse=2, shown=4)


class Counted(EnergyModel):
    """A model that counts calls by image: ``rows`` images were looked at so far."""

    def __init__(self, model: EnergyModel) -> None:
        super().__init__()
        self.model, self.statistics, self.rows = model, model.statistics, 0

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        self.rows += len(y)
        return self.model.energy(y, cov)

    def forward(self, y: Tensor, cov: Covariance) -> Evaluation:
        self.rows += len(y)
        return self.model(y, cov)


class CountedNetwork(ConditionalNetwork):
    """A conditional network with the same weights that counts its calls by image."""

    def __init__(self, network: ConditionalNetwork) -> None:
        super().__init__(network.config, network.problem, network.statistics)
        self.load_state_dict(network.state_dict())
        self.eval().requires_grad_(False)
        self.rows = 0

    def forward(self, seen: Tensor, x: Tensor, level: Tensor) -> Tensor:
        self.rows += len(x)
        return super().forward(seen, x, level)


Model = EnergyModel | ConditionalNetwork


@dataclass(frozen=True, eq=False)
class _Problem:
    """Images of a task with their measurements and one seed each."""

    task: Task
    x: Tensor
    measurement: Tensor
    operator: LinearOperator
    seeds: list[int]

    @classmethod
    def of(cls, task: Task, x: Tensor, seed: int) -> _Problem:
        seeds = [seed + i for i in range(len(x))]
        mask = {"seed": seeds} if task.name == "inpaint-random" else {}
        # Boxes are given for 28 pixels.
        box = {"box": round(task.settings["box"] * min(x.shape[-2:]) / 28)} if "box" in task.settings else {}
        operator = make_operator(task.name, x.shape, **{**task.settings, **box}, **mask)
        return cls(task, x, operator.measure(x, task.sigma, generators_for(seeds)), operator, seeds)


@dataclass(frozen=True, eq=False)
class _Restored:
    """Restorations (B, C, H, W), and their cost for one image."""

    x: Tensor
    calls: float
    seconds: float


def _restore(method: Method, setting: str, model: Model, problem: _Problem, calls: int) -> _Restored | None:
    """One sample an image, or None where the method breaks down."""
    counted = Counted(model) if isinstance(model, EnergyModel) else CountedNetwork(model)
    restorer, start = method.settings[setting](counted, calls), time.perf_counter()
    try:
        x = restorer(problem.measurement, problem.operator, problem.task.sigma, generators_for(problem.seeds))[0]
    except (Diverged, NotFinite):
        return None
    spent = time.perf_counter() - start
    return _Restored(x, counted.rows / len(x), spent / len(x)) if bool(torch.isfinite(x).all()) else None


class _Judge:
    """All measures of quality, each a number an image; what needs absent weights is left out."""

    def __init__(self, data: Path, model: EnergyModel, reference: Tensor) -> None:
        self.model = model
        self.features: Callable[[Tensor], Tensor] | None = None
        self.distances: dict[str, LPIPS | DISTS] = {}
        self.missing: list[str] = []
        try:
            self.features = DigitClassifier.load().features if reference.shape[1:] == (1, 28, 28) else Inception(data)
            self.reference = self.features(reference)
        except ValueError as error:
            self.missing.append(f"KID: {error}")
        for name, kind in (("LPIPS", LPIPS), ("DISTS", DISTS)):
            try:
                self.distances[name] = kind(data)
            except ValueError as error:
                self.missing.append(f"{name}: {error}")

    @torch.no_grad()
    def scores(self, x: Tensor, problem: _Problem) -> dict[str, Tensor]:
        """By name, (B,) each, of restorations (B, C, H, W)."""
        shown = x.clamp(0, 1)
        out = {"PSNR": psnr(shown, problem.x), "SSIM": ssim(shown, problem.x)}
        out |= {name: distance(shown, problem.x) for name, distance in self.distances.items()}
        out["distance to m (σ)"] = consistency(x, problem.measurement, problem.operator, problem.task.sigma)
        cov = Covariance.white(1e-4, x.shape, like=x)
        noise = cov.sample(generators_for(problem.seeds))
        energies = [-self.model.log_prob(z + noise, cov) for z in (shown, problem.x)]
        out["energy above the truth's (nats/dim)"] = (energies[0] - energies[1]) / x[0].numel()
        return out

    @torch.no_grad()
    def kernel(self, x: Tensor) -> Statistic | None:
        """KID to the reference as a statistic of image weights, in the features of the digit classifier or, for other images, Inception."""
        return None if self.features is None else kernel_statistic(self.features(x.clamp(0, 1)), self.reference)


def run(context: Context) -> None:
    """Every task at every number of calls: tuning, restoration, judgement, differences; then the table."""
    size = Size.quick() if context.quick else Size()
    names = _chosen("methods", context.methods or tuple(METHODS), METHODS)
    tasks = _chosen("tasks", context.tasks or size.tasks, TASKS)
    if context.images is not None:
        size = replace(size, restored={calls: min(count, context.images) for calls, count in size.restored.items()})
    models = _priors(context, names, tasks)
    judged = max(size.restored.values())
    images = Images.of(context.dataset, context.data, context.split, size.tuning, judged, size.reference)
    judge = _Judge(context.data, load(context.model), images.reference)
    if judge.missing:
        context.figure("left out", "; ".join(judge.missing))
    for calls, count in size.restored.items():
        for name in tasks:
            practice = _Problem.of(TASKS[name], images.tuning, context.seed)
            problem = _Problem.of(TASKS[name], images.judged[:count], context.seed)
            where, restored = f"{name}, {calls} calls", {}
            for method in (m for m in names if (m, name) in models):
                model = models[method, name]
                setting = _tune(context, judge, f"{where}/{method}", method, model, practice, calls, size.settings)
                restored[method] = _result(context, judge, f"{where}/{method}", method, setting, model, problem, calls, size)
            good = {method: r.x for method, r in restored.items() if r is not None}
            _differences(context, judge, where, good, problem)
            _picture(context, where, good, problem, size.shown)
            write_table(context.report, context.out / "comparison.md")


def _chosen(what: str, wanted: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"--{what}: wanted some of {', '.join(known)}, got {', '.join(unknown)}")
    return tuple(name for name in known if name in wanted)


def _priors(context: Context, names: tuple[str, ...], tasks: tuple[str, ...]) -> dict[tuple[str, str], Model]:
    """The model of each method for each task it is for, every one loaded once and named in the report."""
    loaded: dict[str, Model] = {}
    models: dict[tuple[str, str], Model] = {}
    said: set[str] = set()
    missing: list[str] = []
    for name, task in ((n, t) for n in names for t in tasks if not METHODS[n].tasks or t in METHODS[n].tasks):
        conditional = METHODS[name].prior == "conditional"
        try:
            where: str | None = find_prior(name, task, context.trained, context.model, context.dataset)
        except ValueError as error:
            missing.append(str(error))
            where = None if conditional else context.model
        key = f"prior/{name} {task}" if conditional else f"prior/{METHODS[name].prior}"
        if key not in said:
            context.figure(key, where or "missing, left out")
            said.add(key)
        if where is not None:
            if where not in loaded:
                loaded[where] = ConditionalNetwork.from_pretrained(where) if conditional else load(where)
            models[name, task] = loaded[where]
    if missing and not context.quick:
        raise ValueError("; ".join(dict.fromkeys(missing)))
    if missing:
        context.figure("missing models", "; ".join(dict.fromkeys(missing)))
    return models


def _tune(context: Context, judge: _Judge, where: str, method: str, model: Model, problem: _Problem, calls: int, settings: int) -> str:
    """The setting with the least LPIPS (without its weights: the highest PSNR); every trial is a figure."""
    scores = {}
    for setting in list(METHODS[method].settings)[:settings]:
        key = f"{where}/tuning: {setting}"
        if not context.done(key):
            restored = _restore(METHODS[method], setting, model, problem, calls)
            values = {} if restored is None else judge.scores(restored.x, problem)
            context.figure(key, float(values.get("LPIPS", -values["PSNR"]).mean()) if values else "diverged")
        value = context.report.figures[key].value
        scores[setting] = value if isinstance(value, float) else float("inf")
    return min(scores, key=lambda setting: scores[setting])


def _result(
    context: Context,
    judge: _Judge,
    where: str,
    method: str,
    setting: str,
    model: Model,
    problem: _Problem,
    calls: int,
    size: Size,
) -> _Restored | None:
    """Restorations and their figures; those of an interrupted run are read back."""
    file = context.out / "restored" / f"{where.replace('/', '-').replace(', ', '-').replace(' ', '-')}.safetensors"
    if context.done(f"{where}/diversity") and file.exists():
        kept = load_file(file)
        return _Restored(kept["x"], float(kept["cost"][0]), float(kept["cost"][1]))
    restored = _restore(METHODS[method], setting, model, problem, calls)
    context.figure(f"{where}/setting", setting if restored is not None else f"{setting}: diverged")
    if restored is None:
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": restored.x.contiguous(), "cost": torch.tensor([restored.calls, restored.seconds])}, file)
    context.figure(f"{where}/calls", restored.calls)
    context.figure(f"{where}/seconds an image", restored.seconds)
    for key, values in judge.scores(restored.x, problem).items():
        context.figure(f"{where}/{key}", float(values.mean()))
    kernel = judge.kernel(restored.x)
    if kernel is not None:
        context.figure(f"{where}/KID", float(kernel(torch.ones(1, len(restored.x), dtype=torch.float64))))
    few = slice(0, size.diverse)
    part = _Problem.of(problem.task, problem.x[few], context.seed)
    again = _restore(METHODS[method], setting, model, replace(part, seeds=[s + 10_000_000 for s in part.seeds]), calls)
    spread = float("nan") if again is None else float(diversity(torch.stack([restored.x[few], again.x])).mean())
    context.figure(f"{where}/diversity", spread)
    return restored


def _differences(context: Context, judge: _Judge, where: str, restored: dict[str, Tensor], problem: _Problem) -> None:
    """Ours minus each of the others, with paired intervals."""
    if OURS not in restored:
        return
    scores = {method: judge.scores(x, problem) for method, x in restored.items()}
    statistics = {method: {name: mean_statistic(values) for name, values in scores[method].items()} for method in restored}
    for method, x in restored.items():
        kernel = judge.kernel(x)
        statistics[method] |= {} if kernel is None else {"KID": kernel}
    for method in (name for name in restored if name != OURS):
        for measure in ("PSNR", "LPIPS", "DISTS", "KID"):
            if measure not in statistics[OURS]:
                continue
            a, b = (statistics[m][measure] for m in (OURS, method))
            interval = bootstrap(a, len(problem.x), b, generator=context.generator(where, method, measure))
            key = f"{where}/{method}/{measure}, ours minus it"
            report_interval(context, key, interval)
            if METHODS[method].rival and measure in ("LPIPS", "KID"):
                first = interval.excludes_zero and interval.value < 0
                context.figure(f"{key}, settled", first, aim="below 0, the interval too", holds=first, quick=False)
    rivals = [float(scores[m]["DISTS"].mean()) for m in BAYESIAN if m in scores and "DISTS" in scores[m]]
    if rivals and problem.task.name == "deblur":
        ratio = float(scores[OURS]["DISTS"].mean()) / min(rivals)
        context.figure(f"{where}/DISTS, ours over the best Bayesian baseline", ratio, aim="≤ 0.5", quick=False)


def _picture(context: Context, where: str, restored: dict[str, Tensor], problem: _Problem, shown: int) -> None:
    """Rows images, columns methods."""
    columns = {"truth": problem.x, "measurement": problem.operator.visualise(problem.measurement)} | restored
    rows = [Row(f"image {i}", torch.stack([x[i] for x in columns.values()])) for i in range(min(shown, len(problem.x)))]
    save_image(contact_sheet(rows, list(columns)), context.out / f"{where.replace(', ', '-').replace(' ', '-')}.png")
