"""Cheaper or other estimators of the covariance term, each trained for the processor time that the default needs.

On a mixture of eight Gaussians, 8 × 8 (the network ``tiny``, against the exact energy), and on digits (``small``). The default sees
``--images`` images, 200,000 unless told otherwise; its seconds are the budget of every variant after it:

* matching: the default, A-CSM of every coordinate of every image at every step;
* sliced: one random direction in log Λ an image, in reverse mode;
* a quarter of the steps, a quarter of the batch: A-CSM there four times as heavy, and none elsewhere; both have the default's mean;
* Fokker–Planck: the residual of that equation in place of A-CSM, by Hutchinson's estimator with two probes;
* weight 0: nothing; how U depends on Σ is left to the network's form.

All see the same images in the same order with the same noise. The learning rate and the average of the weights are functions of the images
seen so far, not of how many there will be, so that no variant is cut off early in its schedule. Judged with the same noise for all:

* A-DSM and A-CSM over p(Σ), without weights;
* oracle: the metrics of the oracle bench, over all noise;
* digits: energy error |dE[U]/d log σ² − ½(1 − mmse/σ²)| under white noise, averaged over the σ² of the digits bench, nats/dim;
* variance of the gradient of the loss over batches, at the weights of the default, summed over parameters, over the default's.

The files PROBLEM-VARIANT.json beside the report say how far each training is; an interrupted bench goes on from there. Every model is in
models/PROBLEM/VARIANT/model, for other benches. Digits are those of ``--split``. Needs ``make data``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.digits import VARIANCES
from anem.bench.estimator_variants import VARIANTS
from anem.bench.harness import Context
from anem.bench.oracle import METRICS, draw_cases, errors, make_prior, noise_config, summarise
from anem.bench.turns import Record, spend, sweep
from anem.corruptions import draw_covariances
from anem.data import ImageData, load_dataset, mnist
from anem.energy import EnergyModel
from anem.gaussian import GaussianMixture
from anem.likelihood import immse_slope
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork
from anem.train import Parts, TrainConfig
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, ModelConfig, OptimiserConfig, to_dict
from anem.train.evaluate import HeldOut
from anem.train.parts import build_parts, loss_function, network_config

__all__ = ["Size", "run"]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Arguments:
        images: that the default sees. turn: seconds of training between two entries of the record.
        oracle_batch, digits_batch: images a step. statistics: images they are fitted to.
        points: observations of the oracle. losses, slopes: held-out images for either. batches: for the variance of the gradient.
    """

    images: int = 200_000
    turn: float = 120.0
    oracle_batch: int = 64
    digits_batch: int = 32
    statistics: int = 20_000
    points: int = 4096
    losses: int = 512
    slopes: int = 128
    batches: int = 32

    @classmethod
    def quick(cls) -> Size:
        """Within a minute on two cores."""
        return cls(32, 1.0, 8, 8, statistics=64, points=64, losses=16, slopes=2, batches=2)


# --- what is learned ---


@dataclass(frozen=True, eq=False)
class _Problem:
    """Data to learn from, and what a model of it is judged by: figures by name."""

    name: str
    config: TrainConfig
    parts: Parts
    held_out: Tensor
    judge: Callable[[EnergyModel], Mapping[str, float]]


def _training(context: Context, name: str, size: Size, batch: int) -> TrainConfig:
    """A schedule for about ``size.images`` images that does not mind where it ends."""
    return TrainConfig(
        output=str(context.out / "models" / name),
        seed=context.seed,
        images=math.ceil(size.images / batch) * batch,
        batch_size=batch,
        statistics_images=size.statistics,
        device="cpu",
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_images=size.images // 50, decay_start=size.images // 2),
        ema=EMAConfig(profile="power", relative_width=0.06),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=0, keep=2),
        log=LogConfig(steps=1, progress=False, tensorboard=False),
    )


def _draws(prior: GaussianMixture, count: int, generator: torch.Generator) -> Tensor:
    return torch.cat([prior.sample(min(4096, count - start), generator).float() for start in range(0, count, 4096)])


def _oracle(context: Context, size: Size) -> _Problem:
    prior = make_prior("mixture")
    noise = noise_config(prior)
    base = _training(context, "oracle", size, size.oracle_batch)
    config = replace(base, model=ModelConfig("tiny"), noise=noise, optimiser=replace(base.optimiser, learning_rate=3e-3))
    parts = Parts(
        model=partial(EnergyNetwork, network_config(config)),
        data=ImageData(_draws(prior, 2 * size.images, context.generator("images"))),  # a faster variant sees new ones too
        held_out=None,
        draw=lambda shape, statistics, generator: draw_covariances(shape, statistics, noise, generator),
        families=noise.family_names,
        loss=loss_function(config),
    )
    cases = draw_cases(prior, noise, size.points, context.generator("cases"))

    def judge(model: EnergyModel) -> Mapping[str, float]:
        chunks = [errors(model, exact, prior.statistics) for exact in cases.exact]
        values = summarise({k: torch.cat([c[k] for c in chunks]) for k in chunks[0]}, torch.ones(size.points, dtype=torch.bool))
        return {metric: values[metric] for metric in METRICS}

    return _Problem("oracle", config, parts, _draws(prior, size.losses, context.generator("held out")), judge)


def _digits(context: Context, size: Size) -> _Problem:
    file = str(context.data / "mnist.npz")
    config = replace(_training(context, "digits", size, size.digits_batch), model=ModelConfig("small"), data=mnist("train", file))
    x = load_dataset(mnist(context.split, file)).batch(torch.arange(max(size.losses, size.slopes)), context.generator("dequantisation"))

    def judge(model: EnergyModel) -> Mapping[str, float]:
        found = {}
        for name, variance in VARIANCES.items():
            slope = immse_slope(model, x[: size.slopes], variance, context.generator("slope", name))
            found[f"slope error at σ² = {name} (nats/dim)"] = abs(float((slope.measured - slope.predicted).mean()))
        return {"energy error (nats/dim)": sum(found.values()) / len(found)} | found

    return _Problem("digits", config, build_parts(config), x[: size.losses], judge)


# --- equal time ---


def run(context: Context) -> None:
    """The default, then every other variant for as long, on either problem."""
    sweep(context)
    size = Size.quick() if context.quick else Size()
    size = size if context.images is None else replace(size, images=context.images)
    for make in (_oracle, _digits):
        problem = make(context, size)
        seconds = math.inf
        for variant in VARIANTS:
            contender = variant.contender(problem.config, problem.parts)
            name = f"{problem.name}/{variant.name}"
            settings = to_dict(replace(contender.config, output=""))
            record = Record.open(context.out / f"{problem.name}-{Path(contender.config.output).name}.json", settings, context.report.commit)
            if not context.done(_last(name)):
                images = math.inf if seconds < math.inf else problem.config.images
                model = spend(contender, record, seconds, images, size.turn)
                if variant == VARIANTS[0]:
                    _noise(context, problem, model, size)
                _report(context, name, problem, model, record)
            seconds = record.last.seconds if variant == VARIANTS[0] else seconds


def _last(name: str) -> str:
    """The figure that is reported last."""
    return f"{name}/A-CSM"


def _report(context: Context, name: str, problem: _Problem, model: EnergyModel, record: Record) -> None:
    seconds, images = record.last.seconds, record.last.images
    if isinstance(model, EnergyNetwork):
        model.save_pretrained(context.out / "models" / name.replace(" ", "-") / "model", {"images_seen": images})
    context.figure(f"{name}/trained from commit", record.commit)
    if record.stopped:
        context.figure(f"{name}/stopped by", record.stopped)
    context.figure(f"{name}/seconds", seconds)
    context.figure(f"{name}/images seen", images)
    context.figure(f"{name}/images per second", images / seconds)
    for metric, value in problem.judge(model).items():
        context.figure(f"{name}/{metric}", value)
    report = HeldOut(problem.held_out, problem.parts.draw, problem.parts.families, 32, context.seed).evaluate(model, dual_score_loss)
    context.figure(f"{name}/A-DSM", report.a_dsm.mean())
    context.figure(_last(name), report.a_csm.mean())


def _noise(context: Context, problem: _Problem, model: EnergyModel, size: Size) -> None:
    """Variance of the gradient of every variant's loss over fresh batches, the same ones for all."""
    if context.done(f"{problem.name}/{VARIANTS[-1].name}/variance of the gradient over matching"):
        return
    learner, over = copy.deepcopy(model).requires_grad_(), math.nan
    for variant in VARIANTS:
        contender = variant.contender(problem.config, problem.parts)
        generator, gradients = context.generator("noise", problem.name), []
        for k in range(size.batches):
            rows = torch.randint(len(problem.parts.data), (contender.config.batch_size,), generator=generator)
            x = problem.parts.data.batch(rows, generator)
            cov, noise = problem.parts.draw(tuple(x.shape), learner.statistics, generator).cov, torch.randn(x.shape, generator=generator)
            with torch.random.fork_rng():
                torch.manual_seed(k)
                total = contender.parts.loss(learner, x, cov, noise, contender.config.weight).total
            found = torch.autograd.grad(total, [*learner.parameters()], allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([g.flatten() for g in found]))
        variance = float(torch.stack(gradients).double().var(0).sum())
        over = variance if variant == VARIANTS[0] else over
        context.figure(f"{problem.name}/{variant.name}/variance of the gradient over matching", variance / over)
