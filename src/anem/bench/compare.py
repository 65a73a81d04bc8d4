"""Methods of restoration side by side: one run, one list of seeds, the same measurements for all.

Judged are one sample an image: PSNR, SSIM, LPIPS (AlexNet), DISTS, KID in the digit classifier's features to other digits, the distance to
the measurement in σ, the energy of the sample minus that of the truth (nats/dim, both with the same noise of variance 1e-4, by the model
given; above 0 unlike digits, below 0 smoother than digits), and the distance between two samples. Beside them network calls, counted, and
seconds an image. KID is to 5000 digits, whose own scatter the intervals leave out; that of the true digits is beside it. Differences are
ours − the other's, with 95 % bootstrap intervals, paired by image.

Each method is tuned on 32 tuning images, at 1000 calls on the first 16 of them: the setting with the least LPIPS there is used, or the
next best if it breaks down on a judged image. At 1000 calls the two best of 250 are tried. Calls are the most that a method may use: some
settings use fewer. LPIPS is also one of the measures that methods are ranked by; no setting is chosen by KID, DISTS, PSNR or SSIM. Images
judged are the tuning images after those, on which the list of settings was drawn up, so that they do not say how methods rank; or with
``--split report`` test images from 2000 on, but for the first ``--skip``; other images by ``--dataset``, see
:mod:`anem.bench.compare_data`. σ is 0.01 for blur and the paper's; for the other tasks, where the paper has 1e-4, it is that of 8-bit
rounding, 1.1e-3, below which all methods are told no less noise than digits have.

Priors are read from ``--trained``; a quick run takes the model given where one is missing, says so, and leaves out the methods that need a
network for the task. Needs ``make data``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anem.baselines import ConditionalNetwork
from anem.baselines.conditional import Model
from anem.bench.compare_data import Images
from anem.bench.compare_judge import Judge
from anem.bench.compare_methods import METHODS, OURS, find_prior
from anem.bench.compare_problem import TASKS, Problem, Restored, restore
from anem.bench.compare_table import write_table
from anem.bench.harness import Context
from anem.bench.intervals import report_interval
from anem.bench.revision import weights_digest
from anem.hub import locate, read_card
from anem.images import save_image
from anem.metrics import Statistic, bootstrap, diversity, mean_statistic
from anem.sheet import Row, contact_sheet

__all__ = ["BAYESIAN", "Size", "run"]


BAYESIAN = ("DPS", "RED-Diff", "DAPS", "composition")
"""Baselines with a prior for all tasks, which the paper calls Bayesian."""

MEASURES = ("PSNR", "LPIPS", "DISTS", "KID")
"""By which ours is compared with the others."""

MISSING = "missing, left out"
"""In place of a prior."""

PRACTICE, AGAIN = 30_000_000, 10_000_000
"""Added to the seeds of the judged images: those of the tuning, and those of a second sample of the same measurement."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        restored: images, by network calls.
        tasks: those done if none are named. settings: most of each method that are tried.
        tuning: images on which settings are chosen, by network calls, the first of the same, at most 32. again: settings tried once more
            at more calls.
        reference: digits that KID compares with.
        diverse: images of which two samples are drawn, at the least number of calls. shown: images in the pictures.
    """

    restored: Mapping[int, int] = field(default_factory=lambda: {250: 128, 1000: 32})
    tasks: tuple[str, ...] = tuple(TASKS)
    settings: int = 4
    tuning: Mapping[int, int] = field(default_factory=lambda: {250: 32, 1000: 16})
    again: int = 2
    reference: int = 5000
    diverse: int = 8
    shown: int = 8

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        return cls(restored={10: 4}, tasks=("box", "blur"), settings=2, tuning={10: 2}, reference=64, diverse=2, shown=4)


def run(context: Context) -> None:
    """Every method at every task: tuning, restoration, judgement; then differences, pictures and the table."""
    size = Size.quick() if context.quick else Size()
    names = _chosen("methods", context.methods or tuple(METHODS), METHODS)
    tasks = _chosen("tasks", context.tasks or size.tasks, TASKS)
    if context.images is not None:
        if context.images < 2:
            raise ValueError(f"--images: wanted at least 2, as sets are compared, got {context.images}")
        size = replace(size, restored={calls: min(count, context.images) for calls, count in size.restored.items()})
    models = _priors(context, names, tasks)
    judged = max(size.restored.values())
    images = Images.of(context.dataset, context.data, context.split, max(size.tuning.values()), judged, size.reference, context.skip)
    judge = Judge(context.data, context.load(context.model), images.reference)
    if judge.missing:
        context.figure("left out", "; ".join(judge.missing))
    parts = {calls: images.tuning[:count] for calls, count in size.tuning.items()}
    for name, (calls, count) in () if context.worker else product(tasks, size.restored.items()):
        if (kernel := judge.kernel(images.judged[:count])) is not None and not context.done(f"{name}, {calls} calls/truth/KID"):
            context.figure(f"{name}, {calls} calls/truth/KID", float(kernel(torch.ones(1, count, dtype=torch.float64))))
    for name, method in ((n, m) for n in tasks for m in names if (m, n) in models):
        problems = {
            calls: (
                Problem.of(TASKS[name], parts[calls], context.seed + PRACTICE),
                Problem.of(TASKS[name], images.judged[:count], context.seed),
            )
            for calls, count in size.restored.items()
        }
        made_by = (context.report.figures[_prior_key(method, name)].value, judge.missing)
        context.section(f"{name}/{method}/{made_by}", partial(_method, context, judge, name, method, models[method, name], problems, size))
    for calls, count in () if context.worker else size.restored.items():
        for name in tasks:
            problem = Problem.of(TASKS[name], images.judged[:count], context.seed)
            where, restored = f"{name}, {calls} calls", {}
            for method in (m for m in names if (m, name) in models):
                setting = str(context.report.figures[f"{where}/{method}/setting"].value)
                model = models[method, name]
                restored[method] = _result(context, judge, f"{where}/{method}", method, [setting], model, problem, calls, 0)
            good = {method: r.x for method, r in restored.items() if r is not None}
            _differences(context, judge, where, good, problem, broken=tuple(m for m, r in restored.items() if r is None))
            _picture(context, where, good, problem, size.shown)
            write_table(context.report, context.out / "comparison.md")


def _method(
    context: Context, judge: Judge, task: str, method: str, model: Model, problems: Mapping[int, tuple[Problem, Problem]], size: Size
) -> None:
    """One method at one task: tuned and judged at every number of calls, whose problems these are: to tune on, and to judge by."""
    best: list[str] = []
    for calls, (practice, problem) in problems.items():
        where = f"{task}, {calls} calls/{method}"
        tried = best[: size.again] or list(METHODS[method].settings)[: size.settings]
        settings = _tune(context, judge, where, method, model, practice, calls, tried)
        best = best or settings
        _result(context, judge, where, method, settings, model, problem, calls, size.diverse if calls == min(problems) else 0)


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
        key = _prior_key(name, task)
        if key not in said:
            said.add(key)
            found = MISSING if where is None else _identity(where)
            earlier = context.report.figures.get(key)
            if earlier is not None and earlier.value not in (found, MISSING):
                raise ValueError(f"{key}: now {found}, but the figures so far were made by {earlier.value}; --fresh starts over")
            context.figure(key, found)
        if where is not None:
            if where not in loaded:
                loaded[where] = ConditionalNetwork.from_pretrained(where).to(context.device) if conditional else context.load(where)
            models[name, task] = loaded[where]
    if missing and not context.quick:
        raise ValueError("; ".join(dict.fromkeys(missing)))
    if missing:
        context.figure("missing models", "; ".join(dict.fromkeys(missing)))
    return models


def _prior_key(method: str, task: str) -> str:
    """The figure that names what a method uses for a task."""
    prior = METHODS[method].prior
    return f"prior/{method} {task}" if prior == "conditional" else f"prior/{prior}"


def _identity(where: str) -> str:
    """A model's name or folder, with its weights' digest and the images it has seen."""
    card = read_card(locate(where))
    return f"{where} ({weights_digest(where)}, {card.get('images_seen', 'unknown')} images)"


def _tune(
    context: Context, judge: Judge, where: str, method: str, model: Model, problem: Problem, calls: int, tried: list[str]
) -> list[str]:
    """The settings tried that did not diverge, the least LPIPS (without its weights: the highest PSNR) first; every trial is a figure."""
    scores = {}
    for setting in tried:
        key = f"{where}/tuning: {setting}"
        if not context.done(key):
            restored = restore(METHODS[method], setting, model, problem, calls)
            values = {} if restored is None else judge.scores(restored.x, problem)
            kernel = None if restored is None else judge.kernel(restored.x)
            others = {name: float(v.mean()) for name, v in values.items() if name in MEASURES and name != "LPIPS"}
            others |= {} if kernel is None else {"KID": float(kernel(torch.ones(1, len(problem.x), dtype=torch.float64)))}
            for name, other in others.items():
                context.figure(f"{where}/tuning, {name}: {setting}", other)
            context.figure(key, float(values.get("LPIPS", -values["PSNR"]).mean()) if values else "diverged")
        value = context.report.figures[key].value
        if isinstance(value, float):
            scores[setting] = value
    return sorted(scores, key=lambda setting: scores[setting])


def _result(
    context: Context,
    judge: Judge,
    where: str,
    method: str,
    settings: list[str],
    model: Model,
    problem: Problem,
    calls: int,
    diverse: int,
) -> Restored | None:
    """Restorations by the best setting that works and their figures; those of an interrupted run are read back. None if none works.

    Arguments:
        diverse: images of which a second sample is drawn.
    """
    file = context.out / "restored" / f"{where.replace('/', '-').replace(', ', '-').replace(' ', '-')}.safetensors"
    if context.done(f"{where}/setting") and context.report.figures[f"{where}/setting"].value == "diverged":
        return None
    if context.done(f"{where}/setting", f"{where}/calls", f"{where}/seconds an image") and file.exists():
        kept = load_file(file)
        restored = Restored(kept["x"], float(kept["cost"][0]), float(kept["cost"][1]))
        setting = str(context.report.figures[f"{where}/setting"].value)
    else:
        found = _first_that_works(context, where, method, settings, model, problem, calls)
        if found is None:
            return None
        setting, restored = found
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": restored.x.contiguous(), "cost": torch.tensor([restored.calls, restored.seconds])}, file)
        context.figure(f"{where}/calls", restored.calls)
        context.figure(f"{where}/seconds an image", restored.seconds)
    scores: dict[str, Tensor] = judge.scores(restored.x, problem)
    for key, values in scores.items():
        if not context.done(f"{where}/{key}"):
            context.figure(f"{where}/{key}", float(values.mean()))
    kernel = judge.kernel(restored.x)
    if kernel is not None and not context.done(f"{where}/KID"):
        context.figure(f"{where}/KID", float(kernel(torch.ones(1, len(restored.x), dtype=torch.float64))))
    if diverse and not context.done(f"{where}/diversity"):
        few = slice(0, diverse)
        part = Problem.of(problem.task, problem.x[few], context.seed)
        again = restore(METHODS[method], setting, model, replace(part, seeds=[s + AGAIN for s in part.seeds]), calls)
        spread = float("nan") if again is None else float(diversity(torch.stack([restored.x[few], again.x])).mean())
        context.figure(f"{where}/diversity", spread)
    return restored


def _first_that_works(
    context: Context, where: str, method: str, settings: list[str], model: Model, problem: Problem, calls: int
) -> tuple[str, Restored] | None:
    """The first of the settings that breaks down on no image, and its restorations."""
    broken: list[str] = []
    for setting in settings:
        restored = restore(METHODS[method], setting, model, problem, calls)
        if restored is not None:
            break
        broken.append(setting)
    if broken:
        context.figure(f"{where}/diverged", "; ".join(broken))
    works = len(broken) < len(settings)
    context.figure(f"{where}/setting", setting if works else "diverged")
    return (setting, restored) if works and restored is not None else None


def _differences(
    context: Context, judge: Judge, where: str, restored: dict[str, Tensor], problem: Problem, broken: tuple[str, ...] = ()
) -> None:
    """Ours minus each of the others, with paired intervals. A rival that is broken is one less; if ours is, every aim is missed."""
    statistics = {}
    for method, x in restored.items():
        statistics[method] = {name: mean_statistic(v) for name, v in judge.scores(x, problem).items() if name in MEASURES}
        kernel = judge.kernel(x)
        statistics[method] |= {} if kernel is None else {"KID": kernel}
    for method in (name for name in restored if name != OURS):
        for measure in (m for m in MEASURES if m in statistics[method]):
            key = f"{where}/{method}/{measure}, ours minus it"
            aim = "below 0, the interval too" if METHODS[method].rival and measure in ("LPIPS", "KID") else None
            if OURS in restored:
                a, b = (statistics[m][measure] for m in (OURS, method))
                interval = bootstrap(a, len(problem.x), b, generator=context.generator(where, method, measure))
                report_interval(context, key, interval)
                if aim is not None:
                    first = interval.excludes_zero and interval.value < 0
                    context.figure(f"{key}, settled", first, aim=aim, holds=first, quick=False)
            elif OURS in broken and aim is not None:
                context.figure(f"{key}, settled", "ours diverged", aim=aim, holds=False, quick=False)
    everyone = torch.ones(1, len(problem.x), dtype=torch.float64)
    values = {m: float(s["DISTS"](everyone)) for m, s in statistics.items() if "DISTS" in s}
    rivals = [values[m] for m in BAYESIAN if m in values]
    if OURS in broken:
        values[OURS] = math.inf
    if problem.task.name == "deblur" and rivals and OURS in values:
        ratio = values[OURS] / min(rivals)
        context.figure(f"{where}/DISTS, ours over the best Bayesian baseline", ratio, aim="≤ 0.5", quick=False)
        for method in (m for m in BAYESIAN if m in statistics and OURS in statistics):
            ours, half = statistics[OURS]["DISTS"], _half(statistics[method]["DISTS"])
            interval = bootstrap(ours, len(problem.x), half, generator=context.generator(where, method, "half DISTS"))
            report_interval(context, f"{where}/{method}/DISTS, ours minus half of it", interval)


def _half(statistic: Statistic) -> Statistic:
    return lambda weights: 0.5 * statistic(weights)


def _picture(context: Context, where: str, restored: dict[str, Tensor], problem: Problem, shown: int) -> None:
    """Rows images, columns methods."""
    columns = {"truth": problem.x, "measurement": problem.operator.visualise(problem.measurement)} | restored
    rows = [Row(f"image {i}", torch.stack([x[i] for x in columns.values()])) for i in range(min(shown, len(problem.x)))]
    save_image(contact_sheet(rows, list(columns)), context.out / f"{where.replace(', ', '-').replace(' ', '-')}.png")
