"""Digits: what the parameterisation and the weight of the covariance term are worth, at equal numbers of images.

Every variant is a network of the preset ``small``, trained on the same MNIST images in the same order with the same noise, in a folder of
its own in runs/ablation/IMAGES, where a complete model is used as it is and an incomplete one is continued. Judged on the images of
``--split``, with the same noise for every variant:

* A-DSM and A-CSM over p(Σ), w left out;
* the energies of one y under white noise described in pixels, in frequencies and in blocks: mean |difference| to the pixels', nats/dim;
* the slope dE[U]/d log σ² against ½(1 − mmse/σ²), nats/dim: a slope that is wrong over decades of σ² makes a wrong constant.

The files VARIANT.json beside the report have both losses for every family and noise level.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from anem.bench.digits import VARIANCES, basis_differences
from anem.bench.harness import Context
from anem.bench.report import write_json
from anem.bench.variants import VARIANTS, Variant, train_variant
from anem.corruptions import NoiseConfig
from anem.data import load_dataset, mnist
from anem.likelihood import immse_slope
from anem.losses import dual_score_loss
from anem.network import EnergyNetwork
from anem.train import Parts, TrainConfig
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, ModelConfig, OptimiserConfig, to_dict
from anem.train.evaluate import HeldOut
from anem.train.parts import build_parts

__all__ = ["IMAGES", "run", "training"]

IMAGES = 300_000
"""Images that every variant sees, unless the bench is told otherwise."""


def run(context: Context) -> None:
    """Train, then judge, one variant after the other."""
    if context.quick and not context.report.figures:
        shutil.rmtree(context.out / "models", ignore_errors=True)
    base = training(context)
    count = torch.arange(16 if context.quick else 1000)
    images = load_dataset(mnist(context.split, base.data.path)).batch(count, context.generator("dequantisation"))
    for variant in VARIANTS:
        if context.done(_last(variant)):
            continue
        config = variant.config(base, images[0].numel())
        context.figure(f"{variant.name}/trained from commit", _claim(config, context.report.commit))
        context.figure(f"{variant.name}/images seen", config.images)
        parts = build_parts(config)
        _report(context, variant, train_variant(config, parts).cpu(), parts, images)


def training(context: Context) -> TrainConfig:
    """What all variants share: the schedule of the bundled model, cut off early, in compiled steps with rounded convolutions.

    That is more than twice as fast where the processor has AMX (docs/notes/speed.md), and wants a C++ compiler.
    """
    quick = context.quick
    images = context.images or (128 if quick else IMAGES)
    return TrainConfig(
        output=str(context.out / "models" if quick else Path("runs/ablation", str(images))),
        seed=context.seed,
        images=images,
        batch_size=32,
        statistics_images=64 if quick else 55_000,
        precision="float32" if quick else "bfloat16",
        compile=not quick,
        noise=NoiseConfig(stratified=True),
        model=ModelConfig("small"),
        data=mnist("train", str(context.data / "mnist.npz")),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_images=4_000, decay_start=100_000),
        ema=EMAConfig(profile="power", relative_width=0.06),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=5, keep=1),
        log=LogConfig(steps=100, tensorboard=False),
    )


def _claim(config: TrainConfig, commit: str) -> str:
    """The commit from which the training in ``config.output`` was started: ``commit`` if there is none yet.

    Raises:
        ValueError: the folder holds a training with other settings.
    """
    file = Path(config.output) / "start.json"
    if not file.exists():
        write_json(file, {"commit": commit, "config": to_dict(config)})
    start = json.loads(file.read_text(encoding="utf-8"))
    if start["config"] != to_dict(config):
        raise ValueError(f"{config.output}: holds a model trained with other settings; move it away to train this one")
    return start["commit"]


def _last(variant: Variant) -> str:
    """The figure that is reported last."""
    return f"{variant.name}/slope error at σ² = {[*VARIANCES][-1]} (nats/dim)"


def _report(context: Context, variant: Variant, model: EnergyNetwork, parts: Parts, images: Tensor) -> None:
    report = HeldOut(images, parts.draw, parts.families, 50, context.seed).evaluate(model, dual_score_loss)
    write_json(context.out / f"{variant.name}.json", {"cells": report.to_dict()})
    context.figure(f"{variant.name}/A-DSM", report.a_dsm.mean())
    context.figure(f"{variant.name}/A-CSM", report.a_csm.mean())
    for name, variance in VARIANCES.items():
        generator = context.generator("bases", name)
        apart = torch.cat([torch.stack([*basis_differences(model, x, variance, generator).values()]) for x in images.split(50)], 1)
        context.figure(f"{variant.name}/energies in different bases at σ² = {name} (nats/dim)", apart.mean())
    for name, variance in VARIANCES.items():
        slope = immse_slope(model, images, variance, context.generator("slope", name))
        context.figure(f"{variant.name}/slope error at σ² = {name} (nats/dim)", (slope.measured - slope.predicted).mean())
