"""The digits model on held-out MNIST: losses, one energy in all bases, its slope and constant, bits/dim, and restoration.

``--split tuning`` (test images 1000–1999) is for trying out, ``--split report`` (0–999) for the one report at the end; σ of the bits/dim is
chosen on tuning images in both. Needs ``make data``.

* loss: A-DSM and A-CSM for every noise family, by the geometric mean of the variances. Their floors are not known for digits: no aims.
* bases: the energies of one y under white noise described in other coordinates than pixels; per image, mean |difference|.
* slope: the error is |dE[U]/d log σ² − ½(1 − mmse/σ²)|.
* log Z: wanted 0, from populations of weighted paths. A standard error means something while several populations are effective.
* bits/dim: an upper bound, honest as far as log Z at that σ is 0; the model's normalised density has the bound plus log Z. Decoding with
  the histogram of all training pixels is as valid as with equal probabilities, and costs less where most pixels are black.
* restore: PSNR in the missing region (for blur and super-resolution everywhere), of the mean of the samples and of single samples,
  averaged over images in dB. Pictures beside the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from anem.bench.harness import Context
from anem.corruptions import NOISE_FAMILIES, NoiseBatch, NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.data import ImageData, StreamedData, load_dataset, mnist
from anem.energy import EnergyModel
from anem.images import save_image
from anem.likelihood import bits_per_dim, choose_sigma, immse_slope, log_partition
from anem.losses import dual_score_loss
from anem.metrics import psnr
from anem.network import EnergyNetwork
from anem.operators import Inpainting, LinearOperator, make_operator
from anem.random import generators_for, normal
from anem.sample import Restoration, sample_posterior, steps_within
from anem.sheet import Row, contact_sheet
from anem.statistics import DataStatistics
from anem.train.evaluate import HeldOut

__all__ = ["Size", "basis_differences", "pixel_histogram", "run", "task_covariance"]

VARIANCES = MappingProxyType({"1e-6": 1e-6, "1e-4": 1e-4, "1e-2": 1e-2, "1": 1.0, "100": 100.0})
"""White-noise variances, by their names in the figures."""

SIGMA = 0.01
"""Standard deviation of the noise in measurements."""

TASKS: Mapping[str, tuple[str, dict]] = MappingProxyType(
    {
        "box 8": ("inpaint-box", {"box": 8}),
        "box 14": ("inpaint-box", {"box": 14}),
        "box 20": ("inpaint-box", {"box": 20}),
        "random 80 %": ("inpaint-random", {"missing": 0.8}),
        "blur": ("deblur", {}),
        "x2": ("sr2", {}),
        "x4": ("sr4", {}),
    }
)
"""Arguments of :func:`make_operator`, by the names in the figures."""

DECADES = (-8, -6, -4, -2, 0, 2)
"""Lower ends of the noise levels, log₁₀ of the variance, two decades each."""

SIGMAS = tuple(10.0 ** (k / 4) for k in range(-16, -5))
"""Standard deviations among which that of the bits/dim is chosen: σ² from 1e-8 to 1e-3."""

DECODINGS: Mapping[str, str | None] = MappingProxyType({"equal probabilities": None, "pixel histogram": "≤ 1.2"})
"""How a value is read off a noisy pixel, with the aim of the bits/dim: both bound the same thing, so one aim is enough."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Arguments:
        losses: images for each noise family. images: for bases, slopes. cell: least images of a loss at one level.
        chains, population, steps: of :func:`log_partition`.
        tuning, bits: images on which σ is chosen, and whose code length is bounded.
        restored: images, by network calls. samples: of each. shown: images in the pictures.
    """

    losses: int = 256
    images: int = 256
    cell: int = 8
    chains: int = 128
    population: int = 16
    steps: int = 250
    tuning: int = 200
    bits: int = 1000
    restored: Mapping[int, int] = field(default_factory=lambda: {20: 64, 50: 64, 200: 64, 1000: 16})
    samples: int = 4
    shown: int = 8

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        restored = {20: 2}
        return cls(losses=4, images=8, chains=16, population=4, steps=20, tuning=4, bits=16, restored=restored, samples=2, shown=2)


def run(context: Context) -> None:
    """All sections, the cheap ones first."""
    model = context.load(context.model)
    data = load_dataset(mnist(context.split, str(context.data / "mnist.npz")))
    size = Size.quick() if context.quick else Size()

    def probabilities() -> None:
        _bits(context, model, data, size)
        _log_z(context, model, data, size)

    sections = {
        "losses": partial(_losses, context, model, data, size),
        "bases": partial(_bases_and_slopes, context, model, data, size),
        "probabilities": probabilities,
    }
    for label, make in (sections | {f"restoring {name}": partial(_restore, context, model, data, size, name) for name in TASKS}).items():
        context.section(label, make)


def _images(context: Context, data: ImageData | StreamedData, count: int, *labels: str) -> Tensor:
    """The first ``count`` images, from the start again if there are fewer, dequantised, (count, C, H, W), float32."""
    return data.batch(torch.arange(count) % len(data), context.generator("images", *labels))


def _mean(context: Context, key: str, values: Tensor, aim: str | None = None, magnitude: bool = False, quick: bool = True) -> None:
    """Figures of the mean of per-image values (B,), or of its absolute value, and of its standard error."""
    mean = values.double().mean()
    context.figure(key, mean.abs() if magnitude else mean, aim=aim, quick=quick)
    context.figure(f"{key}, standard error", values.double().std() / len(values) ** 0.5)


# --- losses ---


def _losses(context: Context, model: EnergyNetwork, data: ImageData | StreamedData, size: Size) -> None:
    names = tuple(f.name for f in NOISE_FAMILIES)
    for name in names:
        if context.done(f"loss/{name}/A-DSM", f"loss/{name}/A-CSM"):
            continue
        draw = partial(_draw_family, NoiseConfig(only=(name,)))
        seed = context.generator("losses", name).initial_seed()
        report = HeldOut(_images(context, data, size.losses, name), draw, names, 32, seed).evaluate(model, dual_score_loss)
        for low in DECADES:
            inside = (report.log10_variance >= low) & (report.log10_variance < low + 2)
            if int(inside.sum()) >= size.cell:
                context.figure(f"loss/{name}/λ 1e{low} to 1e{low + 2}/A-DSM", report.a_dsm[inside].mean())
                context.figure(f"loss/{name}/λ 1e{low} to 1e{low + 2}/A-CSM", report.a_csm[inside].mean())
        context.figure(f"loss/{name}/A-DSM", report.a_dsm.mean())
        context.figure(f"loss/{name}/A-CSM", report.a_csm.mean())


def _draw_family(
    noise: NoiseConfig, shape: tuple[int, int, int, int], statistics: DataStatistics, generator: torch.Generator
) -> NoiseBatch:
    return draw_covariances(shape, statistics, noise, generator)


# --- white noise: bases and slopes ---


def basis_differences(model: EnergyModel, images: Tensor, variance: float, generator: torch.Generator) -> dict[str, Tensor]:
    """|U − U in pixels| of one y, under the same white noise described in another basis, by its name: (N,), nats/dim.

    Arguments:
        images: x, (N, C, H, W), sides multiples of 4. variance: σ². generator: source of the noise.
    """
    x = images.double()
    y = x + variance**0.5 * normal(x.shape, generator, x)
    energies = {b: -model.log_prob(y, Covariance.white(variance, y.shape, b, y)) for b in ("pixel", "fourier", "dct2", "dct4")}
    return {name: (u - energies["pixel"]).abs() / y[0].numel() for name, u in energies.items() if name != "pixel"}


def _bases_and_slopes(context: Context, model: EnergyModel, data: ImageData | StreamedData, size: Size) -> None:
    x = _images(context, data, size.images)
    for name, variance in VARIANCES.items():
        keys = {basis: f"bases/σ² = {name}/{basis} against pixel (nats/dim)" for basis in ("fourier", "dct2", "dct4")}
        if not context.done(*keys.values()):
            generator = context.generator("bases", name)
            parts = [basis_differences(model, chunk, variance, generator) for chunk in x.split(64)]
            for basis, key in keys.items():
                context.figure(key, torch.cat([p[basis] for p in parts]).mean(), aim="≤ 0.02")
    for name, variance in VARIANCES.items():
        key = f"slope/σ² = {name}/error (nats/dim)"
        if not context.done(key, f"{key}, standard error"):
            slope = immse_slope(model, x, variance, context.generator("slope", name))
            _mean(context, key, slope.measured - slope.predicted, aim="≤ 0.02", magnitude=True)


# --- bits/dim ---


def pixel_histogram(images: Tensor) -> Tensor:
    """Probabilities of the 256 values among all pixels of uint8 images, with one added to every count, (256,), float64."""
    counts = torch.ones(256, dtype=torch.float64)
    for chunk in images.split(4096):
        counts += torch.bincount(chunk.flatten(), minlength=256)
    return counts / counts.sum()


def _bits(context: Context, model: EnergyModel, data: ImageData | StreamedData, size: Size) -> None:
    for decoding, aim in DECODINGS.items():
        chosen, key = f"bits/dim/{decoding}/log10 σ²", f"bits/dim/{decoding}"
        if context.done(chosen, key, f"{key}, standard error"):
            continue
        path = str(context.data / "mnist.npz")
        prior = pixel_histogram(_raw(load_dataset(mnist("train", path)))) if decoding == "pixel histogram" else None
        tuning = _raw(load_dataset(mnist("tuning", path)))[: size.tuning]
        sigma, _ = choose_sigma(model, tuning, SIGMAS, context.generator("tuning"), prior)
        context.figure(chosen, 2 * math.log10(sigma))
        bits = bits_per_dim(model, _raw(data)[: size.bits], sigma, context.generator("bits"), prior=prior)
        _mean(context, key, bits.total, aim=aim, quick=False)


def _raw(data: ImageData | StreamedData) -> Tensor:
    """8-bit images, (N, C, H, W)."""
    if not isinstance(data, ImageData) or data.images.dtype != torch.uint8:
        raise ValueError("data: wanted 8-bit images in memory")
    return data.images


# --- log Z ---


def task_covariance(operator: LinearOperator, shape: tuple[int, int, int, int], sigma: float, statistics: DataStatistics) -> Covariance:
    """Σ of an observation of images of ``shape`` (1, C, H, W) through an operator, float64."""
    measurement = torch.zeros(operator.measurement_shape(shape), dtype=torch.float64)
    return operator.observe(measurement, sigma, statistics).cov


def _log_z(context: Context, model: EnergyModel, data: ImageData | StreamedData, size: Size) -> None:
    shape = (1, *data.shape) if isinstance(data, ImageData) else (1, 1, 28, 28)
    white = {f"white {name}": VARIANCES[name] for name in ("1", "1e-2", "1e-6")}
    for decoding in DECODINGS:
        white[f"σ of bits/dim, {decoding}"] = 10 ** float(context.report.figures[f"bits/dim/{decoding}/log10 σ²"].value)
    white = dict(sorted(white.items(), key=lambda item: -item[1]))
    like = torch.zeros((), dtype=torch.float64)
    paths = [{name: Covariance.white(v, shape, like=like) for name, v in white.items()}]
    for name in ("box 14", "blur"):
        task, settings = TASKS[name]
        paths.append({name: task_covariance(make_operator(task, shape, **settings), shape, SIGMA, model.statistics)})
    for path in paths:
        parts = ("|log Z|/d (nats)", "log Z/d (bits)", "standard error of log Z/d (nats)", "effective populations")
        if context.done(*(f"log Z/{name}/{part}" for name in path for part in parts)):
            continue
        result = log_partition(
            model,
            list(path.values()),
            steps=size.steps,
            chains=size.chains,
            population=size.population,
            generator=context.generator("log Z", *path),
        )
        d = math.prod(shape)
        for i, name in enumerate(path):
            values = (result.log_z.abs() / d, result.log_z / (d * math.log(2)), result.standard_error / d, result.effective)
            for part, value in zip(parts, values, strict=True):
                context.figure(f"log Z/{name}/{part}", value[i])


# --- restoration ---


def _restore(context: Context, model: EnergyModel, data: ImageData | StreamedData, size: Size, name: str) -> None:
    task, settings = TASKS[name]
    for calls, count in size.restored.items():
        keys = [f"restore/{name}/{calls} calls/PSNR of {what} (dB)" for what in ("the mean", "samples")]
        if context.done(*keys):
            continue
        x = data.batch(torch.arange(count) % len(data))
        seeds = [context.seed + i for i in range(count)]
        seeded = {"seed": seeds} if task == "inpaint-random" else {}
        operator = make_operator(task, x.shape, **settings, **seeded)
        measurement = operator.measure(x, SIGMA, generators_for(seeds))
        steps = steps_within(calls)
        result = sample_posterior(model, measurement, operator, SIGMA, samples=size.samples, steps=steps, seed=seeds)
        hidden = operator.mask == 0 if isinstance(operator, Inpainting) else None
        context.figure(keys[0], psnr(result.mean, x, hidden).mean())
        context.figure(keys[1], psnr(result.samples, x, hidden).mean())
        _picture(context, f"{name}, {calls} calls", x, operator.visualise(measurement), result, size.shown)


def _picture(context: Context, title: str, x: Tensor, measurement: Tensor, result: Restoration, shown: int) -> None:
    rows = [Row("truth", x[:shown]), Row("measurement", measurement[:shown])]
    rows += [Row(f"sample {i + 1}", sample[:shown]) for i, sample in enumerate(result.samples)]
    rows.append(Row(f"mean of {len(result.samples)} samples", result.mean[:shown]))
    name = title.replace(" %", "").replace(", ", "-").replace(" ", "-")
    save_image(contact_sheet(rows), context.out / f"{name}.png")
