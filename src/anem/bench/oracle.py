"""Small networks trained on two analytic priors, against the exact energy: constant, gradients, denoiser, posterior variance.

A Gaussian with a power-law spectrum and a mixture of eight Gaussians, 8 × 8 pixels. Noise variances are between 1e-3 and 1e3 times the
prior's pixel variance, of all families of p(Σ). Every variant sees the same images, drawn from the prior, each of them once. What is
judged are fresh observations y = x + n, drawn as in training:

* energy bias and MAE: mean and mean absolute value of U − U*, nats/dim;
* excess denoising error: E‖Σ^{−1/2}(D − D*)‖² over E‖Σ^{−1/2}(x − D*)‖², the loss that no denoiser can avoid;
* ∂U/∂log λ error: root mean square over coordinates, nats;
* posterior variance error: mean of |V − V*| over cλ/(c + λ), the variance of independent Gaussian coordinates, over all coordinates and
  over those with λ ≤ c. Where λ ≫ c, V is a small difference of large numbers.

"untrained" is the network's starting point, closed forms alone. The files PRIOR-VARIANT.csv beside the report have the same for every
family of noise and every decade of its mean variance.
"""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.harness import Context
from anem.bench.variants import VARIANTS, Variant, train_variant
from anem.corruptions import NOISE_FAMILIES, NoiseConfig, draw_covariances
from anem.covariance import Covariance
from anem.data import ImageData
from anem.energy import EnergyModel, Evaluation
from anem.gaussian import GaussianMixture, make_mixture, make_power_law_gaussian
from anem.network import EnergyNetwork, NetworkConfig
from anem.statistics import DataStatistics
from anem.train import Parts, TrainConfig
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, ModelConfig, OptimiserConfig
from anem.train.parts import loss_function, network_config

__all__ = ["BIAS", "METRICS", "Cases", "draw_cases", "errors", "groups", "learn", "run", "summarise"]

PRIORS = ("gaussian", "mixture")
BATCH = 64
SPREAD = 1e3
"""Noise variances are within this factor of the prior's pixel variance."""

BIAS = "energy bias (nats/dim)"
MAE = "energy MAE (nats/dim)"
METRICS = (BIAS, MAE, "excess denoising error", "∂U/∂log λ error", "posterior variance error", "posterior variance error, λ ≤ c")


@dataclass(frozen=True)
class _Size:
    """images: to train on, and those of them that statistics are fitted to. points: observations judged."""

    images: int
    statistics: int
    points: int


FULL = _Size(images=256_000, statistics=20_000, points=4096)
QUICK = _Size(images=10 * BATCH, statistics=64, points=256)


@dataclass(frozen=True, eq=False)
class Cases:
    """Observations of a prior and the exact answers, in chunks, with the family of every one, (N,)."""

    exact: list[Evaluation]
    family: Tensor


def make_prior(name: str) -> GaussianMixture:
    """One of :data:`PRIORS`, 8 × 8."""
    if name == "mixture":
        return make_mixture(8, 1, 8, 8)
    dense = make_power_law_gaussian(1, 8, 8).dense
    assert dense is not None
    return dense


def pixel_variance(prior: EnergyModel) -> float:
    """Of the images about their common mean μ."""
    return float(prior.statistics.variance.mean())


def noise_config(prior: EnergyModel) -> NoiseConfig:
    """Variances within a factor :data:`SPREAD` of the prior's pixel variance."""
    c = pixel_variance(prior)
    return NoiseConfig(lambda_min=c / SPREAD, lambda_max=c * SPREAD)


def draw_cases(prior: GaussianMixture, noise: NoiseConfig, points: int, generator: torch.Generator, chunk: int = 128) -> Cases:
    """Fresh y = x + n, float64, with Σ drawn from p(Σ)."""
    exact, family = [], []
    for start in range(0, points, chunk):
        x = prior.sample(min(chunk, points - start), generator)
        batch = draw_covariances((len(x), *x.shape[1:]), prior.statistics, noise, generator)
        cov = batch.cov.to(x.dtype)
        exact.append(prior(x + cov.sample(generator), cov))
        family.append(batch.family)
    return Cases(exact, torch.cat(family))


def errors(model: EnergyModel, exact: Evaluation, statistics: DataStatistics) -> dict[str, Tensor]:
    """Errors of ``model`` at one chunk of cases, averaged over coordinates, (B,) each.

    ``floor`` is E[‖Σ^{−1/2}(x − D*)‖² given y]/d, the mean of the exact κ; the squared error of ∂U/∂log λ is averaged, not rooted;
    ``little`` is the share of coordinates with λ ≤ c, and ``variance_little`` the error of their variances times that share.
    """
    got, lam = model(exact.y, exact.cov), exact.cov.values
    c = statistics.variance_of(exact.cov)
    variance = (got.posterior_variance - exact.posterior_variance).abs() * (1 / c + 1 / lam)
    little = (lam <= c).to(lam)
    per_coordinate = {
        "excess": lam * exact.cov.basis.power(got.grad_y - exact.grad_y),
        "floor": exact.relative_variance,
        "logvar": (got.grad_logvar - exact.grad_logvar).square(),
        "variance": variance,
        "variance_little": variance * little,
        "little": little,
    }
    means = {name: v.flatten(1).mean(1) for name, v in per_coordinate.items()}
    return {"energy": (got.energy - exact.energy) / lam[0].numel()} | means


def summarise(at: Mapping[str, Tensor], chosen: Tensor) -> dict[str, float]:
    """The :data:`METRICS` over the chosen images (N,)."""
    mean = {name: float(v[chosen].mean()) for name, v in at.items()}
    mae = float(at["energy"][chosen].abs().mean())
    little = mean["variance_little"] / mean["little"] if mean["little"] else math.nan
    values = (mean["energy"], mae, mean["excess"] / mean["floor"], math.sqrt(mean["logvar"]), mean["variance"], little)
    return dict(zip(METRICS, values, strict=True))


def groups(cases: Cases) -> Iterator[tuple[str, str, Tensor]]:
    """(kind, name, which images (N,)) for every decade of the mean variance, every family, every basis, and all images."""
    level = torch.cat([e.cov.values.log10().flatten(1).mean(1) for e in cases.exact]).floor()
    for k in level.unique().tolist():
        yield "decade", f"1e{k:+.0f}", level == k
    present = [i for i in range(len(NOISE_FAMILIES)) if bool((cases.family == i).any())]
    for i in present:
        yield "family", NOISE_FAMILIES[i].name, cases.family == i
    for basis in dict.fromkeys(NOISE_FAMILIES[i].basis for i in present):
        members = [i for i in present if NOISE_FAMILIES[i].basis == basis]
        yield "basis", basis, torch.isin(cases.family, torch.tensor(members))
    yield "all", "all", torch.ones(len(cases.family), dtype=torch.bool)


def run(context: Context) -> None:
    """Every variant on both priors."""
    size = QUICK if context.quick else FULL
    size = size if context.images is None else replace(size, images=context.images)
    folder = context.out / "models"
    started = "images a model"
    if not context.done(started):  # what lies there is of another commit or seed, or was asked to be made afresh
        shutil.rmtree(folder, ignore_errors=True)
        context.figure(started, size.images)
    for name in PRIORS:
        _run_prior(context, name, folder / name, size)


def _run_prior(context: Context, name: str, folder: Path, size: _Size) -> None:
    wanted = [v for v in VARIANTS if not context.done(_last(name, v.name))]
    if not wanted:
        return
    prior = make_prior(name)
    cases = draw_cases(prior, noise_config(prior), size.points, context.generator("cases", name))
    data = ImageData(_images(prior, size.images, context.generator("images", name)))
    if not context.done(_last(name, "untrained")):
        untrained = EnergyNetwork(NetworkConfig.preset("tiny"), DataStatistics.fit(data.images[: size.statistics]))
        _report(context, name, "untrained", untrained, prior, cases)
    for variant in wanted:
        model = _train(prior, variant, folder, context.seed, size, data)
        if variant.name == "default":
            _report_anchor(context, name, model, prior)
        _report(context, name, variant.name, model, prior, cases)


def learn(prior: GaussianMixture, folder: Path, seed: int, generator: torch.Generator, quick: bool = False) -> EnergyNetwork:
    """The default variant as this bench trains it on a prior, in ``folder``: the model that is there if it is complete."""
    size = QUICK if quick else FULL
    return _train(prior, VARIANTS[0], folder, seed, size, ImageData(_images(prior, size.images, generator)))


def _train(prior: GaussianMixture, variant: Variant, folder: Path, seed: int, size: _Size, data: ImageData) -> EnergyNetwork:
    config = variant.config(_training(prior, str(folder), seed, size), prior.means[0].numel())
    return train_variant(config, _parts(config, data))


def _last(prior: str, variant: str) -> str:
    """The figure that is reported last."""
    return f"{prior}/{variant}/all/{METRICS[-1]}"


def _report(context: Context, prior_name: str, variant: str, model: EnergyModel, prior: GaussianMixture, cases: Cases) -> None:
    """Figures and table of one model."""
    parts = [errors(model, exact, prior.statistics) for exact in cases.exact]
    at = {key: torch.cat([p[key] for p in parts]) for key in parts[0]}
    rows = [(kind, name, int(chosen.sum()), summarise(at, chosen)) for kind, name, chosen in groups(cases)]
    with (context.out / f"{prior_name}-{variant}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("kind", "name", "observations", *METRICS))
        writer.writerows((kind, name, count, *(f"{v:.6g}" for v in values.values())) for kind, name, count, values in rows)
    for kind, name, _, values in rows:
        if kind == "family":
            context.figure(f"{prior_name}/{variant}/{name}/{MAE}", values[MAE])
        elif kind != "decade":
            for metric, value in values.items():
                aim, holds = _aim(variant, kind, metric, value)
                context.figure(f"{prior_name}/{variant}/{name}/{metric}", value, aim, holds, quick=False)


def _aim(variant: str, kind: str, metric: str, value: float) -> tuple[str | None, bool | None]:
    """The aims of the default over all noise."""
    aims = {BIAS: 0.01, MAE: 0.03} if (variant, kind) == ("default", "all") else {}
    return (f"|value| ≤ {aims[metric]}", abs(value) <= aims[metric]) if metric in aims else (None, None)


def _report_anchor(context: Context, name: str, model: EnergyModel, prior: GaussianMixture) -> None:
    """Under white noise of the largest variance the energy is normalised by construction, however little it was trained."""
    key = f"{name}/default/at the anchor/{MAE}"
    if context.done(key):
        return
    generator = context.generator("anchor", name)
    x = prior.sample(256, generator)
    cov = Covariance.white(SPREAD * pixel_variance(prior), x.shape, like=x)
    exact = prior(x + cov.sample(generator), cov)
    context.figure(key, errors(model, exact, prior.statistics)["energy"].abs().mean(), aim="≤ 0.01")


def _images(prior: GaussianMixture, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws of the prior, float32."""
    sizes = [min(4096, count - start) for start in range(0, count, 4096)]
    return torch.cat([prior.sample(n, generator).float() for n in sizes])


def _training(prior: GaussianMixture, output: str, seed: int, size: _Size) -> TrainConfig:
    """As many images as the data set has, so that none is seen twice."""
    return TrainConfig(
        output=output,
        seed=seed,
        images=size.images,
        batch_size=BATCH,
        statistics_images=size.statistics,
        device="cpu",
        model=ModelConfig("tiny"),
        noise=noise_config(prior),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_images=100 * BATCH, decay="cosine", decay_start=0, decay_images=size.images),
        ema=EMAConfig(half_life=size.images // 20),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=2, keep=1),
        log=LogConfig(steps=200, tensorboard=False),
    )


def _parts(config: TrainConfig, data: ImageData) -> Parts:
    return Parts(
        model=partial(EnergyNetwork, network_config(config)),
        data=data,
        held_out=None,
        draw=lambda shape, statistics, generator: draw_covariances(shape, statistics, config.noise, generator),
        families=config.noise.family_names,
        loss=loss_function(config),
    )
