"""Training steps compiled to machine code and with rounded convolutions, against the plain one, and what rounding does to a training."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anem.bench.counts import Workload
from anem.bench.harness import Context
from anem.bench.reference import PlainNetwork
from anem.bench.speed_timing import alternate, ratio, seconds
from anem.corruptions import NoiseConfig
from anem.data import load_dataset, mnist
from anem.losses import LossTerms, dual_score_loss
from anem.network import EnergyNetwork
from anem.train import TrainConfig, train
from anem.train.config import CheckpointConfig, EMAConfig, EvaluationConfig, LogConfig, ModelConfig, OptimiserConfig
from anem.train.evaluate import HeldOut
from anem.train.parts import build_parts
from anem.train.step import CompiledStep, LossModule

__all__ = ["STEPS", "recorded_steps", "rounded_trainings"]

STEPS = ("rounded", "compiled", "compiled and rounded")
"""Ways to run the step: ``precision = "bfloat16"``, ``compile = true``, and both."""


def recorded_steps(context: Context, workload: Workload, rounds: int, steps: tuple[str, ...] = STEPS) -> None:
    """Figures of every way to run the step. Compiling takes minutes each."""
    reference = PlainNetwork(workload.model)
    runs: dict[str, Any] = {"reference": partial(workload.train_step, reference), "step": workload.train_step}
    models = {}
    for name in steps:
        models[name] = model = copy.deepcopy(workload.model)
        if "rounded" in name:
            model.unet.scope.precision = torch.bfloat16
        if "compiled" in name:
            step = CompiledStep(LossModule(model, _loss, 1.0))
            runs[name] = partial(step, workload.x, workload.cov, workload.noise)
        else:
            runs[name] = partial(workload.train_step, model)
    times = alternate(runs, rounds)
    for name, model in models.items():
        key = f"train/small/{name}"
        # A loss moves by less than its figures show; it is the gradient that tells what rounding does.
        off = (_gradient(model) - _gradient(workload.model)).norm() / _gradient(workload.model).norm()
        context.figure(f"{key}: gradient, relative difference to the step's", off, aim="≤ 0.1" if "rounded" in name else "≤ 1e-3")
        context.figure(f"{key}: images per second", len(workload.x) / seconds(times[name]))
        context.figure(f"{key}: images per second over the step's", ratio(times, "step", name))
        faster = ratio(times, "reference", name)
        context.figure(f"{key}: images per second over the reference's", faster, aim="≥ 2" if name == STEPS[-1] else None)


def _loss(model: EnergyNetwork, x: Any, cov: Any, noise: Any, weight: float) -> LossTerms:
    """That of :meth:`Workload.train_step`."""
    return dual_score_loss(model, x, cov, noise, weight, 0.5)


def _gradient(model: EnergyNetwork) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rounded_trainings(context: Context, images: int = 9_600, judged: int = 512) -> None:
    """Held-out losses of two trainings on digits that differ by the precision of the convolutions alone. Needs ``make data``."""
    held_out, reports = None, {}
    for precision in ("float32", "bfloat16"):
        base = _training(context, images)
        config = replace(base, output=str(Path(base.output) / precision), precision=precision)
        parts = build_parts(config)
        if held_out is None:
            data = load_dataset(mnist("validation", base.data.path))
            x = data.batch(torch.arange(judged), context.generator("held out"))
            held_out = HeldOut(x, parts.draw, parts.families, 64, context.seed)
        reports[precision] = held_out.evaluate(train(config, parts=parts), parts.loss)
    for name in ("a_dsm", "a_csm"):
        exact, rounded = (float(getattr(reports[p], name).mean()) for p in ("float32", "bfloat16"))
        label = name.upper().replace("_", "-")
        context.figure(f"trainings/{label} after {images} images", exact)
        context.figure(f"trainings/{label} with rounded convolutions over that", rounded / exact, aim="0.98–1.02")


def _training(context: Context, images: int) -> TrainConfig:
    return TrainConfig(
        output=str(context.out / "models"),
        seed=context.seed,
        images=images,
        batch_size=32,
        statistics_images=5000,
        device="cpu",
        model=ModelConfig("small"),
        data=mnist("train", str(context.data / "mnist.npz")),
        noise=NoiseConfig(stratified=True),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_images=1_000, decay="cosine", decay_start=0, decay_images=images),
        ema=EMAConfig(half_life=images // 20),
        evaluation=EvaluationConfig(steps=0),
        checkpoint=CheckpointConfig(minutes=2, keep=1),
        log=LogConfig(steps=50, tensorboard=False),
    )
