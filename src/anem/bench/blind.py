"""Blind estimation: the box, the noise and the blur found from one degraded image each, and the kind of degradation.

Nothing is known but the family, whose ranges are the package's own; nothing is tuned. Boxes have sides of 6 to 22 in turn. An estimate is
right if its side is within one pixel; errors of σ and of the blur's width are relative, their medians over images. A coverage is the share
of 90 % intervals that hold the truth; standard errors are those of shares of independent images.

* box: noise of σ_in inside a centred box and σ_out outside. Beside the model: "Gaussian", the energy of independent Gaussian coordinates;
  "independent pixels", all that the network knows without a network (:class:`anem.gaussian.IndependentPixels`); and the models of
  ``anem bench ablation``, w = 0 and the default. Learned energies are bounded, as in all of :mod:`anem.blind`.
* blur: Gaussian, widths of 0.6 to 2.5 in turn.
* family: each image degraded by a box, a blur and white noise in turn, with the same expected squared error of the measurement, that of the
  blur; the chosen family is the one of the highest marginal evidence.
* 8 × 8: images of a mixture of eight Gaussians, judged by its exact energy and by a small network trained on draws of it (as in
  ``anem bench oracle``): "loss" is the exact energy's share of right answers less the network's.

Pictures of all estimates are beside the report. Needs ``make data``.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.ablation import IMAGES
from anem.bench.blind_plot import Found, plot_estimates
from anem.bench.harness import Context
from anem.bench.oracle import learn, make_prior
from anem.bench.revision import weights_digest
from anem.blind import FAMILIES, Family, choose, estimate
from anem.covariance import Covariance
from anem.data import load_dataset, mnist
from anem.energy import EnergyModel
from anem.gaussian import IndependentPixels
from anem.statistics import DataStatistics

__all__ = ["BaseEnergy", "Size", "family_measurements", "run", "summarise"]

OUTSIDE, RATIOS = (0.1, 0.3), (1.5, 2.0, 3.0, 30.0)
"""σ_out, and σ_in/σ_out."""

SIGMAS = (0.01, 0.05)
"""σ of blurred images."""

ABLATION = {"w = 0": "weight-0", "default of the ablation": "default"}
"""Folders of the ablation bench, by the names in the figures."""

_FILE = str.maketrans({"/": "-", " ": "-", ",": None, "×": "x", "σ": "sigma", "=": "is"})
"""From names of figures to names of files."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        images: a row. beside: whether the other energies are judged. outside, ratios, sigmas: the rows.
        families: images of the choice of family, each degraded in one way. small: images of a row at 8 × 8.
        budget: of :func:`anem.blind.estimate`; with 900 two of four boxes were missed by more than a pixel, cells being left too coarse.
        draws: of what is not observed.
    """

    images: int = 200
    beside: bool = True
    outside: tuple[float, ...] = OUTSIDE
    ratios: tuple[float, ...] = RATIOS
    sigmas: tuple[float, ...] = SIGMAS
    families: int = 201
    small: int = 200
    budget: int = 5000
    draws: int = 4

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        return cls(images=1, beside=False, outside=(0.1,), ratios=(3.0,), sigmas=(0.05,), families=1, small=3, budget=300, draws=1)


class BaseEnergy(EnergyModel):
    """The Gaussian energy of independent coordinates, from the data statistics alone."""

    def __init__(self, statistics: DataStatistics) -> None:
        super().__init__()
        self.statistics = statistics

    def energy(self, y: Tensor, cov: Covariance) -> Tensor:
        return self.statistics.gaussian_energy(self.statistics.residual(y, cov.basis), cov)


def run(context: Context) -> None:
    """The cheap sections first."""
    size = Size.quick() if context.quick else Size()
    model = context.load(context.model)
    images = (
        load_dataset(mnist(context.split, str(context.data / "mnist.npz"))).batch(torch.arange(max(size.images, size.families))).double()
    )
    others: dict[str, EnergyModel] = {
        "Gaussian": BaseEnergy(model.statistics),
        "independent pixels": IndependentPixels(model.statistics),
    }
    others |= {name: context.load(str(path)) for name, path in _ablation(context).items()} if size.beside else {}
    _small(context, size)
    for sigma in size.sigmas:
        _blur(context, model, images, sigma, size)
    _families(context, model, images, size)
    for name, judged in {"model": model, **others}.items():
        for outside, ratio in itertools.product(size.outside, size.ratios):
            _box(context, name, judged, images, outside, ratio, size)


# --- degraded images and what is said about them ---


def _measurements(context: Context, images: Tensor, family: Family, theta: Sequence[Sequence[float]], *labels: str | int) -> Tensor:
    """Every image (N, C, H, W) degraded by the family with its row of θ."""
    generator = context.generator("noise", *labels)
    settings = torch.tensor(theta, dtype=images.dtype)
    operator, sigma = family.degradation(settings)
    return operator.measure(images, sigma, generator)


def _estimates(context: Context, key: str, model: EnergyModel, measurements: Tensor, family: Family, size: Size) -> Found | None:
    """What is said about measurements (N, C, H, W); None in a worker."""

    def one(m: Tensor) -> dict[str, Tensor]:
        e = estimate(model, m, family, draws=size.draws, budget=size.budget)
        return {"theta": e.theta.double(), "interval": e.posterior.interval(0.9), "resolved": torch.tensor(e.posterior.resolved)}

    made = context.pieces(key, measurements.split(1), one)
    return None if made is None else Found(family, **{name: torch.stack([piece[name] for piece in made]) for name in made[0]})


def summarise(found: Found, theta: Sequence[Sequence[float]]) -> dict[str, float]:
    """Over images: the share of integers within one and exact, medians of relative errors, shares of 90 % intervals that hold the truth."""
    truth = torch.tensor(theta, dtype=torch.float64)
    covered = (found.interval[..., 0] <= truth) & (truth <= found.interval[..., 1])
    summary: dict[str, float] = {}
    for a, (name, parameter) in enumerate(found.family.parameters.items()):
        error = (found.theta[:, a] - truth[:, a]).abs()
        if parameter.continuous:
            summary[f"{name}, median relative error"] = float((error / truth[:, a]).median())
        else:
            summary |= _share(f"{name} within one", error <= 1) | _share(f"{name} exact", error == 0)
        summary |= _share(f"{name}, coverage of 90 % intervals", covered[:, a])
    return summary | {"posteriors as fine as asked for": float(found.resolved.double().mean())}


def _share(name: str, right: Tensor) -> dict[str, float]:
    """The share of images (N,) that are right, after its standard error."""
    p = float(right.double().mean())
    return {f"{name}, standard error": (p * (1 - p) / len(right)) ** 0.5, name: p}


def _report(context: Context, key: str, found: Found, theta: Sequence[Sequence[float]], aims: dict[str, str]) -> None:
    plot_estimates(found, theta, key, context.out / f"{key.translate(_FILE)}.png")
    for name, value in summarise(found, theta).items():
        context.figure(f"{key}/{name}", value, aim=aims.get(name), quick=False)


# --- box ---


def _boxes(count: int, outside: float, ratio: float, low: int = 6, high: int = 22) -> list[tuple[float, float, float]]:
    """(side, σ_in, σ_out) of ``count`` images."""
    return [(low + i % (high - low + 1), ratio * outside, outside) for i in range(count)]


def _box(context: Context, name: str, model: EnergyModel, images: Tensor, outside: float, ratio: float, size: Size) -> None:
    row, family = f"box/σ_out {outside:g}, ratio {ratio:g}", FAMILIES["box"](images.shape)
    if context.done(f"{row}/{name}/posteriors as fine as asked for"):
        return
    theta = _boxes(size.images, outside, ratio)
    measured = _measurements(context, images[: size.images], family, theta, "box", str(outside), str(ratio))
    which = weights_digest(str(_ablation(context)[name])) if name in ABLATION else ""
    found = _estimates(context, f"{row}/{name}/{which}", model, measured, family, size)
    if found is None:
        return
    aims = {"side within one": "≥ 0.95"} if ratio >= 2 and name == "model" else {}
    aims |= {f"{s}, median relative error": "≤ 0.1" for s in ("sigma_in", "sigma_out")} if name == "model" else {}
    _report(context, f"{row}/{name}", found, theta, aims)


def _ablation(context: Context) -> dict[str, Path]:
    """Folders of the models of the ablation.

    Raises:
        ValueError: one is missing; says how to get it.
    """
    folders = {name: Path("runs/ablation", str(context.images or IMAGES), folder, "model") for name, folder in ABLATION.items()}
    missing = [str(path) for path in folders.values() if not path.is_dir()]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: no model there; `anem bench ablation` trains them, checkpoints/README.md says where they are"
        )
    return folders


# --- blur ---


def _widths(count: int, low: float = 0.6, high: float = 2.5) -> list[float]:
    """Equally spaced, and shuffled so that any part of them spans the range: multiples of the golden ratio, modulo 1."""
    return [low + (high - low) * (i * 0.6180339887498949 % 1.0) for i in range(count)]


def _blur(context: Context, model: EnergyModel, images: Tensor, sigma: float, size: Size) -> None:
    row, family = f"blur/σ {sigma:g}", FAMILIES["blur"](images.shape)
    if context.done(f"{row}/posteriors as fine as asked for"):
        return
    theta = [(width, sigma) for width in _widths(size.images)]
    measured = _measurements(context, images[: size.images], family, theta, "blur", str(sigma))
    found = _estimates(context, row, model, measured, family, size)
    if found is None:
        return
    aims = {f"{name}, median relative error": "≤ 0.1" for name in ("std", "sigma")} | {"std, coverage of 90 % intervals": "0.85–0.95"}
    _report(context, row, found, theta, aims)


# --- choice of family ---

CHOSEN = ("box", "blur", "white")


def family_measurements(
    images: Tensor, widths: Sequence[float], generator: torch.Generator, sigma: float = 0.05
) -> tuple[Tensor, list[str]]:
    """Images (N, C, H, W) degraded by a box, a blur and white noise in turn, all with E‖m − x‖² that of the blur: m and the families.

    Boxes have σ_in = 3 σ_out and sides of 2/7 to 4/7 of the image's in turn.
    """
    least = images.shape[-1] * 2 // 7
    d, names, measured = images[0].numel(), [CHOSEN[i % 3] for i in range(len(images))], []
    for i, (x, width, name) in enumerate(zip(images.split(1), widths, names, strict=True)):
        blurred = FAMILIES["blur"](x.shape).degradation(x.new_tensor([[width, sigma]]))[0](x)
        error = float((blurred - x).square().mean()) + sigma**2
        side = least + i // 3 % (least + 1)
        outside = (error / (1 + 8 * side**2 / d)) ** 0.5
        theta = {"box": [side, 3 * outside, outside], "blur": [width, sigma], "white": [error**0.5]}[name]
        operator, std = FAMILIES[name](x.shape).degradation(x.new_tensor([theta]))
        measured.append(operator.measure(x, std, generator))
    return torch.cat(measured), names


def _families(context: Context, model: EnergyModel, images: Tensor, size: Size) -> None:
    if context.done("family/right"):
        return
    images = images[: size.families]
    measured, truth = family_measurements(images, _widths(len(images), 0.8, 1.8), context.generator("families"))
    chosen = _choices(context, "family", model, measured, size)
    if chosen is not None:
        _report_choices(context, "family", chosen, truth, "≥ 0.95")


def _choices(context: Context, key: str, model: EnergyModel, measured: Tensor, size: Size) -> list[str] | None:
    """The family of the highest marginal evidence of every measurement; None in a worker."""
    families = [FAMILIES[name](measured.shape) for name in CHOSEN]

    def one(m: Tensor) -> dict[str, str]:
        return {"chosen": CHOSEN[choose(model, m, families, draws=size.draws, budget=size.budget).order[0]]}

    made = context.pieces(key, measured.split(1), one)
    return None if made is None else [piece["chosen"] for piece in made]


def _report_choices(context: Context, key: str, chosen: Sequence[str], truth: Sequence[str], aim: str | None) -> None:
    right = [one == name for one, name in zip(chosen, truth, strict=True)]
    for name in CHOSEN:
        of = [r for r, t in zip(right, truth, strict=True) if t == name]
        if of:
            context.figure(f"{key}/right where it was {name}", sum(of) / len(of))
    context.figure(f"{key}/right", sum(right) / len(right), aim=aim, quick=False)


# --- 8 × 8 ---


def _small(context: Context, size: Size) -> None:
    """The exact energy beside a learned one."""
    if context.done("8 × 8/family/loss") or context.worker:  # a network is trained first
        return
    prior, folder, started = make_prior("mixture"), context.out / "models", "8 × 8/network trained from commit"
    if not context.done(started):  # what lies there is of another commit or seed, or was asked to be made afresh
        shutil.rmtree(folder, ignore_errors=True)
        context.figure(started, context.report.commit)
    learned = learn(prior, folder, context.seed, context.generator("8 × 8", "training"), context.quick)
    x = prior.sample(size.small, context.generator("8 × 8"))
    sections: dict[str, Callable[[EnergyModel, str], float]] = {
        "box": lambda model, key: _small_box(context, model, x, key, size),
        "blur": lambda model, key: _small_blur(context, model, x, key, size),
        "family": lambda model, key: _small_families(context, model, x, key, size),
    }
    for section, share in sections.items():
        exact, found = (share(judged, f"8 × 8/{section}/{name}") for name, judged in (("exact", prior), ("learned", learned)))
        context.figure(f"8 × 8/{section}/loss", exact - found)


def _small_box(context: Context, model: EnergyModel, x: Tensor, key: str, size: Size) -> float:
    family, theta = FAMILIES["box"](x.shape), _boxes(len(x), 0.1, 2.0, 2, 6)
    found = _estimates(context, key, model, _measurements(context, x, family, theta, "8 × 8", "box"), family, size)
    assert found is not None
    _report(context, key, found, theta, {})
    return summarise(found, theta)["side within one"]


def _small_blur(context: Context, model: EnergyModel, x: Tensor, key: str, size: Size) -> float:
    """The share of widths found within 10 %."""
    family, theta = FAMILIES["blur"](x.shape), [(width, 0.02) for width in _widths(len(x), 0.6, 1.5)]
    found = _estimates(context, key, model, _measurements(context, x, family, theta, "8 × 8", "blur"), family, size)
    assert found is not None
    _report(context, key, found, theta, {})
    return float(((found.theta[:, 0] / torch.tensor(theta, dtype=torch.float64)[:, 0] - 1).abs() <= 0.1).double().mean())


def _small_families(context: Context, model: EnergyModel, x: Tensor, key: str, size: Size) -> float:
    measured, truth = family_measurements(x, _widths(len(x), 0.8, 1.8), context.generator("8 × 8", "families"))
    chosen = _choices(context, key, model, measured, size)
    assert chosen is not None
    _report_choices(context, key, chosen, truth, None)
    return sum(one == name for one, name in zip(chosen, truth, strict=True)) / len(x)
